"""The recipe `near-future-paper`, too large to be run in a test: its files as they ship, with every size in them cut down.

Models and files stand under the names that the recipes give them; what the hub would give is made here.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from small import quiet_console
from understudy.config import cell_recipe, load_recipe
from understudy.resolved import to_toml
from understudy.rollouts import offline
from understudy.run import train
from understudy.schema import NewModel, Recipe
from understudy.stages import missing_stages
from understudy.starter import make_starter

ROOT = Path(__file__).parents[2]
HOME = Path("recipes/near-future-paper")
WIDTHS = {"Qwen/Qwen3-4B-Instruct-2507": 16, "Qwen/Qwen3-30B-A3B-Instruct-2507": 32}
LABELS = ["opd-r", "near-future", "low-distance", "high-distance"]
SUPPRESSED = {"low-distance": "false-alarms", "high-distance": "matched"}
SETS = ["aime24", "aime25", "hmmt25"]
STEPS = 2


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to stand in, in which the recipes find everything that they name."""
    pytest.importorskip("math_verify")
    folder = tmp_path_factory.mktemp("near-future-paper")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(offline, "BLOCK_PROMPTS", 4)  # else 512 responses are written for the few that are read
        patch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=hub_rows))
        (folder / "text.txt").write_text("Let's think step by step. 1 + 2 = 3, so \\boxed{3}.\n" * 9)
        for name, width in WIDTHS.items():
            sizes = NewModel(family="llama", layers=1, width=width, heads=2, max_positions=400)
            make_starter(name, model=sizes, texts=[folder / "text.txt"], vocab_size=300)
        script = prepare()
        patch.setattr(script, "STAGE_1", 12)
        patch.setattr(script, "STAGE_2", 10)
        script.main()
        HOME.mkdir(parents=True)
        for file in (ROOT / HOME).glob("*.toml"):
            (HOME / file.name).write_text(to_toml(smaller(load_recipe(file).to_table())))
        yield folder


def prepare() -> Any:
    """The script that writes the files which the recipes read."""
    spec = importlib.util.spec_from_file_location("prepare_near_future", ROOT / HOME / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hub_rows(dataset: str, *, split: str, streaming: bool = False) -> list[dict[str, Any]]:
    """Every other text is no mathematics, and each of the others comes twice; problems have answers as the sets have them."""
    assert split == "train"
    if streaming:
        assert dataset == "open-thoughts/OpenThoughts3-1.2M"
        said = [(("code", "math")[i % 2], f"What is {i // 4} + 1?") for i in range(100)]
        return [{"domain": domain, "conversations": [{"value": text}]} for domain, text in said]
    answer: Any = "\\frac{1}{3}" if "hmmt" in dataset else 204 if "MathArena" in dataset else "033"
    return [{"problem": f"{dataset}, {i}?", "answer": answer} for i in range(3)]


def smaller(table: dict[str, Any]) -> dict[str, Any]:
    """A recipe of two steps, with short texts and few prompts. What is named in it, and every choice, stays."""
    batch_size = max(2, table["train"]["samples_per_prompt"])
    table["train"] |= {"steps": STEPS, "batch_size": batch_size, "micro_batch_tokens": 150, "device": "cpu"}
    table["train"] |= {"rollout_batch_size": 3}
    table["optimizer"] |= {"warmup_steps": 1}
    table["evaluate"] |= {"every_steps": STEPS, "prompts": 2, "batch_size": 8}
    table["checkpoint"] |= {"every_steps": 1}
    table["task"] |= {"validation_rows": 2}
    for entry in (table, *table["evaluate"]["also"].values()):
        entry["task"] |= {"max_prompt_tokens": 300, "max_new_tokens": 30}
    for chosen in table["evaluate"]["also"].values():
        chosen |= {"prompts": 3}
    return table


def require_local(recipe: Recipe) -> None:
    """Nothing may be looked for on the hub: that would fail too, after minutes."""
    names = (recipe.student.checkpoint, None if recipe.expert is None else recipe.expert.checkpoint)
    for name in names:
        assert name is None or name.startswith("runs/") or name in WIDTHS, f"no such model: {name}"


def logged(folder: Path) -> list[dict[str, Any]]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row["kind"] == "train"]


def test_both_stages_and_every_arm_run(world):
    """Fails if a file names a model, a file or a setting that is not there, if settings do not go together, if a set cannot be
    measured, if an arm is not what its name says, or if arms do not train on equally many trajectories."""
    recipe = load_recipe(HOME / "recipe.toml")
    assert recipe.compare is not None
    assert list(recipe.compare.methods) == LABELS
    spent = {}
    for label in LABELS:
        cell = cell_recipe(recipe, label, 0)
        require_local(cell)
        assert cell.method.suppress == SUPPRESSED.get(label)
        for stage in missing_stages(cell):
            require_local(stage.recipe)
            assert stage.recipe.method.name == "kd"
            assert label == LABELS[0], "made by the first arm, found by the others"
        folder = world / "runs" / label
        result = train(cell, folder, console=quiet_console())
        spent[label] = result.budget["trajectories"]
        assert {"accuracy_greedy", "accuracy_sampled"}.isdisjoint(result.metrics), (
            "its prompts have no answers"
        )
        for name in SETS:
            assert {f"{name}/accuracy_greedy", f"{name}/accuracy_sampled"} <= result.metrics.keys()
            assert cell.evaluate.also[name].samples_per_prompt == 5
        log = logged(folder)
        assert len(log) == STEPS
        for row in log:
            assert ("forks_real" in row) is (label != "opd-r")
            assert row.get("forks_real", 1) > 0
            assert (row.get("window_loss_nats") is not None) is (label == "near-future")
    assert len(set(spent.values())) == 1, spent
    assert len(logged(Path("runs/near-future-paper-start"))) == STEPS


def test_what_the_script_takes_from_the_hub(world):
    """Each question once, mathematics alone, and no prompt of stage 1 in stage 2."""
    folder = Path("data/near-future-paper")
    rows = {
        file.stem: list(map(json.loads, file.read_text().splitlines())) for file in folder.glob("*.jsonl")
    }
    assert {name: len(found) for name, found in rows.items()} == {
        "stage1": 12, "stage2": 10, "aime24": 3, "aime25": 3, "hmmt25": 3,
    }  # fmt: skip
    asked = [row["prompt"] for name in ("stage1", "stage2") for row in rows[name]]
    assert [text.split("\n")[0] for text in asked] == [f"What is {i} + 1?" for i in range(22)]
    assert all("\\boxed{}" in text for text in asked)
    assert {row["reference"] for row in rows["hmmt25"]} == {"\\frac{1}{3}"}
    assert {row["reference"] for row in rows["aime25"]} == {"204"}
