"""Read the folders that training writes: one run, or a comparison of methods x seeds.

Counters of a record (`trajectories`, `expert_queries`, `step`, `cpu_seconds`, ...) are cumulative over the
whole run and include the warm start, shared or not. A missing or null number is NaN.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.errors import DataError


@dataclass(frozen=True, kw_only=True)
class RunData:
    """One run folder, read. `train` and `evals` are records in the order of training.

    `warm_start` is the run's own, kept in its folder; one that several cells share is in their `Cell`.
    """

    folder: Path
    name: str
    method: str
    seed: int | None
    recipe: dict[str, Any]
    versions: dict[str, Any]
    train: tuple[dict[str, Any], ...]
    evals: tuple[dict[str, Any], ...]
    end: dict[str, Any] | None
    samples: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...]
    warm_start: RunData | None = None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method x seed of a comparison; `run` is None unless its status is done and its folder can be
    read."""

    label: str
    method: str
    seed: int
    folder: str
    status: str
    error: str | None
    run: RunData | None
    warm_start: RunData | None


@dataclass(frozen=True, kw_only=True)
class CompareData:
    """One compare folder, read."""

    folder: Path
    recipe: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    warm_starts: tuple[RunData, ...]
    header: dict[str, Any]
    warnings: tuple[str, ...]

    def done(self, label: str) -> list[RunData]:
        """The readable, finished runs of a method, in the order of its cells."""
        return [cell.run for cell in self.cells if cell.label == label and cell.run is not None]


def number(record: dict[str, Any], *keys: str) -> float:
    """The number at a path of keys; NaN where it is missing, null or not a number."""
    value: Any = record
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return float(value) if isinstance(value, int | float) else math.nan


def final_counter(run: RunData, counter: str) -> float:
    """A cumulative counter at the end of a run (NaN if it was never recorded)."""
    ends = [run.end] if run.end else []
    values = [number(record, counter) for record in (*run.train, *run.evals, *ends)]
    return max((v for v in values if not math.isnan(v)), default=math.nan)


def load_run(folder: str | Path) -> RunData:
    """Read a run folder. A half-written last line (a killed run) is left out with a warning, not an error.

    Raises:
        DataError: the folder or its `metrics.jsonl` is missing, or a line before the last is not a JSON
            object.
    """
    folder = Path(folder)
    if not (folder / "metrics.jsonl").is_file():
        raise DataError(
            f"expected a run folder with metrics.jsonl, found none in {folder}. "
            "Give the folder that `understudy train --out` or `understudy compare --out` wrote."
        )
    records, warnings = _read_lines(folder / "metrics.jsonl")
    samples: list[dict[str, Any]] = []
    if (folder / "trajectories.jsonl").is_file():
        samples, more = _read_lines(folder / "trajectories.jsonl")
        warnings += more
    recipe, versions = _read_object(folder / "recipe.json"), _read_object(folder / "versions.json")
    method = recipe.get("method")
    method_name = method.get("name") if isinstance(method, dict) else method
    ends = [record for record in records if record.get("kind") == "end"]
    if not ends:
        warnings.append(f"{folder.name}: the run has no end record: it was killed or is still running.")
    seed = recipe.get("seed")
    own_warm_start = folder / "warm_start"
    return RunData(
        folder=folder,
        name=str(recipe.get("name") or folder.name),
        method=str(method_name or folder.name),
        seed=seed if isinstance(seed, int) else None,
        recipe=recipe,
        versions=versions,
        train=_replayed(records, "train"),
        evals=_replayed(records, "eval"),
        end=ends[-1] if ends else None,
        samples=tuple(samples),
        warnings=tuple(warnings),
        warm_start=load_run(own_warm_start) if (own_warm_start / "metrics.jsonl").is_file() else None,
    )


def load_compare(folder: str | Path) -> CompareData:
    """Read a compare folder: `compare.json`, every cell that is done, and the shared warm starts.

    A cell names its warm start in `warm_start` (relative to the compare folder; null: it has none). Without
    that key it is the only warm start of the same seed, if there is just one.

    Raises:
        DataError: `compare.json` is missing or not a JSON object, or a run folder is malformed.
    """
    folder = Path(folder)
    header = _read_object(folder / "compare.json", required=True)
    warm_starts = tuple(load_run(path.parent) for path in sorted(folder.glob("warm_start/**/metrics.jsonl")))
    warnings = [warning for run in warm_starts for warning in run.warnings]
    cells = []
    for entry in header.get("cells") or []:
        cells.append(_load_cell(folder, entry, warm_starts, warnings))
        warnings += _cell_warnings(cells[-1])
    methods = [str(label) for label in header.get("methods") or []]
    methods += [label for label in dict.fromkeys(cell.label for cell in cells) if label not in methods]
    return CompareData(
        folder=folder,
        recipe=str(header.get("recipe") or folder.name),
        methods=tuple(methods),
        seeds=tuple(header.get("seeds") or sorted({cell.seed for cell in cells})),
        cells=tuple(cells),
        warm_starts=warm_starts,
        header=header,
        warnings=tuple(warnings),
    )


def _load_cell(
    folder: Path, entry: dict[str, Any], warm_starts: Sequence[RunData], warnings: list[str]
) -> Cell:
    label, seed = str(entry.get("label") or entry.get("method")), int(entry.get("seed") or 0)
    place = str(entry.get("folder") or f"cells/{label}-seed{seed}")
    status = str(entry.get("status") or "pending")
    run = None
    if status == "done":
        if (folder / place / "metrics.jsonl").is_file():
            run = load_run(folder / place)
        else:
            warnings.append(
                f"{label}, seed {seed}: marked done, but {place}/metrics.jsonl is missing; left out."
            )
    if "warm_start" in entry:
        named = entry["warm_start"]
        candidates = [warm for warm in warm_starts if named and warm.folder == folder / str(named)]
    else:
        candidates = [warm for warm in warm_starts if warm.seed == seed]
    if run is not None and run.warm_start is not None:
        candidates = [run.warm_start]
    return Cell(
        label=label,
        method=str(entry.get("method") or label),
        seed=seed,
        folder=place,
        status=status,
        error=str(entry["error"]) if entry.get("error") else None,
        run=run,
        warm_start=candidates[0] if len(candidates) == 1 else None,
    )


def _cell_warnings(cell: Cell) -> list[str]:
    """What a reader of a cell must know; that its counters include its warm start is checked, not assumed."""
    if cell.run is None:
        return []
    warnings = [f"{cell.label}, seed {cell.seed}: {warning}" for warning in cell.run.warnings]
    records = [r for r in (*cell.run.train, *cell.run.evals) if r.get("stage") != "warm_start"]
    first = min((v for r in records if not math.isnan(v := number(r, "trajectories"))), default=math.nan)
    if cell.warm_start is not None and first < final_counter(cell.warm_start, "trajectories"):
        warnings.append(
            f"{cell.label}, seed {cell.seed}: its counters start below the end of its warm start, "
            "so the warm start is missing from its budget."
        )
    return warnings


def _replayed(records: Sequence[dict[str, Any]], kind: str) -> tuple[dict[str, Any], ...]:
    """Records of a kind; a step recorded again after a resume replaces what was recorded before the kill."""
    by_step: dict[Any, dict[str, Any]] = {}
    for index, record in enumerate(records):
        if record.get("kind") == kind:
            by_step[(record.get("stage"), record.get("step", f"line {index}"))] = record
    return tuple(by_step.values())


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    last = max((index for index, line in enumerate(lines) if line.strip()), default=-1)
    records: list[dict[str, Any]] = []
    for index, line in enumerate(lines[: last + 1]):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            if index == last:
                return records, [f"{path.name}: the last line is half-written and was left out."]
            raise _bad_line(path, index, line) from None
        if not isinstance(record, dict):
            raise _bad_line(path, index, line)
        records.append(record)
    return records, []


def _bad_line(path: Path, index: int, line: str) -> DataError:
    return DataError(f"expected one JSON object per line, found {line[:60]!r} at {path}:{index + 1}.")


def _read_object(path: Path, *, required: bool = False) -> dict[str, Any]:
    if not path.is_file():
        if required:
            raise DataError(f"expected a compare folder with {path.name}, found none in {path.parent}.")
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"expected a JSON object in {path}, found something else: {error}.") from None
    if not isinstance(value, dict):
        raise DataError(f"expected a JSON object in {path}, found a {type(value).__name__}.")
    return value
