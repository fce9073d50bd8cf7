"""Measured curves for the mean-field maps: read from a comparison's folder, or shipped with the package.

Pure standard library. The shipped files are what `write_demo` made of finished comparisons; each names its command.
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
GRID = DATA / "horizon_noise_grid.json"
"""The paper's horizon x noise grid (arXiv:2606.30923 Fig. 4), read from the figure."""

METRICS = ("accuracy_greedy", "accuracy_sampled", "expert_kl_nats", "validation_loss_nats")
"""Curves by position that are kept; formulas: docs/metrics.md."""
REQUIRED_METHODS = ("opd-f", "opd-r", "nail-f")
KEPT_METHODS = (*REQUIRED_METHODS, "nail-r", "sft", "kd")

_DIGITS = 5


def load(path: Path) -> dict[str, Any]:
    """One of the shipped files."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_demo(folder: str | Path) -> dict[str, Any]:
    """Curves by position of a finished `understudy compare recipes/modular-addition`, at the main stage's start and end.

    Args:
        folder: of the comparison: holds compare.json, recipe.json and cells/<method>-seed<n>/metrics.jsonl.
    Returns:
        `command`, `date` (of compare.json), `seeds`, `num_actions`, `length`, `eta`, `error`, `steps`, `prompts`; `start`
        and `end[method]`, each metric -> `by_seed` (one list a seed) and `mean`; `chains_right`, sampled responses that
        were right throughout, over `num_chains`.
    Raises:
        ValueError: the folder is no finished comparison of the required methods on modular addition under absorbing
            noise; says what was expected and found.
    """
    folder = Path(folder)
    compare = _json(folder, "compare.json")
    recipe = _json(folder, "recipe.json")
    noise = _require_recipe(folder, recipe)
    methods = [name for name in KEPT_METHODS if name in compare["methods"]]
    missing = [name for name in REQUIRED_METHODS if name not in methods]
    if missing:
        raise ValueError(f"{folder}: methods {', '.join(missing)} expected, found {compare['methods']}.")
    evaluations = {name: _evaluations(folder, compare, name) for name in methods}
    length = recipe["task"]["length"]
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
        "prompts": recipe["evaluate"]["prompts"],
        "start": _curves([first for first, _ in evaluations[methods[0]]], length, folder),
        "end": {name: _curves([last for _, last in evaluations[name]], length, folder) for name in methods},
        "num_chains": {name: sum(chain["n"] for chain in chains[name]) for name in methods},
        "chains_right": {
            name: round(sum(chain["value"] * chain["n"] for chain in chains[name])) for name in methods
        },
    }


def write_demo(folder: str | Path, path: Path) -> None:
    """Put a comparison's curves into a shipped file."""
    text = json.dumps(read_demo(folder), separators=(",", ":")).replace("],[", "],\n[").replace("},", "},\n")
    path.write_text(text + "\n", encoding="utf-8")


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{folder} is no finished comparison: {name} expected, as `understudy compare` writes it ({error})."
        ) from None


def _require_recipe(folder: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """The noise of the recipe, if it is the setting of the maps."""
    task, expert = recipe["task"], recipe.get("expert") or {}
    noise = expert.get("noise") or {}
    found = (task["kind"], expert.get("kind"), noise.get("law"))
    expected = ("modular_addition", "oracle", "absorbing")
    if found != expected:
        raise ValueError(f"{folder}: task, expert and noise law {expected} expected, found {found}.")
    if recipe["evaluate"].get("samples_per_prompt", 1) != 1:
        raise ValueError(f"{folder}: evaluate.samples_per_prompt = 1 expected, found more.")
    return noise


def _evaluations(folder: Path, compare: dict[str, Any], label: str) -> list[tuple[dict, dict]]:
    """(first, last) evaluation of the main stage, one pair a seed."""
    pairs = []
    for seed in compare["seeds"]:
        cell = next((c for c in compare["cells"] if c["label"] == label and c["seed"] == seed), None)
        status = "missing" if cell is None else cell["status"]
        if cell is None or status != "done":
            raise ValueError(f"{folder}: a finished cell {label}, seed {seed}, expected, found it {status}.")
        path = folder / cell["folder"] / "metrics.jsonl"
        try:
            records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: one JSON object a line expected ({error}).") from None
        main = [r for r in records if r["kind"] == "eval" and r["stage"] == "main"]
        if not main or main[0]["stage_step"] != 0:
            raise ValueError(
                f"{path}: evaluations of the main stage from its step 0 on expected, found none."
            )
        pairs.append((main[0], main[-1]))
    return pairs


def _curves(records: list[dict], length: int, folder: Path) -> dict[str, Any]:
    """metric -> curves by position, a list a seed and their mean, of one evaluation a seed."""
    curves = {}
    for name in METRICS:
        by_seed = [record["by_position"].get(name, []) for record in records]
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
