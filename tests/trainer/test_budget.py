"""No piece of a batch occupies more than it may, none is smaller than it must be, and the step is that of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from test_collate import lengths_of, trajectories_of
from test_step import babble_setup, same, step_of

from small import make_recipe, make_setup, written
from understudy.errors import ConfigError
from understudy.trainer import step
from understudy.trainer.budget import within_budget


def cells(piece) -> int:
    return len(piece) * max(lengths_of(piece))


def fewest(lengths: list[int], max_tokens: int) -> int:
    """By dynamic programming over all cuts of the sorted row; a single one may always stand alone."""
    rows, best = sorted(lengths), [0]
    for end in range(1, len(rows) + 1):
        fits = [s for s in range(end) if (end - s) * rows[end - 1] <= max_tokens or end - s == 1]
        best.append(1 + min(best[s] for s in fits))
    return best[-1]


@pytest.mark.parametrize("seed", range(20))
def test_the_fewest_pieces_that_fit(seed):
    """Against all ways. Fails if padding is not counted, a trajectory is lost, or one that is too long stops it."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 60, size=rng.integers(1, 30)).tolist()
    max_tokens = int(rng.choice([1, 40, 100, 300]))
    given = trajectories_of(lengths)
    pieces = list(within_budget([given], max_tokens))
    assert all(cells(p) <= max_tokens or len(p) == 1 for p in pieces)
    assert len(pieces) == fewest(lengths, max_tokens)
    assert sorted(t.id for p in pieces for t in p) == sorted(t.id for t in given)


def test_pieces_stay_apart():
    """What was split by length is not joined again, and what fits stays whole."""
    short, long = trajectories_of([4] * 6), trajectories_of([20] * 3)
    found = [lengths_of(p) for p in within_budget([short, long], 40)]
    assert found == [[4] * 6, [20] * 2, [20]]


@pytest.mark.parametrize("method", ["opd-f", "opd-pg"])
@pytest.mark.parametrize(("min_tokens", "is_free"), [(1, True), (1000, True), (1, False)])
def test_the_step_is_that_of_the_whole_batch(tmp_path, monkeypatch, method, min_tokens, is_free):
    """The same gradient, no forward pass above the budget; behind pieces by length or alone."""
    monkeypatch.setattr("understudy.trainer.step.MIN_PIECE_TOKENS_CPU", min_tokens)
    if not is_free:
        monkeypatch.setattr("understudy.trainer.step.FREE_TO_SPLIT", ())
    whole = babble_setup(tmp_path / "a", method, train__micro_batch_size=8)
    split = babble_setup(tmp_path / "b", method, train__micro_batch_tokens=24)
    trajectories = written(whole, 8)
    passed = []
    real = step.collate
    monkeypatch.setattr(
        step, "collate", lambda part, device: passed.append(cells(part)) or real(part, device)
    )
    found = step_of(split, trajectories)
    assert len(passed) > 2
    assert max(passed) <= 24
    same(found, step_of(whole, trajectories))


def test_memory_is_limited_in_one_way():
    make_recipe(train__micro_batch_tokens=64)
    with pytest.raises(ConfigError, match=r"micro_batch_tokens must be > 0, got 0"):
        make_recipe(train__micro_batch_tokens=0)
    with pytest.raises(ConfigError, match=r"either train\.micro_batch_size .* or train\.micro_batch_tokens"):
        make_recipe(train__micro_batch_tokens=64, train__micro_batch_size=2)


def test_sharded_weights_need_as_many_pieces_everywhere(tmp_path, monkeypatch):
    """Other lengths make another number of pieces, and processes that wait for each other would wait for ever."""
    monkeypatch.setattr("understudy.wiring.FREE_TO_SPLIT", ())
    make_setup(make_recipe(train__micro_batch_size=2), tmp_path)
    with pytest.raises(ConfigError, match=r"micro_batch_tokens .* sharded .*micro_batch_size"):
        make_setup(make_recipe(train__micro_batch_tokens=64), tmp_path)
