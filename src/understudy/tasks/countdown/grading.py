"""Grading Countdown: 1 for a right answer, 0.1 for an answer that is marked and wrong, 0 without one."""

from __future__ import annotations

from collections.abc import Sequence

from understudy.tasks.countdown.expressions import Expression, read_expression
from understudy.tasks.task import Grade

MARKED_SCORE = 0.1
OPENING, CLOSING = "<answer>", "</answer>"


def grade_countdown(response: str, nums: Sequence[int], target: int) -> Grade:
    """The reward of the published task for a response in tags.

        1     the last complete <answer>...</answer> holds an expression that uses every number of `nums` exactly once
              and no other, and equals `target` exactly
        0.1   there is such a tag, and what it holds is anything else (nothing, too)
        0     there is none

    Nothing but the expression may stand in the tag: "(1+2)*3 = 9" is wrong, as in the published scorer, which this one
    differs from in reading all lines of the response and in refusing what only looks like an answer: powers, `//`,
    decimal points (whose two sides count as two numbers there) and a minus in front.

    Args:
        response: any text, however hostile. Never raises on it.
        nums: the puzzle's numbers; one that is there twice must be used twice.
        target: what they must give.
    Returns:
        `answer` is the expression without spaces; None where there is no tag or no well-formed expression in it.
    Source: task and rewards of arXiv:2606.30445, section 5, from TinyZero (github.com/Jiayi-Pan/TinyZero).
    """
    end = response.rfind(CLOSING)
    start = response.rfind(OPENING, 0, end) if end >= 0 else -1
    return _grade(response[start + len(OPENING) : end] if start >= 0 else None, nums, target)


def grade_compact(response: str, nums: Sequence[int], target: int) -> Grade:
    """The same rewards in the compact format: the answer is what follows the last '!', to the end."""
    _, mark, answer = response.rpartition("!")
    return _grade(answer if mark else None, nums, target)


def is_solution(text: str, nums: Sequence[int], target: int) -> bool:
    """Whether a text is an expression that uses every number exactly once and equals the target."""
    return _is_right(read_expression(text), nums, target)


def _grade(marked: str | None, nums: Sequence[int], target: int) -> Grade:
    if marked is None:
        return Grade(score=0.0, is_correct=False)
    found = read_expression(marked)
    is_correct = _is_right(found, nums, target)
    answer = None if found is None else found.text
    return Grade(score=1.0 if is_correct else MARKED_SCORE, is_correct=is_correct, answer=answer)


def _is_right(found: Expression | None, nums: Sequence[int], target: int) -> bool:
    return found is not None and found.value == target and sorted(found.numbers) == sorted(nums)
