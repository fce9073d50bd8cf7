"""Rows of different lengths, split so that those of like length go through a model side by side: little padding.

B rows in order of length, C places where they may be cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MAX_PADDING_RATE = 0.05
MIN_PIECE_TOKENS_CPU = 256
"""A smaller forward pass loses more to its fixed cost (some milliseconds of Python) than padding costs."""
MIN_PIECE_TOKENS_ACCELERATOR = 8192
"""The same on any other device, which a few thousand tokens only just fill (not measured)."""
_EVERY_PLACE = 256
"""Up to so many rows a cut may lie between any two. Of more rows, places that hardly differ are left out."""
_LIKE = 1.02
"""Lengths within this factor hardly differ."""


def cuts(lengths: Sequence[int], min_tokens: int) -> list[int]:
    """Where to end the pieces of rows in order of length: the fewest that keep padding under `MAX_PADDING_RATE`, and of
    these the least padded; the least padding where no number of pieces is enough.

    No piece has fewer than `min_tokens` tokens (unless all together have fewer), even if more is then padded. Of more
    than `_EVERY_PLACE` rows the best of selected places: some hundred of them, whatever the number of rows.
    """
    length_B = np.array(lengths)
    before_B = np.concatenate([[0], length_B.cumsum()])
    place_C = np.concatenate([[0], _places(length_B, before_B)])
    tokens_C, longest_C = before_B[place_C], np.concatenate([[0], length_B])[place_C]
    budget = before_B[-1] / (1 - MAX_PADDING_RATE)
    # cell[i, j]: what the rows from place i to place j occupy as one piece; infinite where it is empty or too small.
    tokens_CC = tokens_C[None, :] - tokens_C[:, None]
    rows_CC = place_C[None, :] - place_C[:, None]
    cell_CC = np.where(tokens_CC >= min(min_tokens, before_B[-1]), rows_CC * longest_C[None, :], np.inf)
    # One more piece at a time: `best[j]` is the least that the rows before place j can occupy in that many.
    best_C, came_from = cell_CC[0], []
    while best_C[-1] > budget:
        total_CC = best_C[:, None] + cell_CC
        if not total_CC[:, -1].min() < best_C[-1]:
            break
        came_from.append(total_CC.argmin(axis=0))
        best_C = total_CC.min(axis=0)
    ends = [len(place_C) - 1]
    for origin_C in reversed(came_from):
        ends.append(int(origin_C[ends[-1]]))
    return place_C[ends[::-1]].tolist()


def _places(length_B: np.ndarray, before_B: np.ndarray) -> np.ndarray:
    """Where a piece may end: after every row, or where a stretch of rows of like length or a share of all tokens ends."""
    if len(length_B) <= _EVERY_PLACE:
        return np.arange(1, len(length_B) + 1)
    like_B = np.log(length_B).astype(np.float64) // np.log(_LIKE)
    share_B = before_B[1:] * _EVERY_PLACE // (before_B[-1] + 1)
    ends_B = (np.diff(like_B) != 0) | (np.diff(share_B) != 0)
    return np.append(ends_B.nonzero()[0] + 1, len(length_B))
