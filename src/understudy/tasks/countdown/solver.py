"""All solutions of a puzzle, by exhaustive search with exact fractions: the oracle of Countdown.

An expression over a set of numbers is one operator between expressions over its two parts. Every set of up to k - 1
numbers gets a table of its values; the last operator is looked up backwards from the target. Fractions are pairs
(numerator, denominator) in lowest terms, denominator > 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from math import gcd

import numpy as np
from numpy.typing import NDArray

from understudy.errors import ConfigError
from understudy.tasks.countdown.expressions import Written, joined, number

MIN_OPERANDS, MAX_OPERANDS = 2, 5
"""Six numbers have hundreds of times as many expressions as five."""

Value = tuple[int, int]
Table = Mapping[Value, tuple[Written, ...]]
Ints = NDArray[np.int64]


def solutions(nums: Sequence[int], target: int) -> list[str]:
    """Every expression that uses all `nums` and equals `target`, with as few brackets as its value needs, each once.

    Expressions that differ in the order of a sum's or product's two sides count as one. 3240 expressions of four
    different numbers are searched in about a millisecond; tables of sets of numbers are kept for the next puzzle.

    Args:
        nums: 2 to 5 numbers >= 1.
        target: >= 1.
    Raises:
        ConfigError: there are fewer or more numbers, or one is < 1.
    """
    return list(dict.fromkeys(text for text, _ in _solving(_checked(nums, target), target)))


def is_solvable(nums: Sequence[int], target: int) -> bool:
    """Whether `solutions` would find any; stops at the first."""
    return next(_solving(_checked(nums, target), target), None) is not None


def _checked(nums: Sequence[int], target: int) -> tuple[int, ...]:
    if not MIN_OPERANDS <= len(nums) <= MAX_OPERANDS:
        raise ConfigError(f"a puzzle has {MIN_OPERANDS} to {MAX_OPERANDS} numbers, got {len(nums)}.")
    if min(*nums, target) < 1:
        raise ConfigError(f"numbers and target must be >= 1, got {list(nums)} and {target}.")
    return tuple(sorted(nums))


def _solving(nums: tuple[int, ...], target: int) -> Iterator[Written]:
    for left, right in _splits(nums):
        table_a, table_b = _table(left), _table(right)
        for a, written_a in table_a.items():
            for operator, b, is_swapped in _needed(a, target):
                for x in written_a if b in table_b else ():
                    for y in table_b[b]:
                        first, second = (y, x) if is_swapped else (x, y)
                        if left == right and operator in "+*":
                            first, second = sorted((first, second))
                        yield joined(operator, first, second)


def _needed(a: Value, target: int) -> Iterator[tuple[str, Value, bool]]:
    """(operator, b, is_swapped): the b with a operator b = target, or b operator a = target if swapped."""
    n, d = a
    yield "+", _reduced(target * d - n, d), False
    yield "-", _reduced(n - target * d, d), False
    yield "-", _reduced(n + target * d, d), True
    if n:
        yield "*", _reduced(target * d, n), False
        yield "/", _reduced(n, target * d), False
        yield "/", _reduced(target * n, d), True


@lru_cache(maxsize=2048)
def _table(nums: tuple[int, ...]) -> Table:
    """Every value of an expression that uses all of `nums` (sorted), with the expressions that have it."""
    if len(nums) == 1:
        return {(nums[0], 1): (number(nums[0]),)}
    found: dict[Value, dict[Written, None]] = {}
    for left, right in _splits(nums):
        is_twin = left == right
        for a, written_a in _table(left).items():
            for b, written_b in _table(right).items():
                for operator, value, is_swapped in _combined(a, b):
                    same = found.setdefault(value, {})
                    for x in written_a:
                        for y in written_b:
                            first, second = (y, x) if is_swapped else (x, y)
                            if is_twin and operator in "+*":
                                first, second = sorted((first, second))
                            same[joined(operator, first, second)] = None
    return {value: tuple(written) for value, written in found.items()}


def _combined(a: Value, b: Value) -> Iterator[tuple[str, Value, bool]]:
    (n, d), (m, e) = a, b
    yield "+", _reduced(n * e + m * d, d * e), False
    yield "-", _reduced(n * e - m * d, d * e), False
    yield "-", _reduced(m * d - n * e, d * e), True
    yield "*", _reduced(n * m, d * e), False
    if m:
        yield "/", _reduced(n * e, d * m), False
    if n:
        yield "/", _reduced(m * d, e * n), True


def _reduced(over: int, under: int) -> Value:
    divisor = gcd(over, under) if under > 0 else -gcd(over, under)
    return over // divisor, under // divisor


@lru_cache(maxsize=4096)
def _splits(nums: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """The ways to part a multiset in two, each once, whichever part comes first; the larger part is the second."""
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], None] = {}
    for size in range(1, len(nums) // 2 + 1):
        for chosen in combinations(range(len(nums)), size):
            left = tuple(nums[i] for i in chosen)
            right = tuple(nums[i] for i in range(len(nums)) if i not in chosen)
            found[(left, right) if len(left) < len(right) or left <= right else (right, left)] = None
    return tuple(found)


def solvable(nums_NK: Ints, target_N: Ints) -> NDArray[np.bool_]:
    """Which of N puzzles of k numbers each have a solution: `is_solvable` for many at once.

    Fractions are pairs of int64 that are not reduced: 2**(k-1) * max(nums)**k * max(target) must be below 2**63. (0, 0)
    stands for a division by zero, and whatever is made of it is (0, 0) again.
    """
    num = nums_NK.shape[1]
    assert 2 ** (num - 1) * int(nums_NK.max(initial=1)) ** num * int(target_N.max(initial=1)) < 2**63
    values: dict[int, tuple[Ints, Ints]] = {
        1 << i: (nums_NK[None, :, i], np.ones_like(nums_NK[None, :, i])) for i in range(num)
    }
    whole = (1 << num) - 1
    for part in sorted(range(1, whole), key=int.bit_count):
        if part not in values:
            pieces = [_all_combined(values[a], values[part ^ a]) for a in _halves(part)]
            over, under = (np.concatenate(column) for column in zip(*pieces, strict=True))
            values[part] = over, under
    is_solved_N = np.zeros(len(nums_NK), dtype=bool)
    for a in _halves(whole):
        is_solved_N |= _any_equals(values[a], values[whole ^ a], target_N)
    return is_solved_N


def _halves(part: int) -> list[int]:
    """The subsets of a set of bits that hold its lowest one, but for the set itself."""
    rest = part & (part - 1)
    return [part ^ b for b in range(1, rest + 1) if b & rest == b]


def _all_combined(a: tuple[Ints, Ints], b: tuple[Ints, Ints]) -> tuple[Ints, Ints]:
    """All six combinations of A values with B values, [A, N] and [B, N] -> [6AB, N] each."""
    n, d, m, e = a[0][:, None], a[1][:, None], b[0][None], b[1][None]
    ne, md, de = n * e, m * d, d * e
    over = np.stack([ne + md, ne - md, md - ne, n * m, ne, md])
    under = np.stack([de, de, de, de, md, ne])
    over[under == 0] = 0
    # d * m and e * n: zero where the divisor is, and where one side was a division by zero already.
    return over.reshape(-1, over.shape[-1]), under.reshape(-1, under.shape[-1])


def _any_equals(a: tuple[Ints, Ints], b: tuple[Ints, Ints], target_N: Ints) -> NDArray[np.bool_]:
    n, d, m, e = a[0][:, None], a[1][:, None], b[0][None], b[1][None]
    ne, md, de = n * e, m * d, d * e
    wanted = target_N * de
    found = (ne + md == wanted) | (np.abs(ne - md) == np.abs(wanted)) | (n * m == wanted)
    found |= (ne == target_N * md) & (md != 0)
    found |= (md == target_N * ne) & (ne != 0)
    return (found & (de != 0)).any(axis=(0, 1))
