"""Sorting: its prompts and its one right response, splits that never share a list."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
from scipy.stats import chi2

from understudy.errors import ConfigError
from understudy.tasks import SPLITS, Sorting, Task
from understudy.tasks.characters import EOS_ID, VOCAB_SIZE
from understudy.tasks.drawing import BLOCK
from understudy.tasks.modular_addition import split_of


def numbers_of(prompt) -> list[int]:
    return [int(n) for n in prompt.text[1:-1].split(",")]


def test_prompts_by_definition():
    task: Task = Sorting(min_length=3, max_length=4, max_number=30)
    assert (task.vocab_size, task.eos_ids) == (VOCAB_SIZE, {EOS_ID})
    for split in SPLITS:
        assert task.size(split) is None
        for i, prompt in enumerate(task.prompts(split, BLOCK - 9, 60)):
            numbers = numbers_of(prompt)
            assert prompt.id == f"{split}/{BLOCK - 9 + i}"
            assert 3 <= len(numbers) <= 4
            assert 1 <= min(numbers) <= max(numbers) <= 30
            assert task.decode(prompt.token_ids) == prompt.text
            assert task.decode(prompt.reference_ids or ()) == ",".join(map(str, sorted(numbers))) + "<eos>"
            assert len(prompt.reference_ids or ()) <= task.max_new_tokens == 12
            assert len(prompt.token_ids) <= task.max_prompt_tokens == 13


def test_only_the_sorted_list_is_right():
    task = Sorting(min_length=3, max_length=3)
    prompt = task.prompts("test", 0, 1)[0]
    gold = prompt.reference_ids or ()
    grade = task.grade(prompt, gold)
    assert (grade.score, grade.is_correct, grade.answer) == (1.0, True, prompt.meta["answer"])
    for odd in (gold[:-1], (*gold, EOS_ID), gold[1:], (), (99, -1), (*gold[:-1], 12, EOS_ID)):
        assert not task.grade(prompt, odd).is_correct
    assert task.grade(prompt, gold[:-1]).answer is None
    wrong = (gold[0], (gold[1] + 1) % 10, *gold[2:], 5)
    assert task.token_grades(prompt, wrong) == (True, False, *(True,) * (len(gold) - 2), False)


@pytest.mark.parametrize(("start", "count"), [(0, 1), (BLOCK - 3, 6), (5, 0)])
def test_an_item_depends_on_its_index_alone(start, count):
    task = Sorting()
    for split in SPLITS:
        found = task.prompts(split, start, count)
        assert found == [p for i in range(start, start + count) for p in task.prompts(split, i, 1)]


def test_the_stream_is_pinned():
    assert [p.text for p in Sorting(seed=1337).prompts("train", 1_000_000, 3)] == PINNED


PINNED = ["s99,55,42,89,43>", "s56,70,2>", "s42,8,8,80,78>"]


def test_splits_never_share_a_list_in_any_order():
    seen = {
        split: {
            tuple(sorted(numbers_of(p)))
            for seed, largest in ((0, 9), (1, 9), (0, 12))
            for p in Sorting(min_length=2, max_length=4, max_number=largest + 5, seed=seed).prompts(
                split, 0, 600
            )
        }
        for split in SPLITS
    }
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]


def test_lists_of_a_split_are_equally_likely():
    """Chi-square against the enumeration; a false alarm has probability 1e-6."""
    task = Sorting(min_length=3, max_length=3, max_number=8)
    space = [x for x in product(range(1, 9), repeat=3) if split_of(np.array([sorted(x)]))[0] == 0]
    counts = dict.fromkeys(space, 0)
    for prompt in task.prompts("train", 0, 4096):
        counts[tuple(numbers_of(prompt))] += 1
    expected = 4096 / len(space)
    assert sum((c - expected) ** 2 / expected for c in counts.values()) < chi2.isf(1e-6, len(space) - 1)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_lists_never_repeat_and_end_with_the_last_one(split):
    task = Sorting(min_length=3, max_length=3, max_number=12)
    lists = np.array([x for x in product(range(1, 13), repeat=3) if list(x) == sorted(x)])
    there = set(map(tuple, lists[split_of(lists) == SPLITS.index(split)].tolist()))
    found = [tuple(sorted(numbers_of(p))) for p in task.prompts(split, 0, 1000)]
    assert (len(found), set(found)) == (len(there), there)
    assert task.prompts(split, len(found), 3) == []


def test_lengths_are_equally_likely():
    """768 lists: a share off by 0.085 has probability 1e-6."""
    found = [len(numbers_of(p)) for p in Sorting(min_length=3, max_length=5).prompts("train", 0, 768)]
    assert max(abs(found.count(n) / 768 - 1 / 3) for n in (3, 4, 5)) < 0.085


def test_every_smallest_space_has_lists_for_every_split():
    """Otherwise drawing from the empty split would never end. All spaces of 64 to 3000 lists."""
    spaces = [
        (n, k)
        for k in range(1, 12)
        for n in range(1, 400)
        if 64 <= comb(n + k - 1, k) <= 3000 and n**k <= 2 * 10**6
    ]
    assert len(spaces) > 300
    for largest, length in spaces[::7]:
        lists = np.array(
            sorted({tuple(sorted(x)) for x in product(range(1, largest + 1), repeat=length)})
            if largest**length < 20000
            else [[1] * length]
        )
        if len(lists) > 1:
            assert set(split_of(lists).tolist()) == {0, 1, 2}, (largest, length)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"min_length": 0}, "1 <= min_length <= max_length"),
        ({"min_length": 6, "max_length": 5}, "got 6 and 5"),
        ({"max_number": 0}, "max_number must be in 1"),
        ({"max_number": 5}, "only 35 different lists of 3 numbers up to 5, and 64"),
        ({"seed": -1}, "seed must be >= 0"),
    ],
)
def test_settings_that_cannot_work(setting, message):
    with pytest.raises(ConfigError, match=message):
        Sorting(**setting)
