"""Countdown as a task: both formats, every source, what a recipe makes of it, and one run of training."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizer import END, TEMPLATE, make_tokenizer

from small import assert_fits_only
from understudy.build import build_task
from understudy.config import recipe_from_table
from understudy.errors import ConfigError, DataError
from understudy.tasks import SPLITS, Countdown, Task, TextEncoder
from understudy.tasks.characters import CHARACTERS, EOS_ID, VOCAB_SIZE, encode
from understudy.tasks.countdown import (
    Generator,
    Range,
    Rows,
    ThinkFormat,
    TraceSettings,
    compact_format,
    grade_countdown,
    make_rows,
    read_dataset,
    read_folder,
)

SAMPLE = Path(__file__).parent.parent / "data" / "countdown_sample"
SMALL = Generator(operands=(3, 4), max_number=12, max_target=24)
SEARCH = TraceSettings(max_tries=6, smart=0.2, max_value=200)


def compact(source: Generator | Rows = SMALL, traces: TraceSettings = SEARCH, **others: Any) -> Countdown:
    return Countdown(source=source, format=compact_format(source, traces, **others), traces=traces)


def think(
    source: Generator | Rows = SMALL,
    traces: TraceSettings = SEARCH,
    template: str | None = None,
    **others: Any,
) -> Countdown:
    limits: dict[str, Any] = {"max_prompt_tokens": 1000, "max_new_tokens": 1000} | others
    encoder = TextEncoder(tokenizer=make_tokenizer(template=template), **limits)
    return Countdown(source=source, format=ThinkFormat(encoder=encoder), traces=traces)


def sample(**others: Any) -> Rows:
    settings: dict[str, Any] = {"seed": 1337, "validation_rows": 4, "validation": None} | others
    return make_rows(read_folder(SAMPLE), **settings)


def recipe_table(**task: Any) -> dict[str, Any]:
    return {
        "name": "t",
        "task": {"kind": "countdown", **task},
        "student": {"new": {"family": "llama", "layers": 1, "width": 16, "heads": 2, "intermediate": 32}},
        "method": {"name": "sft"},
        "data": {"offline": "reference"},
        "train": {"steps": 4, "batch_size": 8, "threads": 1},
        "optimizer": {"learning_rate": 3e-3},
        "evaluate": {"prompts": 8, "sampled": False},
    }


def test_the_vocabulary_is_pinned():
    """Trained weights depend on it."""
    assert (CHARACTERS, EOS_ID, VOCAB_SIZE) == ("0123456789+-*/()=,;:>!s", 23, 24)


def test_a_compact_prompt_and_its_trace():
    task: Task = compact()
    assert (task.vocab_size, task.eos_ids, task.stop_strings, task.action_ids) == (24, {23}, (), None)
    for split in SPLITS:
        assert task.size(split) is None
        for i, prompt in enumerate(task.prompts(split, 3, 40)):
            nums, target = prompt.meta["nums"], prompt.meta["target"]
            assert prompt.id == f"{split}/{3 + i}"
            assert prompt.text == task.decode(prompt.token_ids) == f"{','.join(map(str, nums))}>{target}:"
            assert prompt.reference is not None
            assert prompt.reference_ids is not None
            assert grade_countdown(f"<answer>{prompt.reference}</answer>", nums, target).is_correct
            written = task.decode(prompt.reference_ids)
            assert re.fullmatch(r"[0-9+*/=,;-]+![0-9+*/()-]+<eos>", written)
            assert len(prompt.reference_ids) <= task.max_new_tokens
            grade = task.grade(prompt, prompt.reference_ids)
            assert grade is not None
            assert grade.is_correct == prompt.meta["is_gold"]
            if grade.is_correct:
                assert (grade.score, grade.answer) == (1.0, prompt.reference)
            json.dumps(prompt.meta)


def test_an_item_depends_on_its_index_alone():
    for task in (compact(), compact(sample()), think(traces=TraceSettings(style="direct"))):
        found = task.prompts("train", 2, 9)
        assert found == [p for i in range(2, 11) for p in task.prompts("train", i, 1)]


def test_the_longest_prompt_is_stated():
    task = compact(Generator(operands=(4,), max_number=12, max_target=24))
    longest = max(len(p.token_ids) for p in task.prompts("train", 0, 400))
    assert longest <= task.max_prompt_tokens == len("12,12,12,12>24:")


def test_compact_responses():
    task = compact()
    prompt = next(p for p in task.prompts("test", 0, 50) if p.meta["is_gold"])
    gold = encode(f"!{prompt.reference}", is_closed=True)
    assert task.grade(prompt, gold).score == 1
    assert task.grade(prompt, (*gold, 3, 99, -1)).score == 1  # what follows the end is nobody's answer
    assert task.grade(prompt, gold[:-1]).score == 1
    assert task.grade(prompt, gold[1:]).score == 0
    assert task.grade(prompt, (*gold[:-1], 99, EOS_ID)).score == 0.1
    assert task.grade(prompt, (*gold[:-1], -1)).score == 0.1
    assert task.grade(prompt, ()).score == 0
    assert task.decode((10, EOS_ID, 24, -1)) == "+<eos><24><-1>"


def test_the_published_prompt_to_the_letter():
    task = think(sample())
    prompt = task.prompts("test", 0, 1)[0]
    assert (
        prompt.text
        == task.decode(prompt.token_ids)
        == (
            "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
            "first thinks about the reasoning process in the mind and then provides the user with the answer.\n"
            "User: Using the numbers [100, 55, 5], create an equation that equals 50. You can use basic arithmetic operations "
            "(+, -, *, /) and each number can only be used once. Show your work in <think> </think> tags. And return the final "
            "answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>.\n"
            "Assistant: Let me solve this step by step.\n<think>"
        )
    )
    template = TEMPLATE.replace("['user', 'assistant']", "['system', 'user', 'assistant']")
    chat = think(sample(), template=template, end_token=END)
    prompt = chat.prompts("test", 0, 1)[0]
    text = chat.decode(prompt.token_ids)
    assert text.startswith("<system>You are a helpful assistant. You first thinks about")
    assert "<end><user>Using the numbers [100, 55, 5], create" in text
    assert text.endswith("</answer>.<end><assistant>Let me solve this step by step.\n<think>")
    assert chat.decode(prompt.reference_ids or ()).endswith(f"</answer>{END}")
    with pytest.raises(ConfigError, match="chat template refuses a system and a user turn"):
        think(sample(), template=TEMPLATE).prompts("test", 0, 1)


@pytest.mark.parametrize("style", ["search", "direct"])
def test_prose_references_are_graded_as_they_stand(style):
    traces = TraceSettings(style=style, max_tries=4, smart=0.3, give_up=0.1)
    task = think(traces=traces)
    found = task.prompts("train", 0, 60)
    right = [task.grade(p, p.reference_ids or ()).is_correct for p in found]
    assert right == [p.meta["is_gold"] for p in found]
    assert all(right) if style == "direct" else 0 < sum(right) < 60
    text = task.decode(found[0].reference_ids or ())
    assert text.count("<answer>") == text.count("</think>") == 1
    assert text.endswith("</answer><eos>")


def test_rows_that_are_read():
    task = compact(sample(), TraceSettings(style="direct"))
    assert {split: task.size(split) for split in SPLITS} == {"train": 20, "validation": 4, "test": 8}
    epoch = task.prompts("train", 0, 20)
    again = task.prompts("train", 20, 20)
    assert {p.id for p in epoch} == {p.id for p in again}
    assert [p.id for p in epoch] != [p.id for p in again]
    assert {p.id: p.reference_ids for p in epoch} == {p.id: p.reference_ids for p in again}
    assert len(task.prompts("test", 5, 99)) == 3
    for split in SPLITS:
        for p in task.prompts(split, 0, task.size(split) or 0):
            assert task.grade(p, p.reference_ids or ()).score == 1
    assert compact(sample(validation_rows=None, validation="test_ood")).size("validation") == 8
    assert sample(validation_rows=0).size("validation") == 0
    with pytest.raises(DataError, match="no validation split"):
        compact(sample(validation_rows=0)).prompts("validation", 0, 1)


@pytest.mark.skipif(
    "UNDERSTUDY_COUNTDOWN" not in os.environ, reason="UNDERSTUDY_COUNTDOWN: folder of the real rows"
)
def test_the_real_rows():
    found = read_folder(os.environ["UNDERSTUDY_COUNTDOWN"])
    rows = make_rows(found, seed=1337, validation_rows=None, validation="test_ood")
    assert ({s: rows.size(s) for s in SPLITS}, rows.num_shared) == (
        {"train": 10_000, "validation": 1000, "test": 1000},
        0,
    )
    task = compact(rows, TraceSettings(style="direct"))
    for split in SPLITS:
        for p in task.prompts(split, 0, 1000):
            assert task.grade(p, p.reference_ids or ()).score == 1


def write(folder: Path, **files: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_puzzles_of_a_test_set_are_left_out_of_training(tmp_path):
    train = [{"nums": [n, 5, 7], "target": n + 12} for n in range(1, 9)]
    test = [
        {"nums": [7, 3, 5], "target": 15},
        {"nums": [5, 7, 4], "target": 16},
    ]  # train's rows 2 and 3, turned
    rows = make_rows(
        read_folder(write(tmp_path, train=train, test=test)), seed=0, validation_rows=2, validation=None
    )
    assert ({s: rows.size(s) for s in SPLITS}, rows.num_shared) == (
        {"train": 4, "validation": 2, "test": 2},
        2,
    )
    contents = [{p.content for p in rows.puzzles(s, 0, 4)} for s in SPLITS]
    assert len(set.union(*contents)) == 8
    for seed in range(8):
        rows = make_rows(read_folder(tmp_path), seed=seed, validation_rows=2, validation=None)
        held, tested = ({p.content for p in rows.puzzles(s, 0, 4)} for s in ("validation", "test"))
        assert not held & tested
    # A double of a held-out row goes with it.
    folder = write(
        tmp_path, train=[*train, *[{**row, "nums": row["nums"][::-1]} for row in train]], test=test
    )
    rows = make_rows(read_folder(folder), seed=0, validation_rows=2, validation=None)
    assert ({s: rows.size(s) for s in SPLITS}, rows.num_shared) == (
        {"train": 8, "validation": 2, "test": 2},
        6,
    )


def test_puzzles_of_every_other_file_are_left_out_of_training(tmp_path):
    train = [{"nums": [n, 5, 7], "target": n + 12} for n in range(1, 9)]
    folder = write(
        tmp_path,
        train=train,
        train_more=train[:1],
        test=[{"nums": [1, 1], "target": 2}],
        test_ood=[{**row, "nums": row["nums"][::-1]} for row in train[2:5]],
    )
    rows = make_rows(read_folder(folder), seed=0, validation_rows=2, validation=None)
    assert ({s: rows.size(s) for s in SPLITS}, rows.num_shared) == (
        {"train": 3, "validation": 2, "test": 1},
        3,
    )
    trained = {p.content for split in SPLITS for p in rows.puzzles(split, 0, rows.size(split))}
    assert not trained & {p.content for p in read_folder(folder)["test_ood"]}


def test_a_row_without_a_solution_has_no_reference(tmp_path):
    train = [{"nums": [1, 1], "target": 50 + n} for n in range(4)]
    rows = make_rows(
        read_folder(write(tmp_path, train=train, test=[{"nums": [1, 1], "target": 2}])),
        seed=0,
        validation_rows=0,
        validation=None,
    )
    prompt = compact(rows, TraceSettings(style="direct")).prompts("train", 0, 1)[0]
    assert (prompt.reference, prompt.reference_ids, prompt.meta["is_gold"]) == (None, None, False)


def test_the_hub_layout(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    lines = [json.loads(line) for line in (SAMPLE / "train.jsonl").read_text().splitlines()]
    hub = write(tmp_path / "hub", train=[{"target": row["target"], "nums": row["nums"]} for row in lines])
    found = read_dataset(str(hub), 18, 6)
    assert [p.nums for p in found["train"]] == [tuple(row["nums"]) for row in lines[:18]]
    assert [p.nums for p in found["test"]] == [tuple(row["nums"]) for row in lines[18:]]
    assert make_rows(found, seed=0, validation_rows=3, validation=None).size("train") == 15
    with pytest.raises(DataError, match=r"has 24 rows and train_rows is 327680\. Lower train_rows"):
        read_dataset(str(hub), 327_680, 1_024)
    with pytest.raises(ConfigError, match="train_rows and test_rows must be >= 1"):
        read_dataset(str(hub), 0, 6)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"numbers": [1, 2], "target": 3}, r"line 1: no field 'nums'.*Did you mean 'numbers'"),
        ({"nums": [1, 2]}, "line 1: no field 'target'"),
        ({"nums": "1,2", "target": 3}, "nums must be a list of 2 to 5 whole numbers, found '1,2'"),
        ({"nums": [1], "target": 3}, "list of 2 to 5"),
        ({"nums": [1, 2.5], "target": 3}, "must be whole numbers .* found 2.5"),
        ({"nums": [1, True], "target": 3}, "must be whole numbers .* found True"),
        ({"nums": [1, 2], "target": 0}, "must be whole numbers .* found 0"),
        ({"nums": [1, 2], "target": 10**4000}, "must be whole numbers"),
        (
            {"nums": [1, 2], "target": 3, "solution": "1+1"},
            r"the solution '1\+1' does not make 3 of \[1, 2\]",
        ),
        ({"nums": [1, 2], "target": 3, "solution": 3}, "the solution 3 does not make 3"),
    ],
)
def test_rows_that_are_no_puzzles(tmp_path, row, message):
    folder = write(tmp_path, test=[row], train=[row])
    with pytest.raises(DataError, match=message):
        read_folder(folder)


def test_folders_and_splits_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match=r"countdown_sampel\. Did you mean .*countdown_sample"):
        read_folder(SAMPLE.parent / "countdown_sampel")
    with pytest.raises(DataError, match="is no folder"):
        read_folder(SAMPLE / "train.jsonl")
    with pytest.raises(DataError, match=r"no such file or folder: .*test\.jsonl"):
        read_folder(write(tmp_path, train=[{"nums": [1, 2], "target": 3}]))
    with pytest.raises(DataError, match=r"no validation file ood\.jsonl \(there are: test, test_ood\)"):
        sample(validation="ood", validation_rows=None)
    with pytest.raises(ConfigError, match="either validation or validation_rows"):
        sample(validation="test_ood")
    with pytest.raises(ConfigError, match=r"validation_rows must be in 0 \.\. 23 .*got 24"):
        sample(validation_rows=24)
    same = [{"nums": [1, 2], "target": 3}]
    with pytest.raises(DataError, match="every puzzle of train is also"):
        make_rows(
            read_folder(write(tmp_path, train=same, test=same)),
            seed=0,
            validation="test",
            validation_rows=None,
        )


def test_identities_tell_tasks_apart():
    tasks = [
        compact(),
        compact(Generator(operands=(3, 4), max_number=12, max_target=25)),
        compact(Generator(operands=(3, 4), max_number=12, max_target=24, excluded=frozenset({(1, 2, 3)}))),
        compact(traces=TraceSettings(max_tries=7, smart=0.2, max_value=200)),
        compact(max_new_tokens=400),
        compact(sample()),
        compact(sample(seed=2)),
        think(),
        think(max_new_tokens=500),
    ]
    assert len({task.identity for task in tasks}) == len(tasks)
    assert compact().identity == compact().identity
    assert compact(sample()).identity == compact(sample()).identity
    assert think().identity == think().identity
    assert len(think(sample()).identity) < 3000


def test_limits_that_cannot_be_kept():
    with pytest.raises(
        ConfigError, match="max_value must be at least the largest number of the puzzles, 12; got 11"
    ):
        compact(traces=TraceSettings(max_value=11))
    with pytest.raises(DataError, match=r"the trace of .* tokens and max_new_tokens is 10\. Lower max_tries"):
        compact(max_new_tokens=10).prompts("train", 0, 5)
    with pytest.raises(
        DataError,
        match=r"the puzzle \[.*the reference has \d+ tokens .*max_new_tokens is 20.*raise max_new_tokens\.$",
    ):
        think(max_new_tokens=20, can_drop=False).prompts("train", 0, 5)


def test_a_recipe_makes_the_task(tmp_path):
    table = recipe_table(format="compact", operands=[3], max_number=9, max_target=20, max_tries=3, smart=0.5)
    recipe = recipe_from_table(table)
    task = build_task(recipe, None, frozenset())
    assert isinstance(task, Countdown)
    traces = TraceSettings(max_tries=3, smart=0.5)
    assert task.identity == compact(Generator(operands=(3,), max_number=9, max_target=20), traces).identity
    assert recipe_from_table(recipe.to_table()) == recipe
    inner = {"operands": [3], "max_number": 6, "max_target": 12}
    recipe = recipe_from_table({**table, "task": {**table["task"], "outside": inner}})
    outer = build_task(recipe, None, frozenset())
    expected = Generator(
        operands=(3,), max_number=9, max_target=20, outside=Range(operands=(3,), max_number=6, max_target=12)
    )
    assert outer.identity == compact(expected, traces).identity != task.identity
    assert recipe_from_table(recipe.to_table()) == recipe
    knowing = build_task(
        recipe_from_table({**table, "task": {**table["task"], "train_on_all": True}}), None, frozenset()
    )
    every = Generator(operands=(3,), max_number=9, max_target=20, trains_on_all=True)
    assert knowing.identity == compact(every, traces).identity != task.identity
    read = build_task(
        recipe_from_table(recipe_table(format="compact", path=str(SAMPLE), validation="test_ood")),
        None,
        frozenset(),
    )
    assert read.size("validation") == 8
    file = write(
        tmp_path, seen=[{"nums": list(p.nums), "target": p.target} for p in SMALL.puzzles("train", 0, 99)]
    )
    table = recipe_table(format="compact", max_number=12, max_target=24, exclude=[str(file / "seen.jsonl")])
    drawn = build_task(recipe_from_table(table), None, frozenset())
    assert isinstance(drawn, Countdown)
    seen = {p.content for p in SMALL.puzzles("train", 0, 99)}
    assert not seen & {p.content for p in drawn.source.puzzles("train", 0, 300)}
    prose = build_task(recipe_from_table(recipe_table(operands=[3])), make_tokenizer(), frozenset({2}))
    assert (prose.max_new_tokens, prose.vocab_size) == (1024, None)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"path": "a", "dataset": "b"}, "not both"),
        ({"validation_rows": 5}, "validation_rows are held out of task.path or task.dataset"),
        ({"validation": "test_ood"}, "validation names a file of task.path"),
        ({"path": "a", "exclude": ["b"]}, "here they are read. Remove them"),
        ({"path": "a", "train_on_all": True}, "here they are read. Remove them"),
        (
            {"dataset": "a", "outside": {"operands": [3], "max_number": 9, "max_target": 9}},
            "here they are read. Remove them",
        ),
        ({"format": "compact", "end_token": "x"}, "need format = 'think'"),
        ({"format": "prose"}, "think, compact"),
        ({"max_numbers": 5}, "Did you mean max_number"),
    ],
)
def test_settings_that_do_not_fit_are_refused_at_load(task, message):
    with pytest.raises(ConfigError, match=message):
        recipe_from_table(recipe_table(**task))


def test_a_context_that_is_too_short_is_refused():
    recipe = recipe_from_table(recipe_table(format="compact", max_number=9, max_target=20, max_tries=2))
    task = build_task(recipe, None, frozenset())
    assert isinstance(task, Countdown)
    need = task.max_prompt_tokens + task.max_new_tokens
    assert_fits_only(need, recipe, task, vocab_size=24, eos_ids=frozenset({23}))


def test_it_trains(tmp_path):
    import understudy

    recipe = recipe_from_table(
        recipe_table(format="compact", operands=[3], max_number=9, max_target=20, max_tries=2, smart=0.5)
    )
    result = understudy.train(recipe, tmp_path / "run")
    assert result.metrics["accuracy_greedy"]["value"] < 0.5
    assert result.metrics["validation_loss_nats"]["value"] < 3.15  # log 24 = 3.18 is an untrained student's
