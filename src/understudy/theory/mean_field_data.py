"""Measured curves for the mean-field maps: read from a comparison's folder, or shipped with the package.

Pure standard library. The shipped files are what `write_demo` made of finished comparisons, and `write_series` of one
run; each names its command.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"

SHIPPED_DEMO = DATA / "modular_addition.json"
"""The recipe `modular-addition` as it is: 30 steps of each method."""
SHIPPED_LONG = DATA / "modular_addition_200_steps.json"
"""The same with 200 steps of three methods: nearer to the fixed points."""
SHIPPED_SERIES = DATA / "modular_addition_opd_f_800_steps.json"
"""One seed of opd-f for 800 steps, evaluated every 100: where the longer comparison goes on."""
GRID = DATA / "horizon_noise_grid.json"
"""The paper's horizon x noise grid (arXiv:2606.30923 Fig. 4), read from the figure."""

METRICS = ("accuracy_greedy", "accuracy_sampled", "expert_kl_nats", "validation_loss_nats")
"""Curves by position that are kept; formulas: docs/metrics.md."""
REQUIRED_METHODS = ("opd-f", "opd-r", "nail-f")
KEPT_METHODS = (*REQUIRED_METHODS, "nail-r", "sft", "kd")
TEMPERATURES = {"opd-f": 1.0, "opd-r": 1.0, "nail-f": 0.0, "nail-r": 0.0}
"""Of the rollouts that the map of a method is about; the other methods have none."""

_DIGITS = 5


def load(path: Path) -> dict[str, Any]:
    """One of the shipped files."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_demo(folder: str | Path) -> dict[str, Any]:
    """Curves by position of a finished `understudy compare recipes/modular-addition`, at the main stage's start and end.

    Args:
        folder: of the comparison: holds compare.json, recipe.json and cells/<method>-seed<n>/metrics.jsonl.
    Returns:
        `command`, `date` (of compare.json), `seeds`, `num_actions`, `length`, `eta`, `error`, `steps`, `prompts`,
        `warm_start` (its method, or empty); `start` and `end[method]`, each metric -> `by_seed` (one list a seed) and
        `mean`; `chains_right`, sampled responses that were right throughout, over `num_chains`.
    Raises:
        ValueError: the folder is no finished comparison of the required methods on modular addition under absorbing
            noise, at the rollout temperatures of the maps; says what was expected and found.
    """
    folder = Path(folder)
    compare = _json(folder, "compare.json")
    recipe = _json(folder, "recipe.json")
    noise = _require_recipe(folder, recipe)
    listed = _entry(folder / "compare.json", compare, "methods")
    methods = [name for name in KEPT_METHODS if name in listed]
    missing = [name for name in REQUIRED_METHODS if name not in methods]
    if missing:
        raise ValueError(f"{folder}: methods {', '.join(missing)} expected, found {listed}.")
    evaluations = {name: _evaluations(folder, compare, name) for name in methods}
    length = recipe["task"]["length"]
    start = _curves([first for first, _ in evaluations[methods[0]]], length, folder)
    end = {name: _curves([last for _, last in evaluations[name]], length, folder) for name in methods}
    chains = {
        name: [pair[1]["metrics"]["accuracy_sampled"] for pair in evaluations[name]] for name in methods
    }
    return {
        "command": compare["command"],
        "date": datetime.fromtimestamp((folder / "compare.json").stat().st_mtime, UTC).date().isoformat(),
        "seeds": compare["seeds"],
        "num_actions": recipe["task"]["modulus"],
        "length": length,
        "eta": noise["eta"],
        "error": noise["error"],
        "steps": recipe["train"]["steps"],
        "warm_start": (recipe.get("warm_start") or {}).get("method", ""),
        "prompts": recipe["evaluate"]["prompts"],
        "start": start,
        "end": end,
        "num_chains": {name: sum(chain["n"] for chain in chains[name]) for name in methods},
        "chains_right": {
            name: round(sum(chain["value"] * chain["n"] for chain in chains[name])) for name in methods
        },
    }


def write_demo(folder: str | Path, path: Path) -> None:
    """Put a comparison's curves into a shipped file."""
    text = json.dumps(read_demo(folder), separators=(",", ":")).replace("],[", "],\n[").replace("},", "},\n")
    path.write_text(text + "\n", encoding="utf-8")


def write_series(folder: str | Path, path: Path, command: str) -> None:
    """Put every evaluation of the main stage of one opd-f run into a shipped file; a run does not keep its command.

    Raises:
        ValueError: as `read_demo`.
    """
    folder = Path(folder)
    recipe = _json(folder, "recipe.json")
    noise = _require_recipe(folder, recipe)
    _require_method(folder / "recipe.json", recipe, "opd-f")
    main, length = _main_evaluations(folder / "metrics.jsonl"), recipe["task"]["length"]
    series = {
        "command": command,
        "seeds": [recipe["seed"]],
        "num_actions": recipe["task"]["modulus"],
        "length": length,
        "eta": noise["eta"],
        "error": noise["error"],
        "prompts": recipe["evaluate"]["prompts"],
        "steps": [record["stage_step"] for record in main],
        "validation_loss_nats": _curves(main, length, folder)["validation_loss_nats"]["by_seed"],
    }
    text = json.dumps(series, separators=(",", ":")).replace("],[", "],\n[")
    path.write_text(text + "\n", encoding="utf-8")


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{folder} is no finished comparison: {name} expected, as `understudy compare` writes it ({error})."
        ) from None


def _entry(file: Path, table: dict[str, Any], dotted: str) -> Any:
    """table[a][b] of "a.b"."""
    found: Any = table
    for key in dotted.split("."):
        if not isinstance(found, dict) or found.get(key) in (None, []):
            raise ValueError(f"{file}: {dotted} expected, found none.")
        found = found[key]
    return found


def _require_recipe(folder: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """The noise of the recipe, if it is the setting of the maps."""
    file = folder / "recipe.json"
    for dotted in ("task.modulus", "task.length", "train.steps", "evaluate.prompts"):
        _entry(file, recipe, dotted)
    expert = recipe.get("expert") or {}
    noise = expert.get("noise") or {}
    found = (recipe["task"].get("kind"), expert.get("kind"), noise.get("law"))
    expected = ("modular_addition", "oracle", "absorbing")
    if found != expected:
        raise ValueError(f"{folder}: task, expert and noise law {expected} expected, found {found}.")
    if recipe["evaluate"].get("samples_per_prompt", 1) != 1:
        raise ValueError(f"{folder}: evaluate.samples_per_prompt = 1 expected, found more.")
    for dotted in ("expert.noise.eta", "expert.noise.error"):
        _entry(file, recipe, dotted)
    return noise


def _require_method(file: Path, recipe: dict[str, Any], label: str) -> None:
    """Refuse a cell whose name promises another method, or other prefixes, than its recipe has."""
    name, wanted = _entry(file, recipe, "method.name"), TEMPERATURES.get(label)
    if name != label:
        raise ValueError(f"{file}: method.name = {label} expected, found {name}.")
    found = recipe["method"].get("rollout_temperature")
    if found is not None and found != wanted:
        raise ValueError(
            f"{file}: method.rollout_temperature = {wanted} expected, as the map of {label} has it, found {found}."
        )


def _evaluations(folder: Path, compare: dict[str, Any], label: str) -> list[tuple[dict, dict]]:
    """(first, last) evaluation of the main stage, one pair a seed."""
    pairs, file = [], folder / "compare.json"
    _entry(file, compare, "cells")
    for seed in _entry(file, compare, "seeds"):
        cell = next((c for c in compare["cells"] if c["label"] == label and c["seed"] == seed), None)
        status = "missing" if cell is None else cell["status"]
        if cell is None or status != "done":
            raise ValueError(f"{folder}: a finished cell {label}, seed {seed}, expected, found it {status}.")
        place = folder / cell["folder"]
        _require_method(place / "recipe.json", _json(place, "recipe.json"), label)
        main = _main_evaluations(place / "metrics.jsonl")
        pairs.append((main[0], main[-1]))
    return pairs


def _main_evaluations(path: Path) -> list[dict[str, Any]]:
    """The evaluations of the main stage, from its step 0 on."""
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: one JSON object a line expected ({error}).") from None
    main = [r for r in records if r["kind"] == "eval" and r["stage"] == "main"]
    if not main or main[0]["stage_step"] != 0:
        raise ValueError(f"{path}: evaluations of the main stage from its step 0 on expected, found none.")
    return main


def _curves(records: list[dict], length: int, folder: Path) -> dict[str, Any]:
    """metric -> curves by position, a list a seed and their mean, of one evaluation a seed."""
    curves = {}
    for name in METRICS:
        by_seed = [(record.get("by_position") or {}).get(name, []) for record in records]
        if any(len(values) != length or None in values for values in by_seed):
            raise ValueError(
                f"{folder}: {length} finite values of {name} by position expected, found "
                f"{[len([v for v in values if v is not None]) for values in by_seed]}."
            )
        curves[name] = {
            "by_seed": [[_short(value) for value in values] for values in by_seed],
            "mean": [_short(sum(column) / len(column)) for column in zip(*by_seed, strict=True)],
        }
    return curves


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
