"""Read the folders that training writes: one run, or a comparison of methods x seeds.

Counters of a record (`trajectories`, `expert_queries`, `step`, `cpu_seconds`, ...) are cumulative over the
whole run and include the warm start, shared or not. A missing or null number is NaN.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
class Stage:
    """Runs, one a seed or one for all, whose checkpoints the cells of a comparison began with or imitated."""

    role: str
    """`student` or `expert`."""
    name: str
    """Of its recipe; with its folder where two of one role have one name."""
    runs: tuple[RunData, ...]

    @property
    def kind(self) -> str:
        """What it is to the cells: `start` or `expert`."""
        return "start" if self.role == "student" else "expert"

    @property
    def label(self) -> str:
        """Its name and, where that does not say it, its method."""
        method = self.runs[0].method
        return self.name if method in self.name.split("-") else f"{self.name} ({method})"


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
    stages: tuple[Stage, ...] = ()
    """Starts, then experts, that are runs of ours; those without a run that can be read are left out."""

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
    stages = _load_stages(folder, header.get("cells") or [], warnings)
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
        stages=stages,
    )


def _load_stages(folder: Path, cells: Sequence[dict[str, Any]], warnings: list[str]) -> tuple[Stage, ...]:
    """The runs that finished cells name under `student` and `expert`, each once; a folder may have been written before cells
    named any."""
    found: dict[tuple[str, str], tuple[str, dict[str, RunData]]] = {}
    gone: list[str] = []
    recipe = _read_object(folder / "recipe.json")
    for role in ("student", "expert"):
        for entry in cells:
            source = entry.get(role)
            if not isinstance(source, dict) or entry.get("status") != "done":
                continue
            place, name = str(source.get("folder")), str(source.get("recipe"))
            name, runs = found.setdefault((role, str(source.get("checkpoint"))), (name, {}))
            if place in gone or place in runs:
                continue
            run = _stage_run(folder, place)
            if run is None:
                gone.append(place)
                continue
            runs[place] = _on_same_tasks(run, recipe)
            warnings += [f"{role} {name}, {place}: {warning}" for warning in run.warnings]
    if gone:
        warnings.append(
            f"students or experts came from {', '.join(gone)}, where no run can be read any more; left out."
        )
    names = [(role, name) for (role, _), (name, _) in found.items()]
    return tuple(
        Stage(
            role=role,
            name=name if names.count((role, name)) == 1 else f"{name}, {folder_of(checkpoint)}",
            runs=tuple(runs.values()),
        )
        for (role, checkpoint), (name, runs) in found.items()
        if runs
    )


def _on_same_tasks(run: RunData, recipe: dict[str, Any]) -> RunData:
    """The run without what it measured on other tasks than the comparison's: numbers of the same name, and no comparison."""

    def tasks(table: dict[str, Any]) -> dict[str, Any]:
        also = (table.get("evaluate") or {}).get("also") or {}
        return {"": table.get("task")} | {name: of_set.get("task") for name, of_set in also.items()}

    if "task" not in recipe:
        return run
    own, wanted = tasks(run.recipe), tasks(recipe)
    same = {name for name, task in own.items() if name in wanted and wanted[name] == task}

    def kept(metrics: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in metrics.items() if name.rpartition("/")[0] in same}

    evals = tuple(record | {"metrics": kept(record.get("metrics") or {})} for record in run.evals)
    return replace(run, evals=evals)


def folder_of(checkpoint: str) -> str:
    """The name of the folder of runs, one a seed, that a checkpoint is in: `runs/far-{seed}/final` -> `far`."""
    return Path(checkpoint).parent.name.replace("{seed}", "").strip("-_ .")


def _stage_run(folder: Path, place: str) -> RunData | None:
    """A run named relative to the comparison or, outside of it, as the recipe has it; None where it cannot be read."""
    for candidate in (folder / place, Path(place)):
        if (candidate / "metrics.jsonl").is_file():
            try:
                return load_run(candidate)
            except DataError:
                return None
    return None


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
