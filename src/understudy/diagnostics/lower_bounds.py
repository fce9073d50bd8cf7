"""The rows: each a gap between two sets of responses, what chance gives, and the bound with its interval.

N responses of both sets (A first), P prompts, K columns, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from understudy.diagnostics.events import WordStream, holds_ngram
from understudy.diagnostics.findings import Gap, Performance, Settings
from understudy.diagnostics.held_out import HeldOut
from understudy.diagnostics.pairing import (
    Layout,
    by_prompt,
    has_several,
    resampled_means,
    shuffled_weights,
    subset,
)
from understudy.evaluation.statistics import Estimate

Array = NDArray[np.float64]
Interval = tuple[float | None, float | None]
Constant = tuple[float, float, float, int]
ROUNDING = 1e-12


def gaps(
    layout: Layout,
    bin_N: NDArray[np.int64],
    keywords: dict[str, NDArray[np.bool_]],
    held: HeldOut | None,
    settings: Settings,
) -> tuple[Gap, ...]:
    """The length law, the keywords, and the events chosen on one half of the prompts."""
    word_NK = np.array(list(keywords.values()), dtype=np.float64).reshape(len(keywords), len(bin_N)).T
    bin_NK = np.eye(int(bin_N.max()) + 1)[bin_N]
    chance_K, p_K = _chance(
        layout,
        lambda weight_N: np.concatenate([[total_variation(weight_N, bin_N)], np.abs(weight_N @ word_NK)]),
        settings,
    )
    rows = [_law("length", layout, *by_prompt(layout, bin_NK), chance_K[0], p_K[0], settings)]
    events = _events(layout, word_NK, [f'"{keyword}"' for keyword in keywords], settings)
    for row, chance, p_value in zip(events, chance_K[1:], p_K[1:], strict=True):
        rows.append(replace(row, chance=chance, p_value=p_value))
    if held is not None:
        names = [f"{kind}: {event.text}" for kind, event in held.events.items()]
        columns = [event.holds_N[held.is_measured_N] for event in held.events.values()]
        half = subset(layout, held.is_measured_N)
        rows += _events(
            half, np.array(columns, dtype=np.float64).T, names, settings, sign_K=np.ones(len(names))
        )
    return tuple(rows)


def ngram_gaps(layout: Layout, stream: WordStream, held: HeldOut, settings: Settings) -> tuple[Gap, ...]:
    """The n-grams that one half of the prompts chose, measured on the other half."""
    half = subset(layout, held.is_measured_N)
    names = [f'"{ngram.text}"' for ngram in held.ngrams]
    columns = [holds_ngram(stream, ngram.words)[held.is_measured_N] for ngram in held.ngrams]
    if not columns:
        return ()
    sign_K = np.array([1.0 if ngram.gap >= 0 else -1.0 for ngram in held.ngrams])
    return tuple(_events(half, np.array(columns, dtype=np.float64).T, names, settings, sign_K=sign_K))


def gaps_by_prompt(
    layout: Layout, bin_N: NDArray[np.int64], keywords: dict[str, NDArray[np.bool_]], settings: Settings
) -> tuple[Gap, ...]:
    """The length law and the keywords within each prompt, averaged; of prompts with several responses in both sets."""
    is_kept_N = has_several(layout)
    if not is_kept_N.any():
        return ()
    layout, bin_N = subset(layout, is_kept_N), bin_N[is_kept_N]
    word_KN = [holds_N[is_kept_N].astype(np.float64) for holds_N in keywords.values()]
    num, num_bins = len(layout.ids_a), int(bin_N.max()) + 1
    cell_N = layout.prompt_N * num_bins + bin_N

    def within(weight_N: Array) -> Array:
        """[1 + K, P]: the total variation of the binned length and the gap of each keyword, in every prompt."""
        weight_N = weight_N * num
        bins_PK = np.bincount(cell_N, weights=weight_N, minlength=num * num_bins).reshape(num, num_bins)
        events = [
            np.bincount(layout.prompt_N, weights=weight_N * holds_N, minlength=num) for holds_N in word_KN
        ]
        return np.abs(np.array([np.abs(bins_PK).sum(1) / 2, *events]))

    chance_K, p_K = _chance(layout, lambda weight_N: within(weight_N).mean(1), settings)
    found_KP = within(layout.weight_N)
    drawn_RK = resampled_means(
        layout, found_KP.T, np.zeros_like(found_KP.T), settings.num_resamples, settings.seed
    )
    rows = []
    for k, name in enumerate(("length", *(f'"{keyword}"' for keyword in keywords))):
        gap = float(found_KP[k].mean())
        rows.append(
            Gap(
                name=name,
                kind="by prompt",
                share_a=None,
                share_b=None,
                gap=gap,
                chance=chance_K[k],
                p_value=p_K[k],
                bound=_beyond_chance(gap, chance_K[k], drawn_RK[:, k], layout, settings),
            )
        )
    return tuple(rows)


def performance(layout: Layout, grade_N: Array, settings: Settings) -> Performance:
    """The difference of mean grades, with the interval and the p-value of the other rows."""
    a_PK, b_PK = by_prompt(layout, grade_N[:, None])
    _, (p_value,) = _chance(layout, lambda weight_N: np.abs([weight_N @ grade_N]), settings)
    drawn_R = resampled_means(layout, a_PK, b_PK, settings.num_resamples, settings.seed)[:, 0]
    is_rate = bool(((grade_N >= 0) & (grade_N <= 1)).all())
    value = float(a_PK.mean() - b_PK.mean())
    without_spread = _without_spread(layout, a_PK[:, 0], b_PK[:, 0])
    if without_spread and not is_rate:  # nobody knows how far another grade could be away
        low = high = None
    else:
        low, high = _interval(value, drawn_R, without_spread, layout, settings)
    return Performance(
        mean_a=float(a_PK.mean()),
        mean_b=float(b_PK.mean()),
        difference=Estimate(value, low, high, layout.num_prompts),
        p_value=p_value,
        is_rate=is_rate,
    )


def total_variation(weight_N: Array, bin_N: NDArray[np.int64]) -> float:
    """1/2 sum_b |sum_{i in b} weight_i|: of the binned laws if weights are +1 over one set and -1 over the other."""
    return float(np.abs(np.bincount(bin_N, weights=weight_N)).sum() / 2)


# --- pieces -----------------------------------------------------------------------------------------------------------


def _events(
    layout: Layout, value_NK: Array, names: Sequence[str], settings: Settings, *, sign_K: Array | None = None
) -> list[Gap]:
    """Gaps of shares. A fixed event may go either way; one that was held out has the direction that its choice gave it."""
    a_PK, b_PK = by_prompt(layout, value_NK)
    drawn_RK = resampled_means(layout, a_PK, b_PK, settings.num_resamples, settings.seed)
    rows = []
    for k, name in enumerate(names):
        a_P, b_P, drawn_R = a_PK[:, k], b_PK[:, k], drawn_RK[:, k]
        signed = float(a_P.mean() - b_P.mean())
        interval = _interval(signed, drawn_R, _without_spread(layout, a_P, b_P), layout, settings)
        if sign_K is None:
            gap, interval = abs(signed), _folded(*interval)
        elif sign_K[k] < 0:
            gap, interval = -signed, _negated(*interval)
        else:
            gap = signed
        low, high = (None if end is None else max(end, 0.0) for end in interval)
        rows.append(
            Gap(
                name=name,
                kind="event" if sign_K is None else "held out",
                share_a=float(a_P.mean()),
                share_b=float(b_P.mean()),
                gap=gap,
                chance=None,
                p_value=None,
                bound=Estimate(max(gap, 0.0), low, high, layout.num_prompts),
            )
        )
    return rows


def _law(
    name: str, layout: Layout, a_PK: Array, b_PK: Array, chance: float, p_value: float, settings: Settings
) -> Gap:
    """The total variation of a binned law, and what of it exceeds chance."""
    gap = float(np.abs(a_PK.mean(0) - b_PK.mean(0)).sum() / 2)
    drawn_RK = resampled_means(layout, a_PK, b_PK, settings.num_resamples, settings.seed)
    bound = _beyond_chance(gap, chance, np.abs(drawn_RK).sum(1) / 2, layout, settings)
    return Gap(
        name=name,
        kind="law",
        share_a=None,
        share_b=None,
        gap=gap,
        chance=chance,
        p_value=p_value,
        bound=bound,
    )


def _chance(
    layout: Layout, statistic: Callable[[Array], Array], settings: Settings
) -> tuple[list[float], list[float]]:
    """Mean of each statistic with labels dealt anew, and the share of deals that reach what was found."""
    deals, is_every_deal = shuffled_weights(layout, settings.num_shuffles, settings.seed)
    found_K = statistic(layout.weight_N)
    dealt_RK = np.array([statistic(weight_N) for weight_N in deals])
    reach_K = (dealt_RK >= found_K - ROUNDING).sum(0)
    # The data are one deal, too: drawn deals are counted together with it.
    p_K = reach_K / len(dealt_RK) if is_every_deal else (reach_K + 1) / (len(dealt_RK) + 1)
    return dealt_RK.mean(0).tolist(), p_K.tolist()


def _beyond_chance(gap: float, chance: float, drawn_R: Array, layout: Layout, settings: Settings) -> Estimate:
    """max(0, gap - chance); resampling tells its spread, not its place: a resample has the noise of chance twice."""
    beyond = gap - chance
    if layout.num_prompts == 1:
        return Estimate(max(beyond, 0.0), None, None, 1)
    ends = beyond + np.quantile(drawn_R, _levels(layout, settings)) - drawn_R.mean()
    if np.ptp(drawn_R) < ROUNDING:
        rest = _unseen(layout.num_prompts, settings)
        ends = np.array([beyond - rest * (1 + beyond), beyond + rest * (1 - beyond)])
    low, high = min(float(ends[0]), beyond), max(float(ends[1]), beyond)
    return Estimate(max(beyond, 0.0), min(max(low, 0.0), 1.0), min(max(high, 0.0), 1.0), layout.num_prompts)


def _interval(
    value: float, drawn_R: Array, without_spread: Sequence[Constant], layout: Layout, settings: Settings
) -> Interval:
    """Percentiles of the resampled values; None if a set has one prompt, which cannot be resampled.

    A set whose prompts all show the same value resamples to that value alone. That is not certainty: a share of the
    prompts that would differ, as large as could go unseen among so many, widens the interval.
    """
    if layout.num_prompts == 1:
        return None, None
    low, high = (float(end) for end in np.quantile(drawn_R, _levels(layout, settings)))
    for mean, least, most, num in without_spread:
        rest = _unseen(num, settings)
        low, high = low - rest * (mean - least), high + rest * (most - mean)
    return min(low, value), max(high, value)


def _without_spread(layout: Layout, a_P: Array, b_P: Array) -> list[Constant]:
    """What is resampled and has one value on all prompts: (value, least, most, prompts). Values are shares."""
    parts = [(a_P, 0.0, 1.0), (-b_P, -1.0, 0.0)]
    if layout.is_paired:
        parts = [(a_P - b_P, -1.0, 1.0)]
    return [
        (float(part_P[0]), low, high, len(part_P)) for part_P, low, high in parts if np.ptp(part_P) < ROUNDING
    ]


def _unseen(num: int, settings: Settings) -> float:
    """The share of prompts that may differ though none of `num` does: (1 - share)^num = 1 - confidence."""
    return 1 - (1 - settings.confidence) ** (1 / num)


def _levels(layout: Layout, settings: Settings) -> tuple[float, float]:
    """The percentiles that few prompts need: the bootstrap's own are those of a normal law with a spread too small.

    Source: expanded percentiles, Hesterberg, arXiv:1411.5279.
    """
    num = layout.num_prompts
    quantile = stats.t.ppf((1 + settings.confidence) / 2, num - 1) * math.sqrt(num / (num - 1))
    return float(stats.norm.cdf(-quantile)), float(stats.norm.cdf(quantile))


def _folded(low: float | None, high: float | None) -> Interval:
    """The interval of |x| from that of x."""
    if low is None or high is None:
        return None, None
    if low > 0:
        return low, high
    return (-high, -low) if high < 0 else (0.0, max(-low, high))


def _negated(low: float | None, high: float | None) -> Interval:
    return None if high is None else -high, None if low is None else -low
