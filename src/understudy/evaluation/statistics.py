"""How sure are we: intervals and paired tests for evaluation numbers.

Every interval is two-sided at `confidence` (0.95 unless told otherwise). An interval that cannot be computed
is None on both sides and means "cannot tell"; it is never replaced by a narrower one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

MAX_EXACT_PAIRS = 16
"""Up to this many pairs all 2^n sign flips are enumerated (65,536 of them); above it they are drawn."""

Verdict = Literal["higher", "lower", "cannot tell"]


@dataclass(frozen=True)
class Estimate:
    """A number, its interval and how many independent things stand behind it.

    `low` and `high` are None when the data cannot give an interval (one seed says nothing about other seeds).
    """

    value: float
    low: float | None
    high: float | None
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        """The four fields, with None wherever a value is not finite (JSON has no NaN)."""
        return {
            "value": _finite(self.value),
            "low": _finite(self.low),
            "high": _finite(self.high),
            "n": self.n,
        }


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """What `paired_difference` found. A p-value is None where its test does not apply to the data."""

    difference: Estimate
    p_paired_t: float | None
    p_sign_flip: float
    p_mcnemar: float | None
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        return {
            "difference": self.difference.to_json(),
            "p_paired_t": self.p_paired_t,
            "p_sign_flip": self.p_sign_flip,
            "p_mcnemar": self.p_mcnemar,
            "verdict": self.verdict,
        }


def wilson(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """A success rate with the Wilson score interval: for one run's accuracy over its prompts.

        center = (k + z^2 / 2) / (n + z^2)
        half   = z * sqrt(k (n - k) / n + z^2 / 4) / (n + z^2)

    Assumes n independent trials with one common rate. Good at 0 and at n successes, where the textbook
    interval has width zero. Coverage is near `confidence` on average over rates and not guaranteed at each
    one.

    Args:
        successes: k, in 0..n.
        n: number of trials, >= 1.
    Returns:
        value k / n with 0 <= low <= value <= high <= 1.
    Raises:
        ValueError: n < 1, successes outside 0..n, or confidence outside (0, 1).
    Source: Wilson, JASA 22 (1927), without continuity correction, as computed by SciPy.
    """
    _check_confidence(confidence)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wilson needs n >= 1 and successes in 0..n, got successes={successes}, n={n}.")
    interval = stats.binomtest(int(successes), int(n)).proportion_ci(confidence, method="wilson")
    value = successes / n
    return Estimate(value, min(float(interval.low), value), max(float(interval.high), value), int(n))


def mean_interval(
    values: Sequence[float], confidence: float = 0.95, *, bounds: tuple[float, float] | None = None
) -> Estimate:
    """The mean over seeds (or other independent repeats) with Student's t interval.

        mean +- t(n - 1) * s / sqrt(n),    s^2 = sum_i (x_i - mean)^2 / (n - 1)

    Assumes independent, roughly normal values. Equal values give an interval of width zero, which says "no
    spread was seen", not "certain": for rates use `rate_over_seeds`, which has a floor.

    Args:
        values: one finite number per seed, any unit.
        bounds: the range the quantity can have, such as (0, 1); the interval is cut to it, coverage is not
            changed.
    Returns:
        n = number of values, in their unit. One value: low = high = None, its spread cannot be told.
    Raises:
        ValueError: no values, a value that is not finite, or confidence outside (0, 1).
    Source: textbook; the quantile is SciPy's.
    """
    _check_confidence(confidence)
    x_n = _finite_array("mean_interval", values)
    mean = _exact_mean(x_n)
    if x_n.size == 1:
        return Estimate(mean, None, None, 1)
    half = float(stats.t.ppf(0.5 + confidence / 2, x_n.size - 1) * x_n.std(ddof=1) / math.sqrt(x_n.size))
    floor, ceiling = bounds or (-math.inf, math.inf)
    return Estimate(mean, max(mean - half, floor), min(mean + half, ceiling), int(x_n.size))


def rate_over_seeds(rates: Sequence[float], num_prompts: int, confidence: float = 0.95) -> Estimate:
    """An accuracy over seeds x prompts, seed being the cluster: how would another seed do on such prompts?

        low  = min(t interval of the per-seed rates, Wilson interval of mean * num_prompts out of num_prompts)
        high = max(the same two)

    Prompts of one seed share a model, so they are not independent: pooling seeds x prompts would give an
    interval far too narrow. The t interval of the per-seed rates is the honest one, except that it has width
    zero when all seeds agree (three times 1.00). Then the prompts limit what is known, and the Wilson
    interval of *one* seed's number of prompts is the floor: the seeds are graded on the same prompts, so more
    seeds are not more prompts.

    Args:
        rates: one rate in [0, 1] per seed.
        num_prompts: prompts each seed was graded on (the smallest, where they differ), >= 1.
    Returns:
        n = number of seeds; within [0, 1]. One seed: low = high = None.
    Raises:
        ValueError: a rate outside [0, 1], no rates, num_prompts < 1, or confidence outside (0, 1).
    Source: clustered errors as in Miller, arXiv:2411.00640; ours uses t, not a normal law, and adds the
        floor.
    """
    over_seeds = mean_interval(rates, confidence, bounds=(0.0, 1.0))
    if min(rates) < 0 or max(rates) > 1:
        raise ValueError(f"rates must lie in [0, 1], got {min(rates)} to {max(rates)}.")
    if num_prompts < 1:
        raise ValueError(f"num_prompts must be >= 1, got {num_prompts}.")
    if over_seeds.low is None or over_seeds.high is None:
        return over_seeds
    over_prompts = wilson(round(over_seeds.value * num_prompts), num_prompts, confidence)
    assert over_prompts.low is not None
    assert over_prompts.high is not None
    low, high = min(over_seeds.low, over_prompts.low), max(over_seeds.high, over_prompts.high)
    return Estimate(over_seeds.value, low, high, over_seeds.n)


def ratio_interval(sums: Sequence[float], counts: Sequence[float], confidence: float = 0.95) -> Estimate:
    """A mean per token with the trajectory as the independent unit.

        ratio = sum_i sums[i] / sum_i counts[i]
        var   = n / (n - 1) * sum_i (sums[i] - ratio * counts[i])^2 / (sum_i counts[i])^2

    Tokens of one trajectory are not independent, so n counts trajectories and the interval is Student's t on the
    delta-method variance. Assumes many trajectories or lengths that vary little; the ratio is biased by O(1/n).

    Args:
        sums: one total per trajectory, any unit; inf or NaN makes the value so and the interval None.
        counts: tokens of each trajectory, >= 0, not all 0.
    Returns:
        n = number of trajectories. One trajectory: low = high = None.
    Raises:
        ValueError: lengths differ, nothing to divide by, or confidence outside (0, 1).
    Source: textbook ratio estimator (Cochran, Sampling Techniques, ch. 6).
    """
    _check_confidence(confidence)
    if len(sums) != len(counts):
        raise ValueError(
            f"ratio_interval needs one count per sum, got {len(sums)} sums and {len(counts)} counts."
        )
    sums_n, counts_n = np.asarray(sums, dtype=float), np.asarray(counts, dtype=float)
    total = counts_n.sum()
    if not total > 0:
        raise ValueError("ratio_interval has nothing to divide by: all counts are 0.")
    with np.errstate(invalid="ignore"):
        ratio = float(sums_n.sum() / total)
    n = len(sums_n)
    if n == 1 or not math.isfinite(ratio):
        return Estimate(ratio, None, None, n)
    residual_n = sums_n - ratio * counts_n
    spread = math.sqrt(n / (n - 1) * float((residual_n**2).sum())) / total
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * spread
    return Estimate(ratio, ratio - half, ratio + half, n)


def bootstrap_mean(
    values: Sequence[float], *, seed: int, num_resamples: int = 2000, confidence: float = 0.95
) -> Estimate:
    """A mean with the percentile bootstrap interval: for many skewed values, such as a KL per prompt.

    Assumes independent values. The percentile interval is too narrow for few values (at n = 10 it covers
    about 0.90): for seeds use `mean_interval`.

    Args:
        values: one finite number per independent unit (prompt, not token).
        seed: of the resampling; the same seed gives the same interval.
        num_resamples: >= 100.
    Returns:
        n = number of values, in their unit. One value: low = high = None.
    Raises:
        ValueError: no values, a value that is not finite, num_resamples < 100, or confidence outside (0, 1).
    Source: Efron, Ann. Statist. 7 (1979), as computed by SciPy; no bias correction, which is undefined for
        ties.
    """
    _check_confidence(confidence)
    x_n = _finite_array("bootstrap_mean", values)
    if num_resamples < 100:
        raise ValueError(f"num_resamples must be >= 100 for a stable interval, got {num_resamples}.")
    mean = _exact_mean(x_n)
    if x_n.size == 1:
        return Estimate(mean, None, None, 1)
    result = stats.bootstrap(
        (x_n,),
        np.mean,
        n_resamples=num_resamples,
        batch=max(1, min(num_resamples, 4_000_000 // x_n.size)),
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    interval = result.confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), int(x_n.size))


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that at least one of k samples is right, estimated without bias from n of which c are.

        pass@k = 1 - C(n - c, k) / C(n, k)

    Assumes independent samples at the temperature that will be used. Computed in exact integers, so no n
    overflows.

    Args:
        n: samples drawn for the prompt. c: correct ones, in 0..n. k: in 1..n.
    Returns:
        A rate in [0, 1]; c / n at k = 1. Average it over prompts.
    Raises:
        ValueError: c outside 0..n or k outside 1..n.
    Source: Chen et al., arXiv:2107.03374, section 2.1 (theirs is a running product of the same ratio).
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass_at_k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}.")
    total = math.comb(n, k)
    return (total - math.comb(n - c, k)) / total


def paired_difference(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95, *, seed: int = 0
) -> PairedDifference:
    """Is a larger than b when both were measured on the same units (the same seeds, or the same prompts)?

        d_i = a_i - b_i;  paired t on d;  sign flips: share of +-d whose |mean| >= the observed |mean|
        McNemar (a, b in {0, 1}): exact binomial of #{a=1, b=0} out of the units on which they differ

    Assumes a_i and b_i belong to the same unit i and units are independent; the sign-flip test also assumes
    that d is symmetric about 0 when there is no difference. It cannot fall below 2 / 2^n: with 3 seeds 0.25,
    with 6 seeds 0.03. The verdict takes McNemar for 0/1 outcomes, else the t test, else (all d equal: t is
    undefined) the sign flips.

    Args:
        a, b: equally long, finite; n >= 1.
        seed: of the drawn sign flips, used above MAX_EXACT_PAIRS pairs only.
    Returns:
        difference mean(a - b) with its t interval; p-values, two-sided; verdict about a against b.
    Raises:
        ValueError: lengths differ, no values, a value that is not finite, or confidence outside (0, 1).
    Source: Fisher (1935) for the sign flips; McNemar, Psychometrika 12 (1947), exact form; p-values by SciPy.
    """
    a_n, b_n = _finite_array("paired_difference", a), _finite_array("paired_difference", b)
    if a_n.size != b_n.size:
        raise ValueError(f"paired_difference needs one b for each a, got {a_n.size} and {b_n.size} values.")
    difference_n = a_n - b_n
    difference = mean_interval(difference_n.tolist(), confidence)
    p_paired_t = None
    # Equal differences differ by rounding (0.9 - 0.4 and 1.0 - 0.5): a spread that small is none.
    if np.ptp(difference_n) > 1e-12 * np.abs([a_n, b_n]).max():
        t = difference.value * math.sqrt(difference_n.size) / difference_n.std(ddof=1)
        p_paired_t = float(2 * stats.t.sf(abs(t), difference_n.size - 1))
    p_sign_flip = _sign_flip(a_n, b_n, seed)
    p_mcnemar = None
    if np.isin(a_n, (0.0, 1.0)).all() and np.isin(b_n, (0.0, 1.0)).all():
        only_a, only_b = int((difference_n > 0).sum()), int((difference_n < 0).sum())
        p_mcnemar = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    p = p_sign_flip if p_paired_t is None else p_paired_t
    p = p if p_mcnemar is None else p_mcnemar
    verdict: Verdict = "cannot tell"
    if p < 1 - confidence:
        verdict = "higher" if difference.value > 0 else "lower"
    return PairedDifference(
        difference=difference,
        p_paired_t=p_paired_t,
        p_sign_flip=p_sign_flip,
        p_mcnemar=p_mcnemar,
        verdict=verdict,
    )


def _sign_flip(a_n: np.ndarray, b_n: np.ndarray, seed: int) -> float:
    """Two-sided p of mean(a - b) under swaps of a_i and b_i: exact for few pairs, else 9,999 seeded draws."""
    if a_n.size == 1:  # both flips are as extreme as the data; SciPy asks for two observations
        return 1.0
    result = stats.permutation_test(
        (a_n, b_n),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**a_n.size if a_n.size <= MAX_EXACT_PAIRS else 9_999,
        batch=max(1, 4_000_000 // a_n.size),
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def _exact_mean(x_n: np.ndarray) -> float:
    """Mean by exact summation, cut to the range of the data (rounding must not leave it)."""
    mean = math.fsum(x_n.tolist()) / x_n.size
    return float(min(max(mean, x_n.min()), x_n.max()))


def _finite_array(function: str, values: Sequence[float]) -> np.ndarray:
    array_n = np.asarray(values, dtype=np.float64)
    if array_n.ndim != 1 or array_n.size == 0:
        raise ValueError(f"{function} needs a non-empty flat list of numbers, got shape {array_n.shape}.")
    if not np.isfinite(array_n).all():
        index = int(np.flatnonzero(~np.isfinite(array_n))[0])
        raise ValueError(
            f"{function} needs finite numbers, got {array_n[index]} at index {index}; drop it first."
        )
    return array_n


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}.")


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
