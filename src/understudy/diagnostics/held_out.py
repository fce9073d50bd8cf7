"""Events chosen on one half of the prompts and measured on the other: what was looked for is not counted as found.

N responses of both sets (A first). An event here is turned so that A does it more often in the half that chose it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from understudy.diagnostics.events import Ngram, WordStream, distinct, holds_ngram, rank_ngrams
from understudy.diagnostics.pairing import Layout, first_half

CANDIDATES = 60
"""N-grams looked at for a list of distinct ones."""
NUM_NGRAMS = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Event:
    """Something a response does or does not: `holds_N` over all responses, and how it looked to the half that chose it."""

    text: str
    holds_N: NDArray[np.bool_]
    chosen_at: float


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """What one half of the prompts chose: an event of each kind, and its n-grams, best first."""

    events: dict[str, Event]
    ngrams: tuple[Ngram, ...]
    is_measured_N: NDArray[np.bool_]
    """The responses of the other half, on which both are to be measured."""


def hold_out(
    layout: Layout,
    stream: WordStream,
    bin_N: NDArray[np.int64],
    bin_size: int,
    keywords: dict[str, NDArray[np.bool_]],
    *,
    max_ngram: int,
    seed: int,
) -> HeldOut | None:
    """Choose on one half of the prompts; None if a set has fewer than two prompts.

    Three kinds: "best lengths", those that A has more often (the event whose gap is the total variation of the length
    law); "best n-gram", the one with the largest gap; "best event", the best of both and of the keywords.

    The halves are not used both ways: what both then find depends on how well their noise happens to agree, and an
    interval of the average would be too narrow by up to sqrt(2).
    """
    if layout.num_prompts < 2:
        return None
    half_a, half_b = first_half(layout.ids_a, seed), first_half(layout.ids_b, seed)
    is_choosing_N = np.concatenate(
        [half_a[layout.prompt_N[~layout.is_b_N]], half_b[layout.prompt_N[layout.is_b_N]]]
    )
    weight_N = half_weights(layout, is_choosing_N)
    ranked = rank_ngrams(stream, weight_N, max_ngram, CANDIDATES)
    return HeldOut(
        events=_choose(stream, weight_N, bin_N, bin_size, keywords, ranked),
        ngrams=tuple(distinct(ranked, NUM_NGRAMS)),
        is_measured_N=~is_choosing_N,
    )


def half_weights(layout: Layout, is_here_N: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The weights of a layout that had these responses only: zero elsewhere, and again 1 over each set."""
    weight_N = np.where(is_here_N, layout.weight_N, 0.0)
    for is_side_N in (layout.is_b_N, ~layout.is_b_N):
        weight_N[is_side_N] /= np.abs(weight_N[is_side_N]).sum()
    return weight_N


def _choose(
    stream: WordStream,
    weight_N: NDArray[np.float64],
    bin_N: NDArray[np.int64],
    bin_size: int,
    keywords: dict[str, NDArray[np.bool_]],
    ranked: Sequence[Ngram],
) -> dict[str, Event]:
    gap_b = np.bincount(bin_N, weights=weight_N)
    is_more_b = gap_b > 1e-12  # more than rounding
    length = Event(
        text=_lengths(is_more_b, bin_size), holds_N=is_more_b[bin_N], chosen_at=gap_b[is_more_b].sum()
    )
    found = {"best lengths": length}
    candidates = [length]
    candidates += [_turned(f'"{word}"', holds_N, weight_N) for word, holds_N in keywords.items()]
    if ranked:
        best = ranked[0]
        found["best n-gram"] = _turned(f'"{best.text}"', holds_ngram(stream, best.words), weight_N)
        candidates.append(found["best n-gram"])
    return found | {"best event": max(candidates, key=lambda event: round(event.chosen_at, 12))}


def _turned(what: str, holds_N: NDArray[np.bool_], weight_N: NDArray[np.float64]) -> Event:
    gap = float(weight_N @ holds_N)
    if gap < 0:
        return Event(text=f"lacks {what}", holds_N=~holds_N, chosen_at=-gap)
    return Event(text=f"has {what}", holds_N=holds_N, chosen_at=gap)


def _lengths(is_in_b: NDArray[np.bool_], bin_size: int, most: int = 2) -> str:
    """ "length 20-39, 60-69": the bins of the event, neighbours joined."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_in_b, [False]]).astype(int)))
    spans = [
        f"{start * bin_size}-{stop * bin_size - 1}"
        for start, stop in zip(edges[::2], edges[1::2], strict=True)
    ]
    if not spans:
        return "no length"
    return "length " + ", ".join(spans[:most]) + (", ..." if len(spans) > most else "")
