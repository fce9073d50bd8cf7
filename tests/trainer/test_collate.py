"""How a batch is split by length: little padding, few pieces, every trajectory once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from small import as_trajectories, make_prompts
from understudy.rollouts.sampler import Response
from understudy.trainer.collate import MAX_PADDING_RATE, by_length


def trajectories_of(lengths):
    """Prompts of half of each length, responses of the rest."""
    prompts = make_prompts([n // 2 for n in lengths])
    rest = [n - n // 2 for n in lengths]
    return as_trajectories(prompts, [Response((1,) * n, (True,) * n, (0.0,) * n, "length") for n in rest])


def lengths_of(piece):
    return [len(t.prompt.token_ids) + len(t.response_ids) for t in piece]


def padding_rate(pieces):
    cells = sum(len(p) * max(lengths_of(p)) for p in pieces)
    return 1 - sum(sum(lengths_of(p)) for p in pieces) / cells


def oracle(lengths, min_tokens):
    """All ways to cut the sorted row, by hand: (pieces, cells) of the fewest pieces with little padding, or the least cells."""
    rows = sorted(lengths)
    ways = []
    for cuts in itertools.product([False, True], repeat=len(rows) - 1):
        pieces, piece = [], [rows[0]]
        for cut, row in zip(cuts, rows[1:], strict=True):
            if cut:
                pieces.append(piece)
                piece = []
            piece.append(row)
        pieces.append(piece)
        if len(pieces) == 1 or all(sum(p) >= min_tokens for p in pieces):
            ways.append((len(pieces), sum(len(p) * max(p) for p in pieces)))
    enough = [way for way in ways if 1 - sum(rows) / way[1] <= MAX_PADDING_RATE]
    return min(enough) if enough else min(ways, key=lambda way: (way[1], way[0]))


@pytest.mark.parametrize("seed", range(20))
def test_pieces_are_the_fewest_with_little_padding(seed):
    """Against all 2^(B-1) ways. Fails if the limit is missed, a piece too many is made, or a piece is too small."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 60, size=rng.integers(1, 9)).tolist()
    min_tokens = int(rng.choice([1, 20, 60]))
    pieces = list(by_length(trajectories_of(lengths), min_tokens))
    cells = sum(len(p) * max(lengths_of(p)) for p in pieces)
    assert (len(pieces), cells) == oracle(lengths, min_tokens)
    assert len(pieces) == 1 or min(sum(lengths_of(p)) for p in pieces) >= min_tokens


@pytest.mark.parametrize("seed", range(5))
def test_long_tails_are_padded_by_less_than_a_twentieth(seed):
    """Prompts of 40 to 80 tokens and responses with a long tail, as text tasks have them; half of a batch is padding else."""
    rng = np.random.default_rng(seed)
    lengths = (rng.integers(40, 80, 64) + np.minimum(rng.geometric(1 / 45, 64), 256)).tolist()
    trajectories = trajectories_of(lengths)
    pieces = list(by_length(trajectories, 256))
    assert padding_rate([trajectories]) > 0.3
    assert padding_rate(pieces) <= MAX_PADDING_RATE
    assert sorted(t.id for p in pieces for t in p) == sorted(t.id for t in trajectories)


def test_equal_lengths_stay_together():
    assert [len(p) for p in by_length(trajectories_of([12] * 9), 1)] == [9]
