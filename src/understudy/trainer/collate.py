"""Trajectories to tensors.

B sequences, T positions (prompt and response together, right-padded).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from understudy.records import TrainBatch, Trajectory

MAX_PADDING_RATE = 0.05
MIN_PIECE_TOKENS_CPU = 256
"""A smaller forward pass loses more to its fixed cost (some milliseconds of Python) than padding costs."""
MIN_PIECE_TOKENS_ACCELERATOR = 8192
"""The same on any other device, which a few thousand tokens only just fill (not measured)."""


def collate(trajectories: Sequence[Trajectory], device: torch.device) -> TrainBatch:
    """One right-padded batch. Masks go by position, never by token id: a padding id may also be the end of a response."""
    longest = max(len(t.prompt.token_ids) + len(t.response_ids) for t in trajectories)
    shape = (len(trajectories), longest)
    token_BT = torch.zeros(shape, dtype=torch.long)
    is_response_BT = torch.zeros(shape, dtype=torch.bool)
    is_student_BT = torch.zeros(shape, dtype=torch.bool)
    for b, t in enumerate(trajectories):
        start, end = len(t.prompt.token_ids), len(t.prompt.token_ids) + len(t.response_ids)
        token_BT[b, :end] = torch.tensor(t.prompt.token_ids + t.response_ids)
        is_response_BT[b, start:end] = True
        is_student_BT[b, start:end] = torch.tensor(t.is_student, dtype=torch.bool)
    return TrainBatch(
        token_BT=token_BT.to(device),
        is_response_BT=is_response_BT.to(device),
        is_student_BT=is_student_BT.to(device),
        trajectories=tuple(trajectories),
    )


def micro_batches(trajectories: Sequence[Trajectory], size: int | None) -> Iterator[list[Trajectory]]:
    """Pieces of at most `size` trajectories (None: all), neighbours in length, so that little padding is computed."""
    size = size or len(trajectories)
    ordered = sorted(trajectories, key=_length)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def by_length(trajectories: Sequence[Trajectory], min_tokens: int) -> Iterator[list[Trajectory]]:
    """The fewest pieces, neighbours in length, that keep padding under `MAX_PADDING_RATE`.

    No piece has fewer than `min_tokens` tokens (unless all together have fewer), even if more is then padded.
    """
    ordered = sorted(trajectories, key=_length)
    start = 0
    for end in _cuts([_length(t) for t in ordered], min_tokens):
        yield ordered[start:end]
        start = end


def _length(trajectory: Trajectory) -> int:
    return len(trajectory.prompt.token_ids) + len(trajectory.response_ids)


def _cuts(lengths: Sequence[int], min_tokens: int) -> list[int]:
    """Where to end the pieces of rows in order of length: the fewest whose padding is small, else the least padding."""
    length_B = np.array(lengths)
    before = np.concatenate([[0], length_B.cumsum()])
    budget = before[-1] / (1 - MAX_PADDING_RATE)
    # cell[i, j]: what rows i..j-1 occupy as one piece; infinite where that piece is empty or too small.
    tokens = before[None, :] - before[:, None]
    rows = np.arange(len(before))[None, :] - np.arange(len(before))[:, None]
    longest = np.concatenate([[0], length_B])[None, :]
    cell = np.where(tokens >= min(min_tokens, before[-1]), rows * longest, np.inf)
    # One more piece at a time: `best[j]` is the least that the first j rows can occupy in that many.
    best, came_from = cell[0], []
    while best[-1] > budget:
        total = best[:, None] + cell
        if not total[:, -1].min() < best[-1]:
            break
        came_from.append(total.argmin(axis=0))
        best = total.min(axis=0)
    ends = [len(lengths)]
    for origin in reversed(came_from):
        ends.append(int(origin[ends[-1]]))
    return ends[::-1]
