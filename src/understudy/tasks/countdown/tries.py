"""A try at a puzzle: two of the numbers that are left become one, until a single number is left.

Only whole numbers from 0 to a limit are ever written. A result stands in front of what is left, a sum or product is
written in the order in which its numbers stand, a difference or quotient with the larger number first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from understudy.tasks.countdown.expressions import Written, joined, number
from understudy.tasks.streams import Dice


@dataclass(frozen=True)
class Step:
    """left operator right = result, all of them whole numbers >= 0; `i` and `j` say where the two stood."""

    i: int
    j: int
    left: int
    operator: str
    right: int
    result: int


Try = tuple[Step, ...]


def steps(left: Sequence[int], max_value: int) -> Iterator[Step]:
    """Every step that can be taken with the numbers that are left."""
    for i, j in combinations(range(len(left)), 2):
        a, b = left[i], left[j]
        large, small = max(a, b), min(a, b)
        if a + b <= max_value:
            yield Step(i, j, a, "+", b, a + b)
        yield Step(i, j, large, "-", small, large - small)
        if a * b <= max_value:
            yield Step(i, j, a, "*", b, a * b)
        if small and large % small == 0:
            yield Step(i, j, large, "/", small, large // small)


def after(left: Sequence[int], step: Step) -> tuple[int, ...]:
    """What is left after a step: its result, then the others in their order."""
    return (step.result, *(n for at, n in enumerate(left) if at not in (step.i, step.j)))


def random_try(nums: Sequence[int], max_value: int, dice: Dice) -> Try:
    """Each step uniform among those that can be taken."""
    left, taken = tuple(nums), []
    while len(left) > 1:
        choices = list(steps(left, max_value))
        taken.append(choices[dice.below(len(choices))])
        left = after(left, taken[-1])
    return tuple(taken)


def hits(nums: Sequence[int], target: int, max_value: int) -> list[Try]:
    """Every try that ends in the target; none where it takes a fraction, or a number over the limit."""
    if len(nums) == 1:
        return [()] if nums[0] == target else []
    found: list[Try] = []
    for step in steps(nums, max_value):
        if len(nums) == 2 and step.result != target:
            continue
        found += [(step, *rest) for rest in hits(after(nums, step), target, max_value)]
    return found


def expression_of(nums: Sequence[int], taken: Try) -> str:
    """The steps of a try as one expression over the puzzle's numbers."""
    left: list[Written] = [number(n) for n in nums]
    values = list(nums)
    for step in taken:
        is_swapped = (values[step.i], values[step.j]) != (step.left, step.right)
        first, second = (step.j, step.i) if is_swapped else (step.i, step.j)
        written = joined(step.operator, left[first], left[second])
        left = [written, *(w for at, w in enumerate(left) if at not in (step.i, step.j))]
        values = [step.result, *(v for at, v in enumerate(values) if at not in (step.i, step.j))]
    return left[0][0]


def written_try(taken: Try) -> str:
    """12-7=5,5*3=15"""
    return ",".join(f"{s.left}{s.operator}{s.right}={s.result}" for s in taken)
