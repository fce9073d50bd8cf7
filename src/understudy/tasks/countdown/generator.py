"""Endless Countdown puzzles: drawn from a range, kept if they are solvable, shared out among the splits by content."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from understudy.errors import ConfigError
from understudy.tasks.countdown.solver import MAX_OPERANDS, MIN_OPERANDS, solvable
from understudy.tasks.drawing import contents, rows
from understudy.tasks.streams import stream
from understudy.tasks.task import SPLITS, Split

Content = tuple[int, ...]
"""The sorted numbers of a puzzle, then its target: puzzles of the same content are the same puzzle."""


@dataclass(frozen=True, kw_only=True)
class Puzzle:
    """Numbers in the order in which they are shown, and what they must give. `index` counts from 0 in its split.

    `where` says where it was found and `solution` is the one that stood there, for puzzles that were read.
    """

    index: int
    id: str
    nums: tuple[int, ...]
    target: int
    where: str = ""
    solution: str | None = None

    @property
    def content(self) -> Content:
        return (*sorted(self.nums), self.target)


@dataclass(frozen=True, kw_only=True)
class Range:
    """Puzzles by how many numbers they have, how large these are, and how large the target is."""

    operands: tuple[int, ...]
    max_number: int
    max_target: int

    def holds(self, draw_NK: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows of numbers and a target are in the range."""
        if draw_NK.shape[1] - 1 not in self.operands:
            return np.zeros(len(draw_NK), dtype=bool)
        return (draw_NK[:, :-1] <= self.max_number).all(axis=1) & (draw_NK[:, -1] <= self.max_target)

    def covers(self, operands: tuple[int, ...], max_number: int, max_target: int) -> bool:
        return (
            set(operands) <= set(self.operands)
            and max_number <= self.max_number
            and max_target <= self.max_target
        )


@dataclass(frozen=True, kw_only=True)
class Generator:
    """Puzzles of a range: how many numbers (uniform), then numbers (uniform, with replacement) and target (uniform,
    independent), drawn again until there is a solution.

    A puzzle belongs to one split by its content, whatever the range and the seed: what is trained on in one range is
    never tested on in another. In train a puzzle may come again; in validation and test each content comes once.
    `excluded` contents never come, nor do puzzles of the range `outside`.

    `trains_on_all` gives train the held-out puzzles as well: for an expert that is to know every puzzle. What is then
    measured on validation and test is what it has learnt by heart.
    """

    operands: tuple[int, ...] = (3, 4)
    max_number: int = 100
    max_target: int = 100
    seed: int = 1337
    excluded: Collection[Content] = field(default=frozenset(), repr=False)
    outside: Range | None = field(default=None, repr=False)
    trains_on_all: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if not self.operands or len(set(self.operands)) < len(self.operands):
            raise ConfigError(
                f"operands lists how many numbers a puzzle may have, each once; got {self.operands}."
            )
        for num in self.operands:
            if not MIN_OPERANDS <= num <= MAX_OPERANDS:
                raise ConfigError(f"operands must be in {MIN_OPERANDS} .. {MAX_OPERANDS}, got {num}.")
        for name in ("max_number", "max_target"):
            if not 1 <= getattr(self, name) < 2**31:
                raise ConfigError(f"{name} must be in 1 .. 2**31 - 1, got {getattr(self, name)}.")
        if self.outside is not None and self.outside.covers(self.operands, self.max_number, self.max_target):
            raise ConfigError(
                "outside leaves no puzzle: its range holds the whole range. Widen the range, or narrow outside."
            )
        num = max(self.operands)
        if 2 ** (num - 1) * self.max_number**num * self.max_target >= 2**63:
            raise ConfigError(
                f"{num} numbers up to {self.max_number} and targets up to {self.max_target} are too large to be searched "
                "in whole numbers of 64 bits. Lower max_number or max_target."
            )
        stream(self.seed)  # refuses a bad seed here, not at the first puzzle

    @property
    def max_operands(self) -> int:
        return max(self.operands)

    def size(self, split: Split) -> None:
        """As many as there are: train is endless, and held-out puzzles end where no new one is left (`puzzles`)."""
        assert split in SPLITS, split

    def puzzles(self, split: Split, start: int, count: int) -> list[Puzzle]:
        """Items start .. start + count - 1; item i depends on (the settings, split, i) alone. Held-out ones are cut at their end.

        Raises:
            ConfigError: the ranges have (almost) no solvable puzzle to train on.
        """
        found = rows(self, split, start, count)
        return [
            Puzzle(index=start + i, id=str(start + i), nums=row[:-1], target=row[-1])
            for i, row in enumerate(found)
        ]

    @property
    def nums(self) -> tuple[int, ...]:
        return self.operands

    def limits(self, num: int) -> tuple[int, ...]:
        return (*(self.max_number,) * num, self.max_target)

    def allowed(self, draw_NK: NDArray[np.int64], num: int) -> NDArray[np.bool_]:
        """Which puzzles may come: solvable, outside of the other range, and not excluded."""
        is_kept_N = np.ones(len(draw_NK), dtype=bool)
        if self.outside is not None:
            is_kept_N &= ~self.outside.holds(draw_NK)
        is_kept_N[is_kept_N] = solvable(draw_NK[is_kept_N, :-1], draw_NK[is_kept_N, -1])
        if self.excluded:
            found = map(tuple, contents(draw_NK, num).tolist())
            is_kept_N &= np.array([content not in self.excluded for content in found], dtype=bool)
        return is_kept_N

    def described(self, num: int) -> str:
        others = " outside the other range" if self.outside is not None else ""
        others += f", {len(self.excluded)} excluded" if self.excluded else ""
        return f"solvable puzzles of {num} numbers up to {self.max_number} with a target up to {self.max_target}{others}"
