"""How a puzzle is solved on paper: by trial and error, or by writing the answer down. The offline data of Countdown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from understudy.errors import ConfigError
from understudy.tasks.countdown.grading import is_solution
from understudy.tasks.countdown.solver import solutions
from understudy.tasks.countdown.tries import Try, expression_of, hits, random_try, written_try
from understudy.tasks.streams import Dice

PATIENCE = 64
"""So many repeated tries in a row, and there is taken to be no other one: small puzzles have few."""


@dataclass(frozen=True, kw_only=True)
class TraceSettings:
    """What references look like.

    `direct`: the answer alone, drawn from all that the exhaustive solver finds. `search`: up to `max_tries` different
    tries, the first hit ends them. Each try is, with probability `smart`, one of those that hit (all equally likely),
    else random. After each miss the writer gives up with probability `give_up`, and answers with the try that failed.
    `must_solve`: the last try that is allowed is one that hits; without it the trace ends there as if given up.
    """

    style: Literal["search", "direct"] = "search"
    max_tries: int = 8
    smart: float = 0.0
    give_up: float = 0.0
    must_solve: bool = True
    max_value: int = 999
    """No larger number is ever written in a search."""

    def __post_init__(self) -> None:
        if self.max_tries < 1:
            raise ConfigError(f"max_tries must be >= 1, got {self.max_tries}.")
        for name in ("smart", "give_up"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be in [0, 1], got {getattr(self, name)}.")
        if self.max_value < 1:
            raise ConfigError(f"max_value must be >= 1, got {self.max_value}.")


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Tries in order (none: a direct answer), the answer that stands at the end, and whether it is right."""

    tries: tuple[Try, ...]
    answer: str
    is_right: bool


def make_trace(nums: tuple[int, ...], target: int, settings: TraceSettings, dice: Dice) -> Trace | None:
    """The trace of one puzzle; the same dice give the same trace. None: a direct answer, and there is no solution.

    A search that needs a fraction, or a number over `max_value`, to hit never hits and ends in a wrong answer.
    """
    if settings.style == "direct":
        answers = solutions(nums, target)
        return Trace(tries=(), answer=answers[dice.below(len(answers))], is_right=True) if answers else None
    known: list[Try] | None = None
    tries: list[Try] = []
    seen: set[str] = set()
    while len(tries) < settings.max_tries:
        is_last = len(tries) + 1 == settings.max_tries
        wants_hit = dice.happens(settings.smart) or (is_last and settings.must_solve)
        if wants_hit and known is None:
            known = hits(nums, target, settings.max_value)
        taken = known[dice.below(len(known))] if wants_hit and known else _new(nums, settings, dice, seen)
        if taken is None:
            break
        tries.append(taken)
        seen.add(written_try(taken))
        if taken[-1].result == target or dice.happens(settings.give_up):
            break
    answer = expression_of(nums, tries[-1])
    return Trace(tries=tuple(tries), answer=answer, is_right=is_solution(answer, nums, target))


def _new(nums: tuple[int, ...], settings: TraceSettings, dice: Dice, seen: set[str]) -> Try | None:
    for _ in range(PATIENCE):
        taken = random_try(nums, settings.max_value, dice)
        if written_try(taken) not in seen:
            return taken
    return None


def compact_text(trace: Trace) -> str:
    """3+7=10,10+12=22;12-7=5,5*3=15!(12-7)*3"""
    return ";".join(map(written_try, trace.tries)) + "!" + trace.answer


def longest_compact(num: int, largest: int, settings: TraceSettings) -> int:
    """Characters of the longest compact trace of `num` numbers up to `largest` that there can be."""
    digits, wide = len(str(largest)), len(str(settings.max_value))
    # The first numbers of a step are the puzzle's or results; the last try is followed by the answer's '!'.
    one_try = (num - 1) * (3 * max(digits, wide) + len("+=,"))
    answer = num * digits + (num - 1) + 2 * max(num - 2, 0) + len("!")
    return answer + (one_try * settings.max_tries if settings.style == "search" else 0)
