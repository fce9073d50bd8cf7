"""Pieces of a batch under a budget of tokens, which is what bounds the memory of a step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from understudy.records import Trajectory


def within_budget(pieces: Iterable[Sequence[Trajectory]], max_tokens: int) -> Iterator[list[Trajectory]]:
    """Each piece, taken apart into the fewest that occupy at most `max_tokens` cells when padded to their longest.

    A trajectory that is longer than that alone is a piece of its own.
    """
    for piece in pieces:
        ordered = sorted(piece, key=_length, reverse=True)
        while ordered:
            # From the longest on: every other way to cut the row in order of length ends no later, so needs no fewer.
            count = max(1, max_tokens // _length(ordered[0]))
            yield ordered[:count]
            ordered = ordered[count:]


def _length(trajectory: Trajectory) -> int:
    return len(trajectory.prompt.token_ids) + len(trajectory.response_ids)
