"""Keys and values of growing prefixes, without a copy of the whole cache for every token.

The rows of a batch end in the same column, whatever their lengths: row b owns the last `length_b` columns. So a window
of attention is the same columns for every row, the left columns can go as soon as no row reaches them, and neither
rejected drafts nor rows that left leave gaps.

B sequences, H heads, C columns, D width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from understudy.errors import ModelError

_LEAST_SPARE = 8
"""Columns a buffer gets beyond what it holds, at least. Few, because attention has to step over them: with 32, short rollouts
of a small model take up to a tenth longer."""
_LEAST_SPARE_OF_WINDOW = 32
"""The same where a window moves on: a narrow one would otherwise be copied every few tokens, however long the response."""


@dataclass(frozen=True)
class Place:
    """Where a row of a batch was read: it is the first `length` columns of row `source` of another cache."""

    row: int
    source: int
    length: int


class GrowingLayer(CacheLayerMixin):
    """One layer's keys and values [B, H, C, D] in buffers with spare columns; `window` as in its attention, or None."""

    is_croppable = False

    def __init__(self, window: int | None) -> None:
        super().__init__()
        self.window = window
        self.is_sliding = window is not None
        self.seen = 0
        self._first = self._end = 0

    @property
    def num_columns(self) -> int:
        """Columns that can still be attended to."""
        return self._end - self._first

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = key_states.detach(), value_states.detach()
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        count = key_states.shape[2]
        self.seen += count
        if not self.is_initialized:
            # The first forward's own tensors: copied when the first token is appended, or rows are chosen.
            self.lazy_initialization(key_states, value_states)
            self._end = count
            return key_states, value_states
        if self.window is not None:
            self._first = max(self._first, self._end - self.window + 1)
        if self._end + count > self._held()[0].shape[2]:
            self._move(None, self.num_columns)
        keys, values = self._held()
        into = slice(self._end, self._end + count)
        keys[:, :, into] = key_states
        values[:, :, into] = value_states
        self._end += count
        return self._live()

    def choose(self, row_K: Tensor, length: int) -> None:
        """These rows only, in this order, none of which is longer than `length`."""
        self._move(row_K, min(length, self.num_columns))
        self.seen = length

    def fill(self, read: Sequence[tuple[GrowingLayer, Sequence[Place]]], num_rows: int, length: int) -> None:
        """Take the rows of layers that read them for the first time, each moved to the right; those layers then hold nothing.

        `length`: of the longest row. What is left of a row's first column is zero: masks hide it, but not if it were NaN.
        """
        columns = length if self.window is None else min(length, self.window)
        for layer, places in read:
            both = layer._held()
            if not self.is_initialized:
                made = (
                    x.new_zeros(num_rows, x.shape[1], columns + self._spare(columns), x.shape[3])
                    for x in both
                )
                self.lazy_initialization(*made)
            # Row by row: several times faster on a processor than indices, which copy what they choose once more.
            for p in places:
                count = min(p.length, columns)
                for into, from_ in zip(self._held(), both, strict=True):
                    into[p.row, :, columns - count : columns] = from_[
                        p.source, :, p.length - count : p.length
                    ]
            layer.keys = layer.values = None
        self._first, self._end, self.seen = 0, columns, length

    def _spare(self, columns: int) -> int:
        return max(_LEAST_SPARE if self.window is None else _LEAST_SPARE_OF_WINDOW, columns // 2)

    def _held(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def _live(self) -> tuple[Tensor, Tensor]:
        keys, values = self._held()
        return keys[:, :, self._first : self._end], values[:, :, self._first : self._end]

    def _move(self, row_K: Tensor | None, columns: int) -> None:
        """Into new buffers with room for more: the last `columns` columns of these rows (None: of all)."""

        def moved(live: Tensor) -> Tensor:
            live = live[:, :, live.shape[2] - columns :]
            rows = len(live) if row_K is None else len(row_K)
            made = live.new_empty(rows, live.shape[1], columns + self._spare(columns), live.shape[3])
            if row_K is None:
                made[:, :, :columns] = live
            else:
                torch.index_select(live, 0, row_K, out=made[:, :, :columns])
            return made

        keys, values = self._live()
        self.keys, self.values = moved(keys), moved(values)
        self._first, self._end = 0, columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        held = self.num_columns
        if self.window is not None and self.is_initialized:
            held = min(held, self.window - 1)
        return held + query_length, self.seen - held

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return -1


class GrowingCache(Cache):
    """The cache of one model; see the file's docstring for how its rows lie."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(layers=[_growing(layer, config) for layer in DynamicCache(config=config).layers])

    @property
    def own_layers(self) -> list[GrowingLayer]:
        """Those that hold something; layers that read another layer's keys hold nothing."""
        return [layer for layer in self.layers if isinstance(layer, GrowingLayer)]

    @property
    def dtype(self) -> torch.dtype:
        return self.own_layers[0]._held()[0].dtype

    def choose(self, row_K: Tensor, length: int) -> None:
        for layer in self.own_layers:
            layer.choose(row_K, length)

    def fill(self, read: Sequence[tuple[GrowingCache, Sequence[Place]]], num_rows: int, length: int) -> None:
        """Become the cache of `num_rows` rows that were read in pieces, the longest of which keeps `length` columns."""
        for i, layer in enumerate(self.layers):
            if isinstance(layer, GrowingLayer):
                layer.fill([(cache.layers[i], places) for cache, places in read], num_rows, length)  # pyright: ignore


def _growing(layer: object, config: PreTrainedConfig) -> GrowingLayer | DummyLayer:
    """Ours for the library's own choice of layer. Types are compared exactly: a subclass holds more than keys and values."""
    if type(layer) is DynamicLayer:
        return GrowingLayer(None)
    if type(layer) is DynamicSlidingWindowLayer:
        return GrowingLayer(layer.sliding_window)
    if type(layer) is DummyLayer:
        return layer
    raise ModelError(
        f"{config.model_type} models keep more than keys and values ({type(layer).__name__}); rows of different lengths "
        "cannot be decoded side by side with that. Use a model with plain attention."
    )
