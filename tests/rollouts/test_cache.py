"""The cache's memory: what it copies, and what it holds on to. What it says is tested through the decoder."""

from __future__ import annotations

import pytest
import torch

from understudy.rollouts.cache import GrowingLayer


def columns(layer, start, stop):
    """Append columns that hold their own number, plus 100 times their row, in two rows of one head."""
    number_C = torch.arange(start, stop, dtype=torch.float32)
    keys = (number_C + 100 * torch.arange(2)[:, None])[:, None, :, None]
    return layer.update(keys, -keys)


def held(layer):
    keys, values = layer._live()
    assert keys.equal(-values)
    return keys[:, 0, :, 0].int().tolist()


@pytest.mark.parametrize("window", [None, 8])
def test_a_token_costs_no_copy_of_the_cache(window):
    """2 000 tokens after a prompt of 10: a handful of buffers, and never more room than twice what can be seen."""
    layer = GrowingLayer(window)
    columns(layer, 0, 10)
    buffers = set()
    for t in range(10, 2010):
        keys, _ = columns(layer, t, t + 1)
        buffers.add(keys.untyped_storage().data_ptr())
        most = t + 1 if window is None else window
        assert keys[0, 0, :, 0].int().tolist() == list(range(t + 1 - most, t + 1))
        assert layer.keys is not None
        assert layer.keys.shape[2] <= 1.5 * most + 64
    # Windows move once for every spare column they had; without one, the room grows by half each time.
    assert len(buffers) <= (14 if window is None else 2000 // 32 + 1)
    assert layer.get_seq_length() == 2010


def test_rows_leave_with_the_columns_that_only_they_used():
    layer = GrowingLayer(None)
    columns(layer, 0, 40)
    layer.choose(torch.tensor([1, 0, 1]), 5)
    assert held(layer) == [[135, 136, 137, 138, 139], [35, 36, 37, 38, 39], [135, 136, 137, 138, 139]]
    assert layer.get_mask_sizes(1) == (6, 0)
    assert layer.keys is not None
    assert layer.keys.shape[2] < 40


@pytest.mark.parametrize("window", [None, 3])
def test_cut_rows_end_in_the_same_column(window):
    """Row 0 loses its last two tokens, row 1 its last five: of the columns before a row's first, nothing is asked."""
    layer = GrowingLayer(window)
    columns(layer, 0, 7)
    layer.align(torch.tensor([2, 5]), 5)
    rows = held(layer)
    assert rows[0] == [0, 1, 2, 3, 4]
    assert rows[1][3:] == [100, 101]
    assert layer.get_mask_sizes(1) == ((6, 0) if window is None else (3, 3))
