"""The solver against brute force over every order, bracketing and operator."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from countdown_oracle import all_expressions, is_right, shape

from understudy.errors import ConfigError
from understudy.tasks.countdown import is_solvable, solutions
from understudy.tasks.countdown.solver import _table, solvable


def random_puzzles(seed: int, num: int, largest: int, count: int) -> list[tuple[list[int], int]]:
    rng = random.Random(seed)
    return [
        ([rng.randint(1, largest) for _ in range(num)], rng.randint(1, 2 * largest)) for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("num", "largest", "count"),
    [(2, 6, 60), (3, 4, 60), (3, 12, 60), (3, 100, 20), (4, 3, 3), (4, 10, 4), (4, 60, 3)],
)
def test_all_solutions_and_no_others(num, largest, count):
    some = 0
    rng = random.Random(num * largest)
    for i, (nums, target) in enumerate(random_puzzles(num * largest, num, largest, count)):
        if i % 2:  # a target that there surely is
            values = all_expressions(tuple(nums)).values()
            target = int(rng.choice([v for v in values if v >= 1 and v.denominator == 1]))
        found = solutions(nums, target)
        assert all(is_right(text, nums, target) for text in found)
        assert len(set(found)) == len(found)
        brute = {text for text, value in all_expressions(tuple(nums)).items() if value == target}
        assert {shape(text) for text in found} == {shape(text) for text in brute}, (nums, target)
        assert is_solvable(nums, target) == bool(brute)
        some += bool(brute)
    assert some > 0


def test_by_hand():
    assert set(solutions([2, 3], 6)) == {"2*3"}
    assert set(solutions([2, 2], 4)) == {"2+2", "2*2"}
    assert set(solutions([2, 6], 3)) == {"6/2"}
    # Fractions on the way: 8 / (3 - 8 / 3).
    assert solutions([3, 3, 8, 8], 24) == ["8/(3-8/3)"]
    assert solutions([1, 1, 1, 1], 24) == []
    # Zero on the way: 5 - 5 may be added or multiplied, and never be divided by.
    assert all("/(5-5)" not in text for text in solutions([5, 5, 7], 7))
    assert "7+5-5" in solutions([5, 5, 7], 7)


def test_the_order_of_the_numbers_does_not_matter():
    assert solutions([7, 3, 12], 15) == solutions([12, 7, 3], 15)


def test_the_sides_of_a_sum_or_product_come_in_one_order():
    """Where both sides have the same numbers, either could come first; on top, and inside of something larger."""
    for nums, target, one, other in (
        ([1, 2, 1, 2], 3, "(1+2)*(2-1)", "(2-1)*(1+2)"),
        ([1, 2, 1, 2, 7], 10, "7+(1+2)*(2-1)", "7+(2-1)*(1+2)"),
    ):
        found = solutions(nums, target)
        assert (one in found) + (other in found) == 1


def test_five_numbers():
    for nums, target in (([1, 2, 3, 4, 5], 100), ([75, 50, 2, 3, 8], 952), ([9, 9, 9, 9, 9], 9)):
        found = solutions(nums, target)
        assert found
        assert all(is_right(text, nums, target) for text in found)


@pytest.mark.parametrize(("num", "largest"), [(2, 5), (3, 5), (3, 100), (4, 4), (4, 100), (5, 9)])
def test_many_at_once_is_one_by_one(num, largest):
    puzzles = random_puzzles(num, num, largest, 30 if num == 5 else 200)
    nums = np.array([nums for nums, _ in puzzles], dtype=np.int64)
    targets = np.array([target for _, target in puzzles], dtype=np.int64)
    expected = [is_solvable(nums, target) for nums, target in puzzles]
    assert solvable(nums, targets).tolist() == expected
    assert num == 2 or sum(expected) > 0


def test_many_at_once_never_divides_by_zero():
    # Only x / (1 - 1) or (1 - 1) / (1 - 1) would make it.
    nums = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [3, 3, 3, 3]], dtype=np.int64)
    targets = np.array([5, 100, 50], dtype=np.int64)
    assert (
        solvable(nums, targets).tolist()
        == [False] * 3
        == [is_solvable(n, t) for n, t in zip(nums.tolist(), targets.tolist(), strict=True)]
    )


@pytest.mark.parametrize(
    ("nums", "target", "message"),
    [
        ([5], 5, "2 to 5 numbers, got 1"),
        ([1] * 6, 5, "got 6"),
        ([1, 0], 1, "must be >= 1"),
        ([1, 2], 0, "must be >= 1"),
    ],
)
def test_puzzles_that_cannot_be(nums, target, message):
    with pytest.raises(ConfigError, match=message):
        solutions(nums, target)


def test_four_numbers_take_milliseconds():
    """1.3 ms a puzzle on a slow core, tables from nothing; eight times that fails."""
    puzzles = random_puzzles(0, 4, 100, 40)
    _table.cache_clear()
    begin = time.process_time()
    for nums, target in puzzles:
        solutions(nums, target)
    assert (time.process_time() - begin) / len(puzzles) < 0.010
