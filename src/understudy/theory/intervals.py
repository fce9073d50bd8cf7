"""Intervals of what was simulated rather than enumerated."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

CONFIDENCE = 0.999
"""Two-sided. With 100 simulated rows about one run in ten would have a row that fails by chance alone; seeds are fixed."""


def proportion_interval(num_successes: int, num: int) -> tuple[float, float]:
    """Clopper-Pearson: covers the true probability with at least `CONFIDENCE`, at every sample size.

    Raises:
        ValueError: not 0 <= num_successes <= num with num >= 1.
    """
    if not 0 <= num_successes <= num or num < 1:
        raise ValueError(f"0 <= num_successes <= num, num >= 1 expected, got {num_successes} of {num}.")
    found = stats.binomtest(num_successes, num).proportion_ci(CONFIDENCE, method="exact")
    return float(found.low), float(found.high)


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high) of independent values by Student's t; for one value, or none, the interval is infinite.

    Approximate for skewed values: use `bounded_mean_interval` where the range is known and coverage must be certain.
    """
    num = len(values)
    mean = float(np.mean(values)) if num else math.nan
    if num < 2:
        return mean, -math.inf, math.inf
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, num - 1) * np.std(values, ddof=1) / math.sqrt(num))
    return mean, mean - half, mean + half


def bounded_mean_interval(values: np.ndarray, low: float, high: float) -> tuple[float, float, float]:
    """(mean, low, high) of independent values in [low, high], covering with at least `CONFIDENCE` at every sample size.

    Empirical Bernstein, each side at half the error probability:

        |mean - mu| <= sqrt(2 v ln(4/d) / n) + 7 (high - low) ln(4/d) / (3 (n - 1)),    d = 1 - CONFIDENCE

    Raises:
        ValueError: fewer than two values, or one outside the range.
    Source: Maurer and Pontil 2009, arXiv:0907.3740, Thm 4 (both sides by a union bound).
    """
    num = len(values)
    if num < 2 or np.min(values) < low - 1e-12 or np.max(values) > high + 1e-12:
        raise ValueError(f"two or more values in [{low}, {high}] expected, got {num} in another range.")
    log_term = math.log(4 / (1 - CONFIDENCE))
    variance = float(np.var(values, ddof=1))
    half = math.sqrt(2 * variance * log_term / num) + 7 * (high - low) * log_term / (3 * (num - 1))
    mean = float(np.mean(values))
    return mean, max(low, mean - half), min(high, mean + half)
