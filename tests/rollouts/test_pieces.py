"""Cuts of many rows: as good as those that consider every place, and negligible beside the pass they are for.

What is the best cut of few rows is tested by `tests/trainer/test_collate.py` against all ways to cut them.
"""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

from understudy.rollouts import pieces
from understudy.rollouts.pieces import MAX_PADDING_RATE, cuts


def lengths_of(kind: str, rows: int) -> np.ndarray:
    rng = np.random.default_rng(rows)
    return np.sort(
        {
            "text": lambda: rng.integers(40, 80, rows) + np.minimum(rng.geometric(1 / 45, rows), 256),
            "spread": lambda: rng.integers(1, 2000, rows),
            "equal but a few": lambda: np.append(np.full(rows - 3, 10), [12, 40, 300]),
            "heavy tail": lambda: (rng.pareto(1.5, rows) * 20 + 1).astype(int),
        }[kind]()
    )


KINDS = ("text", "spread", "equal but a few", "heavy tail")


def padding_rate(length_B: np.ndarray, ends: list[int]) -> float:
    cells = sum((end - start) * length_B[end - 1] for start, end in zip([0, *ends], ends, strict=False))
    return 1 - length_B.sum() / cells


@pytest.mark.parametrize("kind", KINDS)
def test_selected_places_are_nearly_as_good_as_all(monkeypatch, kind):
    """As few pieces, and as little padding within a fifth of a percent, where cuts lie between any two of 500 rows."""
    length_B = lengths_of(kind, 500)
    found = cuts(length_B.tolist(), 256)
    assert found[-1] == 500
    assert found == sorted(set(found))
    assert np.diff(np.append(0, length_B.cumsum()[np.array(found) - 1])).min() >= 256
    monkeypatch.setattr(pieces, "_EVERY_PLACE", 500)
    best = cuts(length_B.tolist(), 256)
    assert len(found) == len(best)
    assert padding_rate(length_B, found) <= padding_rate(length_B, best) + 0.002


@pytest.mark.parametrize("kind", KINDS)
def test_many_rows_cost_next_to_nothing(kind):
    """20,000 rows: under half a second of processor time and 30 MB."""
    length_B = lengths_of(kind, 20_000)
    tracemalloc.start()
    before = time.process_time()
    ends = cuts(length_B.tolist(), 256)
    spent = time.process_time() - before
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert padding_rate(length_B, ends) <= MAX_PADDING_RATE
    assert spent < 0.5
    assert peak < 30e6
