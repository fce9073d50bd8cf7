"""Modular addition: its chain, its grader, the exact law of its expert, splits that never share a prompt."""

from __future__ import annotations

import math
import time
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.errors import ConfigError
from understudy.records import Prompt
from understudy.tasks import SPLITS, ModularAddition, ModularAdditionOracle, Oracle, Task
from understudy.tasks.modular_addition import BLOCK, split_of

INF = math.inf


def prompt_of(digits: list[int], modulus: int) -> Prompt:
    return Prompt(id="by-hand", token_ids=(*digits, modulus))


def oracle_row(digits: list[int], modulus: int, prefix: list[int]) -> list[float]:
    """The definition in plain Python; shares no code with the implementation."""
    t = len(prefix)
    before = 0
    if t > 0:
        before = sum(digits[:t]) if prefix[-1] == modulus else prefix[-1]
    right = (before + digits[t]) % modulus
    return [0.0 if v == right else -INF for v in range(modulus + 1)]


def test_is_a_task_with_an_oracle():
    task: Task = ModularAddition(modulus=7, length=31)
    law: Oracle | None = task.oracle()
    assert law is not None
    assert law.vocab_size == task.vocab_size == 8
    assert (task.max_new_tokens, task.eos_ids, task.action_ids) == (31, frozenset(), (0, 1, 2, 3, 4, 5, 6))


def test_prompts_by_definition():
    task = ModularAddition(modulus=7, length=31)
    for split in SPLITS:
        assert task.size(split) is None
        for i, prompt in enumerate(task.prompts(split, 5, 40)):
            digits = prompt.token_ids[:-1]
            assert prompt.id == f"{split}/{5 + i}"
            assert prompt.token_ids[-1] == 7
            assert len(digits) == 31
            assert set(digits) <= set(range(7))
            sums = [sum(digits[: t + 1]) % 7 for t in range(31)]
            assert prompt.reference_ids == tuple(sums)
            assert prompt.reference == " ".join(map(str, sums)) == task.decode(sums)
            assert prompt.text == task.decode(prompt.token_ids) == " ".join(map(str, digits)) + " ="
            assert prompt.meta["answer"] == str(sums[-1])


@settings(deadline=None, max_examples=40)
@given(start=st.integers(0, 3 * BLOCK), count=st.integers(0, 40), split=st.sampled_from(SPLITS))
def test_an_item_depends_on_its_index_alone(start, count, split):
    task = ModularAddition(modulus=3, length=9)
    found = task.prompts(split, start, count)
    assert found == [p for i in range(start, start + count) for p in task.prompts(split, i, 1)]


def test_a_batch_across_a_block_is_its_two_halves():
    task = ModularAddition(modulus=5, length=6)
    whole = task.prompts("train", BLOCK - 70, 128)
    assert whole == task.prompts("train", BLOCK - 70, 70) + task.prompts("train", BLOCK, 58)
    assert len({p.token_ids for p in whole}) > 120
    assert [p.id for p in whole] == [f"train/{i}" for i in range(BLOCK - 70, BLOCK + 58)]


def test_the_stream_is_pinned():
    """The prompts of a seed are part of a recipe's result: no version of NumPy or of ours may change them."""
    task = ModularAddition(modulus=7, length=5, seed=1337)
    train, validation = task.prompts("train", 1_000_000, 2), task.prompts("validation", 0, 2)
    assert [p.token_ids for p in train] == [(3, 0, 4, 5, 6, 7), (4, 1, 5, 6, 4, 7)]
    assert [p.token_ids for p in validation] == [(0, 0, 6, 5, 2, 7), (3, 3, 4, 4, 4, 7)]


def test_seeds_and_splits_have_streams_of_their_own():
    streams = {
        tuple(p.token_ids for p in ModularAddition(modulus=7, length=31, seed=seed).prompts(split, 0, 4))
        for seed, split in product((0, 1, 2**40), SPLITS)
    }
    assert len(streams) == 9


@pytest.mark.parametrize(("modulus", "length"), [(2, 6), (3, 4), (5, 6), (3, 21)])
def test_splits_never_share_a_prompt_whatever_the_seed(modulus, length):
    seen = {
        split: {
            p.token_ids
            for seed in (0, 1)
            for p in ModularAddition(modulus=modulus, length=length, seed=seed).prompts(split, 0, 2048)
        }
        for split in SPLITS
    }
    assert all(seen.values())
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]


def test_every_space_that_is_allowed_has_prompts_for_every_split():
    """Otherwise drawing a prompt of the empty split would never end. All spaces of up to 2048 prompts."""
    spaces = [
        (p, m) for m in range(1, 12) for p in range(2, 2049) if 64 <= p**m <= 2048 and (m > 1 or p < 200)
    ]
    assert len(spaces) == 196
    for modulus, length in spaces:
        digits = np.array(np.unravel_index(np.arange(modulus**length), (modulus,) * length)).T
        shares = np.bincount(split_of(digits), minlength=3) / len(digits)
        assert shares.min() > 0, (modulus, length)
    # The largest: 2048 prompts, of which train should have 3/4 (standard error 0.01), the others 1/8 (0.007).
    digits = np.array(np.unravel_index(np.arange(2**11), (2,) * 11)).T
    shares = np.bincount(split_of(digits)) / 2**11
    assert shares == pytest.approx([0.75, 0.125, 0.125], abs=0.04)


@pytest.mark.parametrize("split", SPLITS)
def test_digits_are_uniform_at_every_position(split):
    """Chi-square over 4096 prompts, 31 positions; a false alarm has probability 1e-6 in each of 96 tests."""
    from scipy.stats import chi2

    prompts = ModularAddition(modulus=7, length=31).prompts(split, 0, 4096)
    digits = np.array([p.token_ids[:-1] for p in prompts])
    counts = np.stack([np.bincount(column, minlength=7) for column in digits.T])
    expected = 4096 / 7
    assert (((counts - expected) ** 2 / expected).sum(axis=1) < chi2.isf(1e-6, 6)).all()
    neighbours = np.bincount(digits[:, 0] * 7 + digits[:, 1], minlength=49)
    assert ((neighbours - 4096 / 49) ** 2 / (4096 / 49)).sum() < chi2.isf(1e-6, 48)


def test_a_chain_is_right_only_as_a_whole():
    task = ModularAddition(modulus=3, length=4)
    prompt = task.prompts("test", 0, 1)[0]
    gold = prompt.reference_ids
    assert gold is not None
    right = task.grade(prompt, gold)
    assert (right.score, right.is_correct, right.answer) == (1.0, True, prompt.meta["answer"])
    assert task.token_grades(prompt, gold) == (True,) * 4
    for t, token in product(range(4), range(4)):
        wrong = (*gold[:t], token, *gold[t + 1 :])
        if wrong != gold:
            grade = task.grade(prompt, wrong)
            assert (grade.score, grade.is_correct) == (0.0, False)
            # A slip on the way leaves the final answer right: it can be counted apart from the chain.
            assert (grade.answer == prompt.meta["answer"]) == (t < 3)
            assert task.token_grades(prompt, wrong) == tuple(s != t for s in range(4))
    for odd in ((), gold[:-1], (*gold, 0), (3, 3, 3, 3), (-1, 99, 10**30, 0)):
        assert not task.grade(prompt, odd).is_correct
    assert task.token_grades(prompt, (*gold, 0)) == (True, True, True, True, False)
    assert task.grade(prompt, (0, 0, 0, 3)).answer is None
    assert task.decode((0, 3, -1, 99)) == "0 = <-1> <99>"


def test_oracle_by_hand():
    oracle = ModularAddition(modulus=5, length=3).oracle()
    prompt = prompt_of([3, 4, 1], 5)
    # Right: 3, 7 mod 5 = 2, 3. After a wrong 0 for the first sum: 0 + 4 = 4. After '=': the true 3 + 4 = 2.
    logp = oracle.logp_BTV([prompt] * 3, [[3, 2], [0, 4], [5, 2]])
    assert logp.dtype is torch.float32
    assert logp.argmax(-1).tolist() == [[3, 2, 3], [3, 4, 0], [3, 2, 3]]
    assert logp.amax(-1).eq(0).all()
    assert logp.isneginf().sum().item() == 3 * 3 * 5


def test_oracle_stands_on_the_true_sum_after_an_equals_sign_anywhere():
    oracle = ModularAdditionOracle(modulus=5, length=3)
    # 1, then '=' in place of 1 + 1 = 2: the last sum is 2 + 1 = 3.
    assert oracle.logp_BTV([prompt_of([1, 1, 1], 5)], [[1, 5]])[0, 2].argmax() == 3


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_oracle_is_the_definition_on_any_prefixes(data):
    modulus, length = data.draw(st.integers(2, 6)), data.draw(st.integers(6, 8))
    num = data.draw(st.integers(1, 4))
    digits = [
        data.draw(st.lists(st.integers(0, modulus - 1), min_size=length, max_size=length)) for _ in range(num)
    ]
    responses = [data.draw(st.lists(st.integers(0, modulus), max_size=length)) for _ in range(num)]
    oracle = ModularAddition(modulus=modulus, length=length).oracle()
    logp = oracle.logp_BTV([prompt_of(x, modulus) for x in digits], responses)
    longest = max(map(len, responses))
    assert logp.shape == (num, min(longest + 1, length), modulus + 1)
    for b, t in product(range(num), range(logp.shape[1])):
        if t <= len(responses[b]):
            assert logp[b, t].tolist() == oracle_row(digits[b], modulus, responses[b][:t])
        else:
            assert logp[b, t].isnan().all()


def test_oracle_on_its_own_greedy_chain_is_the_reference():
    task = ModularAddition(modulus=7, length=31)
    prompts = task.prompts("validation", 0, 8)
    responses: list[list[int]] = [[] for _ in prompts]
    for t in range(31):
        for response, row in zip(responses, task.oracle().logp_BTV(prompts, responses)[:, t], strict=True):
            response.append(int(row.argmax()))
    assert all(task.grade(p, r).is_correct for p, r in zip(prompts, responses, strict=True))


def test_oracle_of_nothing():
    oracle = ModularAddition(modulus=5, length=3).oracle()
    assert oracle.logp_BTV([], []).shape == (0, 1, 6)


@pytest.mark.parametrize(
    ("digits", "response", "message"),
    [
        ([1, 2, 3], [0, 0, 0, 0], "response of 4 tokens is longer than the chain of 3"),
        ([1, 2, 3], [6], r"must be in 0 \.\. 5, got 6"),
        ([1, 2, 3], [-1], r"must be in 0 \.\. 5, got -1"),
        ([1, 2], [0], r"prompts of 3 digits and '=', got prompts of \[3\] tokens"),
        ([1, 2, 5], [0], r"prompts of digits 0 \.\. 4"),
    ],
)
def test_oracle_refuses_what_cannot_be(digits, response, message):
    oracle = ModularAddition(modulus=5, length=3).oracle()
    with pytest.raises(ValueError, match=message):
        oracle.logp_BTV([prompt_of(digits, 5)], [response])


def test_oracle_refuses_ragged_prompts_and_unpaired_responses():
    oracle = ModularAddition(modulus=5, length=3).oracle()
    with pytest.raises(ValueError, match=r"got prompts of \[3, 4\] tokens"):
        oracle.logp_BTV([prompt_of([1, 2, 3], 5), prompt_of([1, 2], 5)], [[], []])
    with pytest.raises(ValueError, match="2 prompts, 1 responses"):
        oracle.logp_BTV([prompt_of([1, 2, 3], 5)] * 2, [[]])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"modulus": 1}, r"modulus must be in 2 \.\. .*got 1"),
        ({"length": 0}, "length must be >= 1, got 0"),
        ({"modulus": 3, "length": 3}, r"only 27 different prompts, and 64 are needed.*Raise"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
    ],
)
def test_settings_that_cannot_work(setting, message):
    with pytest.raises(ConfigError, match=message):
        ModularAddition(**{"modulus": 7, "length": 31} | setting)


def test_fast_enough_not_to_be_noticed_in_a_step():
    """A step of the demo takes about 100 ms; prompts and laws of a batch 1 or 2. Twenty times that fails."""
    task = ModularAddition(modulus=3, length=21)
    begin = time.process_time()
    prompts = task.prompts("train", 10**6, 128)
    task.oracle().logp_BTV(prompts, [p.reference_ids or () for p in prompts])
    assert time.process_time() - begin < 0.1
