"""The recipe `realizability-paper`, too large to be run in a test: its files as they ship, with every size in them cut down.

Models, data sets and files stand under the names that the recipes give them, so that what runs is what they say. What the
hub would give is made here.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from small import quiet_console
from understudy import build, plans
from understudy.config import cell_recipe, load_recipe
from understudy.resolved import to_toml
from understudy.rollouts import offline
from understudy.run import train
from understudy.schema import NewModel, Recipe
from understudy.stages import missing_stages
from understudy.starter import make_starter
from understudy.tasks import gsm8k
from understudy.tasks.countdown import rows as countdown_rows
from understudy.tasks.countdown.formats import PLAIN, QUESTION, SYSTEM
from understudy.tasks.sources import RawRow
from understudy.tasks.task import Task

ROOT = Path(__file__).parents[2]
HOME = Path("recipes/realizability-paper")
COMPARISONS = ("recipe", "gsm8k", "deepscaler")
HAS_TEMPLATE = {
    "Qwen/Qwen2.5-3B-Instruct": True,
    "Qwen/Qwen2.5-32B-Instruct": True,
    "meta-llama/Llama-3.2-3B": False,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": True,
}
WIDTHS = {"Qwen/Qwen2.5-32B-Instruct": 32}
TRACE = " 1 + 2 = 3, 3 * 4 = 5. That is 6.\n</think>\n<answer> 7 + 8 </answer>\n"
"""The words of Countdown's references, which the tokenizer then spells with few tokens."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to stand in, in which the recipes find everything that they name."""
    folder = tmp_path_factory.mktemp("paper")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(offline, "BLOCK_PROMPTS", 4)  # else 512 responses are written for the few that are read
        for module in (build, plans):
            patch.setattr(module, "check_ids", few_ids_checked)
        for module in (countdown_rows, gsm8k):
            patch.setattr(module, "read_hub", hub_rows)
        (folder / "text.txt").write_text(PLAIN + QUESTION + SYSTEM + TRACE * 9)
        for name, has_template in HAS_TEMPLATE.items():
            sizes = NewModel(family="llama", layers=1, width=WIDTHS.get(name, 16), heads=2, max_positions=360)
            texts = [folder / "text.txt"]
            make_starter(name, model=sizes, texts=texts, vocab_size=512, has_chat_template=has_template)
        write_files()
        HOME.mkdir(parents=True)
        for file in (ROOT / HOME).glob("*.toml"):
            recipe = load_recipe(file)
            require_local(recipe)
            (HOME / file.name).write_text(to_toml(smaller(recipe.to_table())))
        yield folder


def smaller(table: dict[str, Any]) -> dict[str, Any]:
    """A recipe of one round, with short texts and few prompts. What is named in it stays."""
    steps = min(table["train"]["steps_per_round"], 2)
    batch_size = max(2, table["train"]["samples_per_prompt"])
    table["train"] |= {"steps": steps, "steps_per_round": steps, "batch_size": batch_size}
    table["train"] |= {"mixed_precision": "no", "device": "cpu"}
    table["evaluate"] |= {"every_steps": 100, "prompts": 2, "batch_size": 16}
    table["checkpoint"] |= {"every_steps": 0}
    for entry in (table, *table["evaluate"]["also"].values()):
        entry["task"] |= {"max_prompt_tokens": 300}
        entry["task"] |= {"max_new_tokens": 36 if entry["task"]["kind"] == "countdown" else 12}
        if "dataset" in entry["task"]:
            entry["task"] |= {"train_rows": 40, "test_rows": 8}
        if entry["task"].get("validation_rows"):
            entry["task"] |= {"validation_rows": 4}
    return table


def few_ids_checked(task: Task, vocab_size: int) -> None:
    """In place of the check of 256 prompts of each split, whose traces take the time of all the rest."""
    found = task.prompts("validation", 0, 2)
    assert max(max(p.token_ids) for p in found) < vocab_size


def hub_rows(dataset: str, config: str | None, split: str) -> list[RawRow]:
    """What the recipes read from the hub themselves."""
    made: list[dict[str, Any]]
    if dataset == "openai/gsm8k":
        made = [{"question": f"{split} {i} + 1?", "answer": f"#### {i + 1}"} for i in range(12)]
    else:
        assert (dataset, config, split) == ("Jiayi-Pan/Countdown-Tasks-3to4", None, "train[:48]")
        made = [{"nums": [1 + i % 9, 2 + i // 9, 5], "target": 8 + i % 9 + i // 9} for i in range(48)]
    return [RawRow(where=f"{dataset}, row {i}", index=i, fields=row) for i, row in enumerate(made)]


def prepare() -> Any:
    """The script that writes the files which the recipes read."""
    spec = importlib.util.spec_from_file_location("prepare", ROOT / HOME / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def questions(count: int) -> list[dict[str, Any]]:
    return [
        {"subject": f"art_{i % 2}", "question": f"{count} {i}?", "choices": list("wxyz"), "answer": i % 4}
        for i in range(count)
    ]


def write_files() -> None:
    """By the script, from rows like the hub's."""
    script = prepare()
    script.write("mmlu.jsonl", script.mmlu_rows(questions(10), questions(6)))
    traces = {"generations": ["no", "cut", "9"], "correctness_math_verify": [False, True, True]}
    traces |= {"is_reasoning_complete": [True, False, True]}
    script.write("openr1.jsonl", script.openr1_rows({"problem": f"{i}?", **traces} for i in range(12)))
    # Letters: math-verify, which takes seconds to start, is not asked about them.
    solved = ({"problem": f"{i}?", "answer": "ABCD"[i % 4]} for i in range(12))
    script.write("deepscaler.jsonl", script.deepscaler_rows(solved))


def require_local(recipe: Recipe) -> None:
    """Nothing may be looked for on the hub: that would fail too, after minutes."""
    names = (recipe.student.checkpoint, None if recipe.expert is None else recipe.expert.checkpoint)
    for name in names:
        assert name is None or name.startswith("runs/") or name in HAS_TEMPLATE, f"no such model: {name}"


def cells(name: str) -> dict[str, Recipe]:
    recipe = load_recipe(HOME / f"{name}.toml")
    assert recipe.compare is not None
    return {label: cell_recipe(recipe, label, 0) for label in recipe.compare.methods}


@pytest.mark.parametrize("name", COMPARISONS)
def test_what_a_recipe_makes_first_is_what_stands_in_its_own_file(name, monkeypatch):
    """Training an expert by hand and then comparing must find it: in that folder, with those settings. Fails if the task in an
    expert's file differs from its students', or if its folder is not the one that its name gives."""
    monkeypatch.chdir(ROOT)
    for cell in cells(name).values():
        for stage in missing_stages(cell):
            assert stage.folder == Path("runs") / stage.recipe.name
            assert stage.recipe.to_table() == load_recipe(stage.source).to_table()
            if stage.role == "expert":
                assert stage.recipe.task == cell.task
                assert stage.recipe.student.checkpoint == cell.student.checkpoint


def test_both_unrealizable_experts_are_measured_alike():
    """`texts.toml` has texts for a task, so Countdown is one more set there: with the same held-out puzzles."""
    compared, texts = (load_recipe(ROOT / HOME / f"{name}.toml") for name in ("recipe", "texts"))
    own = {"countdown": compared.task, **{name: s.task for name, s in compared.evaluate.also.items()}}
    assert {name: s.task for name, s in texts.evaluate.also.items()} == own
    for name in ("prompts", "samples_per_prompt", "ks", "temperature", "top_k", "top_p", "every_steps"):
        assert getattr(texts.evaluate, name) == getattr(compared.evaluate, name)
    assert (texts.train.steps, texts.train.batch_size) == (compared.train.steps, compared.train.batch_size)


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_stage_cell_and_evaluation_set_runs(name, world):
    """Fails if a cell names an expert, a file or a setting that is not there, if an evaluation set cannot be measured, or if the
    cells of one comparison do not train on equally many trajectories."""
    if name == "deepscaler":
        pytest.importorskip("math_verify")
    spent = {}
    for label, cell in cells(name).items():
        require_local(cell)
        result = train(cell, world / "runs" / name / label, console=quiet_console())
        spent[label] = result.budget["trajectories"]
        assert {"accuracy_greedy", "accuracy_sampled", "expert_kl_nats"} <= result.metrics.keys()
        for of_set, found in cell.evaluate.also.items():
            assert f"{of_set}/accuracy_greedy" in result.metrics
            samples = found.samples_per_prompt or cell.evaluate.samples_per_prompt
            at_k = {
                f"{of_set}/{what}@{k}" for what in ("avg", "pass") for k in cell.evaluate.ks if k <= samples
            }
            assert at_k <= result.metrics.keys()
        # Made by the first cell that asked for them, found by the others.
        assert missing_stages(cell) == []
    assert len(set(spent.values())) == 1, spent


def test_imitated_are_the_two_experts_that_the_labels_say(world):
    for label, cell in cells("recipe").items():
        assert cell.expert is not None
        is_unrealizable = label.endswith("-unrealizable")
        assert (cell.expert.checkpoint == "Qwen/Qwen2.5-32B-Instruct") is is_unrealizable
        assert cell.method.name == label.removesuffix("-unrealizable")


def test_texts_of_another_model_become_training_rows(world):
    """From prompts to responses to SFT, with the line separator that JSON leaves in a text."""
    script = prepare()
    script.main(["prompts", "--count", "12", "--recipe", str(HOME / "recipe.toml")])
    asked = script.read(script.FOLDER / "prompts.jsonl")
    said = [{"id": row["id"], "response": "<think>\u2028hm</think> <answer> 1 </answer>"} for row in asked]
    (world / "said.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in said))
    script.main(["texts", "said.jsonl"])
    rows = script.read(script.FOLDER / "texts.jsonl")
    assert all(row["prompt"].endswith("<think>") and row["reference"].startswith("\u2028hm") for row in rows)
    assert len(rows) == 12
    assert all(str(row["target"]) in row["question"] for row in asked)
    recipe = load_recipe(HOME / "texts.toml", {"task.max_new_tokens": 36})
    result = train(recipe, world / "runs" / "texts", console=quiet_console())
    wanted = {"countdown/pass@4", "ood/pass@4", "mmlu/accuracy_greedy", "countdown/accuracy_sampled"}
    assert wanted <= result.metrics.keys()


def test_what_the_script_takes_from_the_hub(world):
    script = prepare()
    of_art_1 = {row["prompt"]: row["reference"] for row in script.mmlu_rows(questions(12), questions(6))[3:]}
    head = "The following are multiple choice questions (with answers) about art 1.\n\n"
    shown = [f"12 {i}?\nA. w\nB. x\nC. y\nD. z\nAnswer: {'BD'[i % 4 // 2]}\n\n" for i in (1, 3, 5, 7, 9)]
    asked = {f"6 {i}?\nA. w\nB. x\nC. y\nD. z\nAnswer:": " " + "BD"[i % 4 // 2] for i in (1, 3, 5)}
    assert of_art_1 == {head + "".join(shown) + question: letter for question, letter in asked.items()}
    assert script.read(script.FOLDER / "openr1.jsonl")[3] == {
        "prompt": "Question: 3?\nAnswer:",
        "reference": " 9",
    }
    unread = [{"problem": "?", "answer": ""}]
    assert script.deepscaler_rows(unread) == []
