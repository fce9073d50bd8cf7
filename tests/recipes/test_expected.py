"""Recipes against their `expected.json`: `pytest -m recipe`, minutes each on two cores.

A metric's mean over seeds must lie in the range that the file states; the ranges are claims, wide enough for other
processors' rounding, not the intervals that were measured.
"""

import json
import os
from pathlib import Path

import pytest

from understudy.comparison import compare
from understudy.config import load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"


def _check(rows, expected):
    found = {row["method"]: row["metrics"] for row in rows}
    for method, metrics in expected["claims"].items():
        for name, (low, high) in metrics.items():
            mean = found[method][name]["mean"]
            assert low <= mean <= high, f"{method}: {name} is {mean}, expected {low} to {high}"


@pytest.mark.recipe
def test_modular_addition(tmp_path):
    expected = json.loads((RECIPES / "modular-addition" / "expected.json").read_text())
    rows = compare(load_recipe(RECIPES / "modular-addition"), tmp_path / "out")
    _check(rows, expected)
    greedy = {row["method"]: row["metrics"]["accuracy_greedy"]["mean"] for row in rows}
    assert greedy["nail-f"] - greedy["sft"] > 0.5


@pytest.mark.recipe
def test_gsm8k_local(tmp_path, monkeypatch):
    data = os.environ.get("UNDERSTUDY_GSM8K")
    if data is None:
        pytest.skip("UNDERSTUDY_GSM8K names no folder with GSM8K's train.jsonl and test.jsonl")
    from understudy.cli import main

    data = str(Path(data).resolve())
    (tmp_path / "recipes").symlink_to(RECIPES)
    monkeypatch.chdir(tmp_path)
    init = ["init", "runs/gsm8k-start", "--text", f"{data}/train.jsonl", *_init_options()]
    monkeypatch.setattr("sys.argv", ["understudy", *init])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    rows = compare(load_recipe("recipes/gsm8k-local", {"task.path": data}), tmp_path / "out")
    _check(rows, json.loads((RECIPES / "gsm8k-local" / "expected.json").read_text()))


@pytest.mark.recipe
def test_realizability(tmp_path, monkeypatch):
    """Base, three experts, the other expert and 27 students: 5,800 processor seconds when they were first made."""
    (tmp_path / "recipes").symlink_to(RECIPES)
    monkeypatch.chdir(tmp_path)
    expected = json.loads((RECIPES / "realizability" / "expected.json").read_text())
    rows = {
        row["method"]: row["metrics"]
        for row in compare(load_recipe("recipes/realizability"), "runs/realizability")
    }
    _check([{"method": label, "metrics": metrics} for label, metrics in rows.items()], expected)
    experts = [_first_and_last(Path(f"runs/realizability-stages/expert-seed{seed}")) for seed in (0, 1, 2)]
    gain = [end["accuracy_sampled"] - start["accuracy_sampled"] for start, end in experts]
    assert min(gain) >= 0.15, gain


def _first_and_last(folder):
    """The metrics of a run's first and last evaluations."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evals = [{k: v["value"] for k, v in r["metrics"].items()} for r in records if r["kind"] == "eval"]
    return evals[0], evals[-1]


def _init_options():
    """The options of `understudy init` as the recipe's README gives them."""
    text = (RECIPES / "gsm8k-local" / "README.md").read_text().replace("\\\n", " ")
    line = next(line for line in text.splitlines() if line.startswith("understudy init runs/gsm8k-start"))
    return line.split("train.jsonl", 1)[1].split("#")[0].split()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*/*.toml")), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_recipe_loads(path):
    load_recipe(path)


@pytest.mark.parametrize("folder", sorted(p for p in RECIPES.iterdir() if p.is_dir()), ids=lambda p: p.name)
def test_every_recipe_says_what_it_shows(folder):
    text = (folder / "README.md").read_text()
    assert any(
        f"understudy {command} recipes/{folder.name}" in text for command in ("compare", "train", "forks")
    )
    assert "Hardware and time" in text
    assert json.loads((folder / "expected.json").read_text())
