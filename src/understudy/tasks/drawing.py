"""Rows of numbers that are drawn in blocks: item i is the same whatever was asked for before it.

A row has `num` numbers and perhaps something behind them, such as a target; its content is the row with the numbers sorted.
A content belongs to one split, whatever the ranges and the seed. In train it may come again; in validation and test each comes
once, so that the items are as many different ones as they look. Ranges that train on all have in train what the others have, too.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import combinations_with_replacement, islice, product
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from understudy.errors import ConfigError
from understudy.tasks.modular_addition import split_of
from understudy.tasks.streams import Dice, stream
from understudy.tasks.task import SPLITS, Split

BLOCK = 256
"""Rows drawn at a time: the price of a jump to item i of train is at most one block."""
CHUNK = 512
"""Draws looked at together; it changes the speed alone."""
MAX_DRAWS = 400_000
"""So many draws of one kind without the rows of a block, and the ranges are taken to have too few."""
STALE_DRAWS = 4096
"""After so many draws without a new content, what is left is listed, where there is little enough."""
MAX_LISTED = 400_000
_REST = 1 << 20
"""Last name of the streams that put what is left in order; no block has this number."""

Row = tuple[int, ...]


class Ranges(Protocol):
    """What is drawn. Hashable: it is the name under which blocks are kept."""

    @property
    def seed(self) -> int: ...

    @property
    def nums(self) -> tuple[int, ...]:
        """How many numbers a row may have, each equally likely."""
        ...

    @property
    def trains_on_all(self) -> bool:
        """Whether train has every content, those of validation and test too."""
        ...

    def limits(self, num: int) -> Row:
        """Each entry of a row of `num` numbers is uniform in 1 .. its limit; the limits of the numbers are equal."""
        ...

    def allowed(self, draw_NK: NDArray[np.int64], num: int) -> NDArray[np.bool_]:
        """Which rows may come, in whatever split."""
        ...

    def described(self, num: int) -> str:
        """Rows of `num` numbers, for messages: 'puzzles of 3 numbers up to 9'."""
        ...


def rows(ranges: Ranges, split: Split, start: int, count: int) -> list[Row]:
    """Items start .. start + count - 1 of a split. A held-out split is cut where a kind of row has no new one left.

    Raises:
        ConfigError: train has (almost) nothing.
    """
    found: list[Row] = []
    for block in range(start // BLOCK, -(-(start + count) // BLOCK)):
        low, high = max(start - block * BLOCK, 0), min(start + count - block * BLOCK, BLOCK)
        found += (_block(ranges, block) if split == "train" else _history(ranges, split).block(block))[
            low:high
        ]
    return found


@lru_cache(maxsize=16)
def _block(ranges: Ranges, block: int) -> list[Row]:
    """BLOCK rows of train."""
    num_B = _nums(ranges, "train", block)
    of = {
        num: iter(_drawn(ranges, "train", block, num, num_B.count(num), None)) for num in sorted(set(num_B))
    }
    return [next(of[num]) for num in num_B]


class _History:
    """The blocks of a held-out split up to now, and what they hold. It ends where a kind of row has no new one left."""

    def __init__(self, ranges: Ranges, split: Split) -> None:
        self.ranges = ranges
        self.split: Split = split
        self.blocks: list[list[Row]] = []
        self.seen: dict[int, set[Row]] = {num: set() for num in ranges.nums}
        self.is_over = False

    def block(self, number: int) -> list[Row]:
        """BLOCK rows; fewer in the last block, none behind it."""
        while len(self.blocks) <= number and not self.is_over:
            self._extend()
        return self.blocks[number] if number < len(self.blocks) else []

    def _extend(self) -> None:
        num_B = _nums(self.ranges, self.split, len(self.blocks))
        of = {
            num: iter(
                _drawn(self.ranges, self.split, len(self.blocks), num, num_B.count(num), self.seen[num])
            )
            for num in sorted(set(num_B))
        }
        made: list[Row] = []
        for num in num_B:
            row = next(of[num], None)
            if row is None:
                self.is_over = True
                break
            made.append(row)
        self.blocks.append(made)


@lru_cache(maxsize=16)
def _history(ranges: Ranges, split: Split) -> _History:
    return _History(ranges, split)


def _nums(ranges: Ranges, split: Split, block: int) -> list[int]:
    dice = Dice(ranges.seed, SPLITS.index(split), block)
    return [ranges.nums[dice.below(len(ranges.nums))] for _ in range(BLOCK)]


def _drawn(
    ranges: Ranges, split: Split, block: int, num: int, wanted: int, seen: set[Row] | None
) -> list[Row]:
    """The first `wanted` draws of `num` numbers that the split may have and, with `seen`, has not had; `seen` grows.

    Fewer where there are no more.
    """
    bits = stream(ranges.seed, SPLITS.index(split), block, num)
    limit_K = np.array(ranges.limits(num), dtype=np.uint64)
    kept: list[Row] = []
    num_draws = num_stale = 0
    while len(kept) < wanted:
        if num_stale >= STALE_DRAWS and seen is not None and _num_contents(ranges, num) <= MAX_LISTED:
            return kept + _rest(ranges, split, num, wanted - len(kept), seen)
        if num_draws >= MAX_DRAWS and seen is not None:
            return kept  # too many to be listed, and next to none is new
        if num_draws >= MAX_DRAWS:
            raise ConfigError(
                f"{num_draws} draws of {ranges.described(num)} gave only {len(kept)} of the {split} split. "
                "Widen the ranges, or give other ones."
            )
        raw_NK = np.asarray(bits.random_raw(CHUNK * len(limit_K))).reshape(CHUNK, -1)
        # The upper 32 bits as a fraction of the range: off from uniform by less than range / 2**32.
        draw_NK = ((raw_NK >> np.uint64(32)) * limit_K >> np.uint64(32)).astype(np.int64) + 1
        new = _new(_of_split(ranges, draw_NK, num, split), num, wanted - len(kept), seen)
        kept += new
        num_draws += CHUNK
        num_stale = 0 if new else num_stale + CHUNK
    return kept


def _of_split(ranges: Ranges, draw_NK: NDArray[np.int64], num: int, split: Split) -> NDArray[np.int64]:
    if split != "train" or not ranges.trains_on_all:
        draw_NK = draw_NK[split_of(contents(draw_NK, num)) == SPLITS.index(split)]
    return draw_NK[ranges.allowed(draw_NK, num)]


def _new(draw_NK: NDArray[np.int64], num: int, wanted: int, seen: set[Row] | None) -> list[Row]:
    """The first `wanted` rows; with `seen`, of those whose content is not in it."""
    if seen is None:
        return list(map(tuple, draw_NK.tolist()))[:wanted]
    kept: list[Row] = []
    for row, content in zip(draw_NK.tolist(), map(tuple, contents(draw_NK, num).tolist()), strict=True):
        if len(kept) < wanted and content not in seen:
            seen.add(content)
            kept.append(tuple(row))
    return kept


def _rest(ranges: Ranges, split: Split, num: int, wanted: int, seen: set[Row]) -> list[Row]:
    """What is left, in an order that has the law of going on drawing: a content is as likely as it has orders."""
    left = [content for content in _listed(ranges, split, num) if content not in seen]
    orders = [
        math.lgamma(num + 1) - sum(math.lgamma(c[:num].count(n) + 1) for n in set(c[:num])) for c in left
    ]
    name = (SPLITS.index(split), _REST, num)
    raw = np.asarray(stream(ranges.seed, *name).random_raw(len(left)))
    uniform = (raw.astype(np.float64) + 0.5) / 2.0**64
    gumbel = np.array(orders) - np.log(-np.log(np.clip(uniform, 1e-300, 1 - 1e-16)))
    chosen = [left[i] for i in np.argsort(-gumbel, kind="stable")[:wanted]]
    seen.update(chosen)
    return [_shuffled(content, num, Dice(ranges.seed, *name, *content)) for content in chosen]


def _shuffled(content: Row, num: int, dice: Dice) -> Row:
    numbers = list(content[:num])
    for i in range(num - 1, 0, -1):
        j = dice.below(i + 1)
        numbers[i], numbers[j] = numbers[j], numbers[i]
    return (*numbers, *content[num:])


def _num_contents(ranges: Ranges, num: int) -> int:
    limits = ranges.limits(num)
    return math.comb(limits[0] + num - 1, num) * math.prod(limits[num:])


@lru_cache(maxsize=8)
def _listed(ranges: Ranges, split: Split, num: int) -> list[Row]:
    """Every content of a split, by exhaustion."""
    limits = ranges.limits(num)
    every = product(
        combinations_with_replacement(range(1, limits[0] + 1), num),
        product(*(range(1, limit + 1) for limit in limits[num:])),
    )
    found: list[Row] = []
    while piece := [(*numbers, *rest) for numbers, rest in islice(every, 16 * CHUNK)]:
        kept_NK = _of_split(ranges, np.array(piece, dtype=np.int64), num, split)
        found += map(tuple, kept_NK.tolist())
    return found


def contents(draw_NK: NDArray[np.int64], num: int) -> NDArray[np.int64]:
    """Rows with their numbers sorted."""
    return np.concatenate([np.sort(draw_NK[:, :num], axis=1), draw_NK[:, num:]], axis=1)
