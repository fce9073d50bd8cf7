"""Comparisons: one shared warm start, matched budgets, failures that stay where they are, and going on after a kill."""

import json
import subprocess
import sys
import time

import pytest

from understudy.comparison import compare
from understudy.config import load_recipe, recipe_from_table
from understudy.errors import ConfigError
from understudy.reports.folders import load_compare
from understudy.run import train

TINY = {
    "name": "tiny",
    "task": {"kind": "modular_addition", "modulus": 5, "length": 6},
    "student": {"new": {"family": "llama", "layers": 1, "width": 16, "heads": 2, "max_positions": 16}},
    "expert": {"kind": "oracle", "noise": {"law": "absorbing", "eta": 0.2}},
    "method": {"name": "nail-f"},
    "warm_start": {"method": "sft", "max_steps": 2, "check_every_steps": 2},
    "train": {"steps": 2, "batch_size": 8},
    "optimizer": {"learning_rate": 1e-3},
    "evaluate": {"every_steps": 2, "prompts": 16},
    "compare": {"methods": ["sft", "nail-f", "nail-known"], "seeds": [0, 1], "workers": 2},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare") / "out"
    return folder, compare(recipe_from_table(TINY), folder)


def test_one_row_a_method_with_budget_and_intervals(finished):
    _, rows = finished
    assert [row["method"] for row in rows] == ["sft", "nail-f", "nail-known"]
    for row in rows:
        assert row["seeds"] == 2
        assert row["failed"] == 0
        accuracy = row["metrics"]["accuracy_greedy"]
        assert accuracy["n"] == 2
        assert accuracy["low"] <= accuracy["mean"] <= accuracy["high"]


def test_budgets_are_matched_and_count_the_warm_start(finished):
    _, rows = finished
    # (2 warm-start steps + 2 steps) of 8 trajectories of 6 tokens, whatever the method.
    for row in rows:
        assert row["budget"]["trajectories"] == 32
        assert row["budget"]["expert_queries"] == 32 * 6
        assert row["budget"]["optimizer_steps"] == 4
        assert row["budget"]["cpu_seconds"] > 0


def test_all_methods_of_a_seed_start_from_the_same_student(finished):
    folder, _ = finished
    data = load_compare(folder)
    for seed in (0, 1):
        starts = [
            cell.run.evals[0]["metrics"]["validation_loss_nats"]["value"]
            for cell in data.cells
            if cell.run is not None and cell.seed == seed
        ]
        assert len(starts) == 3
        assert len(set(starts)) == 1
    assert data.cells[0].run.evals[0]["metrics"] != data.cells[-1].run.evals[0]["metrics"]  # seeds do differ


def test_offline_data_is_written_once_for_all_cells_of_a_seed(finished):
    folder, _ = finished
    assert len(list((folder / "data").iterdir())) == 2  # one data set a seed, shared by warm start and sft


def test_a_failed_cell_is_reported_and_does_not_lose_the_others(tmp_path):
    table = json.loads(json.dumps(TINY))
    del table["warm_start"]
    table["compare"] = {
        "methods": ["nail-f", "broken"],
        "seeds": [0],
        "workers": 1,
        "overrides": {
            "broken": {"method.name": "opd-f", "optimizer.learning_rate": 1e30, "optimizer.clip_norm": 1e30}
        },
    }
    rows = compare(recipe_from_table(table), tmp_path / "out")
    assert [(r["method"], r["seeds"], r["failed"]) for r in rows] == [("nail-f", 1, 0), ("broken", 0, 1)]
    cells = {c["label"]: c for c in json.loads((tmp_path / "out" / "compare.json").read_text())["cells"]}
    assert cells["nail-f"]["status"] == "done"
    assert "gradient norm of step 1 is" in cells["broken"]["error"]


def test_killed_in_the_middle_and_resumed(tmp_path):
    """Whatever was running when the whole comparison was killed is run again; what was done is kept as it was."""
    (tmp_path / "recipe.toml").write_text(_toml(TINY))
    out = tmp_path / "out"
    program = (
        "import sys; from understudy.comparison import compare; from understudy.config import load_recipe; "
        "compare(load_recipe(sys.argv[1]), sys.argv[2], resume=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path), str(out)], stderr=subprocess.DEVNULL
    )
    while not list(out.glob("cells/*/result.json")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    process.kill()  # -9, the parent alone: its workers must end by themselves
    process.wait()
    kept = {p: p.read_bytes() for p in out.glob("cells/*/result.json")}
    rows = compare(load_recipe(tmp_path), out, resume=True)
    assert [(r["seeds"], r["failed"]) for r in rows] == [(2, 0)] * 3
    assert all(p.read_bytes() == before for p, before in kept.items())


def test_a_folder_in_use_is_refused(finished):
    folder, _ = finished
    with pytest.raises(ConfigError, match="--resume"):
        compare(recipe_from_table(TINY), folder)
    changed = {**TINY, "train": {"steps": 3, "batch_size": 8}}
    with pytest.raises(ConfigError, match=r"train\.steps: 2 -> 3"):
        compare(recipe_from_table(changed), folder, resume=True)


def _toml(table, prefix=""):
    lines, tables = [], []
    for key, value in table.items():
        if isinstance(value, dict):
            tables.append((f"{prefix}{key}", value))
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    head = [f"[{prefix[:-1]}]"] if prefix else []
    return "\n".join([*head, *lines, *(_toml(t, f"{name}.") for name, t in tables)]) + "\n"


def test_a_single_run_and_a_comparison_are_not_mixed(finished, tmp_path):
    """Their recipes may be the same to the letter; their folders are not."""
    folder, _ = finished
    with pytest.raises(ConfigError, match="holds a comparison, not a run"):
        train(recipe_from_table(TINY), folder, resume=True)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ConfigError, match="holds a run, not a comparison"):
        compare(recipe_from_table(TINY), tmp_path, resume=True)
