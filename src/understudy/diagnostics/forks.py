"""Do high losses lead to other futures, or are many of them false alarms? From windows probed at tokens of three kinds.

N probed tokens, R resamples, S statistics. A probe asks, at tokens of high loss, at random ones and at tokens of low
loss, how far the student's and the expert's next tokens lie apart (`objectives.transport`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from understudy.evaluation.statistics import Estimate, Verdict, wilson
from understudy.randomness import generator

Array = NDArray[np.float64]
Group = Literal["high", "random", "low"]
GROUPS: tuple[Group, ...] = ("high", "random", "low")
ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class ProbedToken:
    """One token at which the near future was looked at. A token may be probed in two groups: then it stands here twice."""

    trajectory: str
    group: Group
    loss_nats: float
    distance: float
    """Transport distance of the two windows, in the unit of its cost."""


@dataclass(frozen=True, kw_only=True)
class Quartiles:
    """How distances of one group lie; `num_tokens` of them, and `n` of an estimate counts trajectories."""

    group: Group
    num_tokens: int
    lower: Estimate
    median: Estimate
    upper: Estimate


@dataclass(frozen=True, kw_only=True)
class ForkProbe:
    """What a probe found. Every `n` counts the trajectories behind a number; NaN without interval: it cannot be told."""

    quartiles: tuple[Quartiles, ...]
    """Of the groups that were probed, in the order of `GROUPS`."""
    false_alarm_share: Estimate
    """Of high-loss tokens: those nearer than the upper quartile of low-loss ones."""
    median_gap: Estimate
    """Median distance of high-loss tokens minus that of low-loss ones."""
    pearson: Estimate
    spearman: Estimate
    """Between loss and distance over all probed tokens: where losses were chosen to be high and low, larger than in the
    text as it comes."""
    pearson_random: Estimate
    spearman_random: Estimate
    """The same over the random tokens alone."""

    @property
    def verdict(self) -> Verdict:
        """Are futures after high losses farther apart than after low ones?"""
        low, high = self.median_gap.low, self.median_gap.high
        if low is None or high is None or low <= 0 <= high:
            return "cannot tell"
        return "higher" if low > 0 else "lower"

    def as_record(self) -> dict[str, Any]:
        """Plain values, for JSON; None for what is not finite."""
        record: dict[str, Any] = {
            name: value.to_json() for name, value in vars(self).items() if isinstance(value, Estimate)
        }
        record["quartiles"] = [
            {"group": row.group, "num_tokens": row.num_tokens}
            | {name: getattr(row, name).to_json() for name in ("lower", "median", "upper")}
            for row in self.quartiles
        ]
        return record | {"verdict": self.verdict}


def probe_forks(
    tokens: Sequence[ProbedToken], *, seed: int, num_resamples: int = 2000, confidence: float = 0.95
) -> ForkProbe:
    """How distances and losses of probed tokens go together.

        false_alarm_share = share of high-loss tokens with  distance < Q3,   Q3 the upper quartile of low-loss distances
        median_gap        = median of high-loss distances - median of low-loss ones
        pearson, spearman = correlation of loss and distance; Spearman's of ranks, ties sharing their mean rank

    Quantiles are linear between order statistics. Tokens of one trajectory are not independent, so a resample draws
    trajectories with replacement and takes all their probed tokens along; every number, Q3 included, is found anew on it.
    Intervals are percentiles of the resamples, widened for few trajectories; with ten or fewer they are still too
    narrow. One trajectory, or a number that a resample in twenty or more cannot have (a group is missing, or nothing
    varies): no interval. Equal resamples are no certainty: a share then has Wilson's interval over the trajectories with
    high-loss tokens, any other number none.

    Args:
        tokens: losses and distances finite; any of the groups may be missing, then its numbers are NaN.
        seed: of the resampling. num_resamples: >= 100.
    Raises:
        ValueError: no tokens, a number that is not finite, an unknown group, or a setting out of its range.
    Source: arXiv:2606.00305, its probe of 1,000 tokens a group: share 0.29, medians 0.57, 0.36, 0.32, correlations 0.13
        and 0.14, which tokens they are over not said. Intervals, the gap and the random group's correlations are ours.
    """
    data = _table(tokens, num_resamples, confidence)
    found_S = _statistics(data.at(np.arange(len(tokens))))
    drawn_RS = _resampled(data, _statistics, num_resamples, seed)
    estimates = {
        name: _estimate(name, found, drawn_R, data, confidence)
        for name, found, drawn_R in zip(_NAMES, found_S, drawn_RS.T, strict=True)
    }
    return ForkProbe(
        quartiles=tuple(
            Quartiles(
                group=group,
                num_tokens=int(data.is_in(group).sum()),
                lower=estimates[f"{group}/lower"],
                median=estimates[f"{group}/median"],
                upper=estimates[f"{group}/upper"],
            )
            for group in GROUPS
            if data.is_in(group).any()
        ),
        **{name: estimates[name] for name in _NAMES if "/" not in name},
    )


# --- pieces -----------------------------------------------------------------------------------------------------------

_NAMES = (
    *(f"{group}/{part}" for group in GROUPS for part in ("lower", "median", "upper")),
    "false_alarm_share",
    "median_gap",
    "pearson",
    "spearman",
    "pearson_random",
    "spearman_random",
)


@dataclass(frozen=True, kw_only=True)
class _Table:
    """The tokens as columns. `group_N`: place in GROUPS; `trajectory_N`: 0, 1, ... in order of appearance."""

    loss_N: Array
    distance_N: Array
    group_N: NDArray[np.int64]
    trajectory_N: NDArray[np.int64]

    def at(self, index: NDArray[np.int64]) -> _Table:
        return _Table(**{name: column_N[index] for name, column_N in vars(self).items()})

    def is_in(self, group: Group) -> NDArray[np.bool_]:
        return self.group_N == GROUPS.index(group)

    def num_trajectories(self, is_counted_N: NDArray[np.bool_]) -> int:
        return len(np.unique(self.trajectory_N[is_counted_N]))


def _table(tokens: Sequence[ProbedToken], num_resamples: int, confidence: float) -> _Table:
    if not tokens:
        raise ValueError("a probe needs tokens, got none.")
    if num_resamples < 100 or not 0 < confidence < 1:
        raise ValueError(
            f"num_resamples >= 100 and confidence in (0, 1) expected, got {num_resamples} and {confidence}."
        )
    for token in tokens:
        if not (math.isfinite(token.loss_nats) and math.isfinite(token.distance)):
            raise ValueError(f"losses and distances must be finite, got {asdict(token)}: leave it out.")
        if token.group not in GROUPS:
            raise ValueError(f"group must be one of {', '.join(GROUPS)}, got {token.group!r}.")
    place = {name: i for i, name in enumerate(dict.fromkeys(token.trajectory for token in tokens))}
    return _Table(
        loss_N=np.array([token.loss_nats for token in tokens], dtype=np.float64),
        distance_N=np.array([token.distance for token in tokens], dtype=np.float64),
        group_N=np.array([GROUPS.index(token.group) for token in tokens]),
        trajectory_N=np.array([place[token.trajectory] for token in tokens]),
    )


def _statistics(table: _Table) -> Array:
    """In the order of `_NAMES`; NaN for what these tokens cannot tell."""
    distances = {group: table.distance_N[table.is_in(group)] for group in GROUPS}
    quartiles = {
        group: np.quantile(distance_n, (0.25, 0.5, 0.75)) if len(distance_n) else np.full(3, np.nan)
        for group, distance_n in distances.items()
    }
    high_n, upper = distances["high"], quartiles["low"][2]
    share = (high_n < upper).mean() if len(high_n) and not np.isnan(upper) else np.nan
    is_random_N = table.is_in("random")
    return np.array(
        [
            *(quartile for group in GROUPS for quartile in quartiles[group]),
            share,
            quartiles["high"][1] - quartiles["low"][1],
            *_correlations(table.loss_N, table.distance_N),
            *_correlations(table.loss_N[is_random_N], table.distance_N[is_random_N]),
        ]
    )


def _correlations(x_n: Array, y_n: Array) -> tuple[float, float]:
    """Pearson's and Spearman's; NaN where one of the two does not vary."""
    if len(x_n) < 2 or np.ptp(x_n) == 0 or np.ptp(y_n) == 0:
        return math.nan, math.nan
    ranks = stats.rankdata(x_n), stats.rankdata(y_n)
    return float(np.corrcoef(x_n, y_n)[0, 1]), float(np.corrcoef(*ranks)[0, 1])


def _resampled(table: _Table, statistics: Callable[[_Table], Array], num: int, seed: int) -> Array:
    """[R, S]: the statistics of trajectories drawn with replacement, as many as there are."""
    order = np.argsort(table.trajectory_N, kind="stable")
    size = np.bincount(table.trajectory_N)
    members = np.split(order, np.cumsum(size)[:-1])
    rng = generator(seed, "forks", "resample")
    drawn = []
    for _ in range(num):
        chosen = rng.integers(len(members), size=len(members))
        drawn.append(statistics(table.at(np.concatenate([members[i] for i in chosen]))))
    return np.array(drawn)


def _estimate(name: str, found: float, drawn_R: Array, table: _Table, confidence: float) -> Estimate:
    num = table.num_trajectories(_stands_on(name, table))
    value = float(found)
    known_R = drawn_R[~np.isnan(drawn_R)]
    # What a resample in twenty cannot have stands on a handful of trajectories; the rest would be too sure of it.
    if math.isnan(value) or num < 2 or len(known_R) < 0.95 * len(drawn_R):
        return Estimate(value, None, None, num)
    if np.ptp(known_R) < ROUNDING:
        if name != "false_alarm_share":
            return Estimate(value, None, None, num)
        return Estimate(value, *_ends(wilson(round(value * num), num, confidence), value), num)
    # Percentiles as few clusters need them: expanded percentiles, Hesterberg, arXiv:1411.5279.
    quantile = stats.t.ppf((1 + confidence) / 2, num - 1) * math.sqrt(num / (num - 1))
    low, high = np.quantile(known_R, stats.norm.cdf([-quantile, quantile]))
    return Estimate(value, min(float(low), value), max(float(high), value), num)


def _ends(interval: Estimate, value: float) -> tuple[float, float]:
    assert interval.low is not None
    assert interval.high is not None
    return min(interval.low, value), max(interval.high, value)


def _stands_on(name: str, table: _Table) -> NDArray[np.bool_]:
    """The tokens whose trajectories a number is counted over; of two groups the one with fewer trajectories."""
    if name in ("pearson", "spearman"):
        return np.ones_like(table.group_N, dtype=bool)
    if name.endswith("_random"):
        return table.is_in("random")
    if "/" in name:
        return table.is_in(next(group for group in GROUPS if name.startswith(group)))
    return min((table.is_in("high"), table.is_in("low")), key=table.num_trajectories)
