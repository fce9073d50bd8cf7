"""The cache's memory: what it copies, and what it holds on to. What it says is tested through the decoder."""

from __future__ import annotations

import pytest
import torch

from understudy.rollouts.cache import GrowingLayer, Place


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
def test_rows_of_several_layers_end_in_the_same_column(window):
    """Rows read apart, the second layer's first one twice, each cut, and nothing but zeros left of a row's first column.

    Fails if rows are cut at the wrong end, go to another place, or what is behind a mask may be anything (NaN times 0 is NaN).
    """
    read = [GrowingLayer(window), GrowingLayer(window)]
    columns(read[0], 0, 7)
    columns(read[1], 10, 13)
    layer = GrowingLayer(window)
    places = [[Place(2, 0, 5), Place(0, 1, 2)], [Place(3, 0, 3), Place(1, 0, 1)]]
    layer.fill(list(zip(read, places, strict=True)), num_rows=4, length=5)
    width = 5 if window is None else 3
    rows = held(layer)
    assert [len(row) for row in rows] == [width] * 4
    assert rows[2] == [0, 1, 2, 3, 4][-width:]
    assert rows[0] == [0, 0, 0, 100, 101][-width:]
    assert rows[3] == [0, 0, 10, 11, 12][-width:]
    assert rows[1] == [0, 0, 0, 0, 10][-width:]
    assert layer.get_mask_sizes(1) == ((6, 0) if window is None else (3, 3))
    assert layer.get_seq_length() == 5
    assert read[0].keys is None
    buffer = layer.keys
    keys = torch.full((4, 1, 1, 1), 99.0)
    layer.update(keys, -keys)
    assert layer.keys is buffer, "there is room for the next token"
    assert [row[-2:] for row in held(layer)] == [[101, 99], [10, 99], [4, 99], [12, 99]]
