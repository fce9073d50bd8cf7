"""Mixtures: fixed proportions, every prompt graded by its own task, one vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizer import make_tokenizer

from small import assert_fits_only
from understudy.build import build_task, build_tokenizer
from understudy.config import recipe_from_table
from understudy.errors import ConfigError
from understudy.tasks import SPLITS, Mixture, ModularAddition, Part, Sorting, Task

SAMPLE = Path(__file__).parent.parent / "data" / "countdown_sample"
COUNTDOWN = {"kind": "countdown", "format": "compact", "operands": [3], "max_number": 9, "max_target": 20}


def table(*parts: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "t",
        "task": {"kind": "mixture", "parts": list(parts)},
        "student": {"new": {"family": "llama", "layers": 1, "width": 16, "heads": 2, "intermediate": 32}},
        "method": {"name": "sft"},
        "data": {"offline": "reference"},
        "train": {"steps": 3, "batch_size": 8, "threads": 1},
        "optimizer": {"learning_rate": 3e-3},
        "evaluate": {"prompts": 8},
    }


def build(*parts: dict[str, Any]) -> Mixture:
    task = build_task(recipe_from_table(table(*parts)), None, frozenset())
    assert isinstance(task, Mixture)
    return task


def test_every_prompt_is_its_parts_own():
    task: Task = build({"task": COUNTDOWN, "share": 3}, {"task": {"kind": "sorting"}, "share": 2})
    mixture = task
    assert isinstance(mixture, Mixture)
    assert (task.vocab_size, task.eos_ids, task.stop_strings) == (24, {23}, ())
    for split in SPLITS:
        assert task.size(split) is None
        found = task.prompts(split, 0, 25)
        assert [p.meta["part"] for p in found].count("countdown") == 15
        for part in mixture.parts:
            mine = [p for p in found if p.meta["part"] == part.name]
            originals = part.task.prompts(split, 0, len(mine))
            for prompt, original in zip(mine, originals, strict=True):
                assert prompt.id == f"{part.name}/{original.id}"
                assert prompt.token_ids == original.token_ids
                assert prompt.reference_ids == original.reference_ids
                for response in (original.reference_ids or (), (3, 4), ()):
                    assert task.grade(prompt, response) == part.task.grade(original, response)
                    assert task.token_grades(prompt, response) == part.task.token_grades(original, response)
        assert len({p.id for p in found}) == 25


@pytest.mark.parametrize(("start", "count"), [(0, 1), (3, 11), (5, 0), (1000, 7)])
def test_an_item_depends_on_its_index_alone(start, count):
    task = build({"task": COUNTDOWN, "share": 3}, {"task": {"kind": "sorting"}, "share": 2})
    found = task.prompts("train", start, count)
    assert found == [p for i in range(start, start + count) for p in task.prompts("train", i, 1)]


@pytest.mark.parametrize("shares", [(1,), (1, 1), (3, 1), (5, 3, 2), (1, 7), (2, 2, 2)])
def test_shares_are_kept_and_spread_out(shares):
    parts = tuple(Part(name=str(i), task=Sorting(seed=i), share=s) for i, s in enumerate(shares))
    pattern = Mixture(parts=parts).pattern
    assert [pattern.count(i) for i in range(len(shares))] == list(shares)
    for place in range(1, len(pattern) + 1):
        for i, share in enumerate(shares):
            assert abs(pattern[:place].count(i) - share * place / sum(shares)) < 1


def test_pattern_by_hand():
    parts = tuple(Part(name=str(i), task=Sorting(), share=s) for i, s in enumerate((3, 1)))
    assert Mixture(parts=parts).pattern == (0, 0, 1, 0)


def test_parts_that_end():
    """Here are 5 validation rows and 8 test rows; of every 3 prompts 2 are its own."""
    files = {**COUNTDOWN, "path": str(SAMPLE), "validation_rows": 5}
    task = build({"task": files, "share": 2}, {"task": {"kind": "sorting"}})
    assert [task.size(split) for split in SPLITS] == [None, 8, 12]
    found = task.prompts("validation", 0, 100)
    assert [p.meta["part"][0] for p in found] == list("csccsccs")
    assert len({p.id for p in found}) == 8
    assert task.prompts("validation", 6, 5) == found[6:]
    assert task.prompts("validation", 8, 5) == []
    assert len(task.prompts("train", 0, 90)) == 90
    none = build({"task": {**files, "validation_rows": 0}}, {"task": {"kind": "sorting"}})
    assert none.size("validation") == 0
    assert none.prompts("validation", 0, 5) == []


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "at least one part"),
        ([{"task": COUNTDOWN, "share": 0}], "share of countdown must be >= 1, got 0"),
        ([{"task": COUNTDOWN}, {"task": COUNTDOWN}], "different names"),
        (
            [{"task": COUNTDOWN}, {"task": {"kind": "modular_addition", "modulus": 7, "length": 5}}],
            "vocab_size of countdown is 24, of modular_addition 8. Mix tasks of one format",
        ),
    ],
)
def test_parts_that_do_not_fit(parts, message):
    with pytest.raises(ConfigError, match=message):
        build(*parts)


def test_the_same_number_of_tokens_is_not_the_same_vocabulary():
    with pytest.raises(ConfigError, match=r"eos_ids of a is \[23\], of b \[\]"):
        Mixture(
            parts=(
                Part(name="a", task=Sorting(), share=1),
                Part(name="b", task=ModularAddition(modulus=23, length=3), share=1),
            )
        )


def test_mixtures_of_text_need_a_tokenizer_and_share_it():
    parts = [
        {"task": {**COUNTDOWN, "format": "think"}},
        {"task": {**COUNTDOWN, "format": "think"}, "name": "b"},
    ]
    recipe = recipe_from_table(table(*parts))
    with pytest.raises(ConfigError, match="is text and a new student needs"):
        build_tokenizer(recipe)
    task = build_task(recipe, make_tokenizer(), frozenset({2}))
    assert task.vocab_size is None
    assert build_tokenizer(recipe_from_table(table({"task": COUNTDOWN}))) is None


def test_identity_and_limits():
    first = build({"task": COUNTDOWN, "share": 3}, {"task": {"kind": "sorting"}})
    other = build({"task": COUNTDOWN, "share": 2}, {"task": {"kind": "sorting"}})
    assert first.identity != other.identity
    assert first.max_new_tokens == max(part.task.max_new_tokens for part in first.parts)
    recipe = recipe_from_table(table({"task": COUNTDOWN, "share": 3}, {"task": {"kind": "sorting"}}))
    assert recipe_from_table(json.loads(json.dumps(recipe.to_table()))) == recipe
    # The longest prompt is the sorting part's, the longest response the countdown part's.
    need = Sorting().max_prompt_tokens + first.max_new_tokens
    assert_fits_only(need, recipe, first, vocab_size=24, eos_ids=frozenset({23}))


def test_it_trains(tmp_path):
    import understudy

    recipe = recipe_from_table(table({"task": COUNTDOWN, "share": 3}, {"task": {"kind": "sorting"}}))
    result = understudy.train(recipe, tmp_path / "run")
    assert result.metrics["validation_loss_nats"]["value"] < 3.15  # log 24 = 3.18 is an untrained student's
