"""Is one evaluation better than another on the same prompts? Paired by prompt id."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scipy import stats

from understudy.evaluation.statistics import Estimate, Verdict, bootstrap_mean, paired_difference


@dataclass(frozen=True, kw_only=True)
class Paired:
    """One metric of A against B. `value_a`, `value_b` are means over the prompts that both have; so is `difference`."""

    value_a: float
    value_b: float
    difference: Estimate
    """A - B; a bootstrap interval over prompts, None where no two prompts differ in their difference."""
    num_higher: int
    num_lower: int
    """Prompts on which A is higher, or lower, than B; on the others they are equal."""
    p_sign: float
    """Two-sided exact sign test; for rates of 0 and 1 it is McNemar's exact test."""
    p_sign_flip: float
    p_verdict: float
    """That of the test by which the verdict was reached."""
    verdict: Verdict
    """A against B, by the sign test where all values are 0 or 1, else by the sign-flip test of the mean."""

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"difference": self.difference.to_json()}


def compare_paired(
    a: Mapping[str, float], b: Mapping[str, float], confidence: float = 0.95, *, seed: int = 0
) -> Paired:
    """A - B, paired by prompt.

        d_i = a_i - b_i over the prompts i of both;   interval: percentile bootstrap of mean d, prompts resampled
        sign test: #{d_i > 0} is Binomial(#{d_i != 0}, 1/2) if neither is better
        sign flips: the law of mean(+-d_i), exact up to 16 prompts

    Assumes independent prompts. Prompts that only one of the two has are left out: count them first (`in_both`). With
    fewer than ten prompts or so the bootstrap interval is too narrow.

    Args:
        a, b: prompt id -> value, finite; any unit.
        seed: of the bootstrap and of the drawn sign flips.
    Returns:
        n of the difference is the number of paired prompts. One prompt, or equal differences: no interval.
    Raises:
        ValueError: no prompt in common, a value that is not finite, or confidence outside (0, 1).
    Source: as `statistics.bootstrap_mean` and `statistics.paired_difference`; the sign test is textbook.
    """
    ids = in_both(a, b)
    if not ids:
        raise ValueError(
            f"compare_paired needs prompts that both have, got {len(a)} and {len(b)} without one."
        )
    a_n, b_n = [float(a[i]) for i in ids], [float(b[i]) for i in ids]
    difference_n = [x - y for x, y in zip(a_n, b_n, strict=True)]
    tests = paired_difference(a_n, b_n, confidence, seed=seed)
    difference = bootstrap_mean(difference_n, seed=seed, confidence=confidence)
    # 0.9 - 0.4 and 1.0 - 0.5 differ by rounding alone: that is no spread, and no difference is not certainty.
    rounding = 1e-12 * max(map(abs, (*a_n, *b_n)))
    if max(difference_n) - min(difference_n) <= rounding:
        difference = Estimate(difference.value, None, None, difference.n)
    higher, lower = sum(d > rounding for d in difference_n), sum(d < -rounding for d in difference_n)
    p_sign = float(stats.binomtest(higher, higher + lower).pvalue) if higher + lower else 1.0
    p = tests.p_sign_flip if tests.p_mcnemar is None else p_sign
    verdict: Verdict = "cannot tell"
    if p < 1 - confidence:
        verdict = "higher" if difference.value > 0 else "lower"
    return Paired(
        value_a=math.fsum(a_n) / len(ids),
        value_b=math.fsum(b_n) / len(ids),
        difference=difference,
        num_higher=higher,
        num_lower=lower,
        p_sign=p_sign,
        p_sign_flip=tests.p_sign_flip,
        p_verdict=p,
        verdict=verdict,
    )


def in_both(a: Mapping[str, float], b: Mapping[str, float]) -> list[str]:
    """The prompts that both have, in A's order."""
    return [i for i in a if i in b]


def compare_evaluations(
    a: Mapping[str, Mapping[str, float]], b: Mapping[str, Mapping[str, float]], *, seed: int = 0
) -> dict[str, Paired]:
    """`compare_paired` for every metric that both have; prompts where either value is not finite are left out.

    Args:
        a, b: metric -> prompt id -> value.
    """
    found: dict[str, Paired] = {}
    for name in (name for name in a if name in b):
        finite_a, finite_b = ({i: v for i, v in side[name].items() if math.isfinite(v)} for side in (a, b))
        if in_both(finite_a, finite_b):
            found[name] = compare_paired(finite_a, finite_b, seed=seed)
    return found


@dataclass(frozen=True, kw_only=True)
class PairedOverSeeds:
    """One metric of A against B, each trained with several seeds."""

    paired: Paired
    """On the means over the seeds of both, a prompt each: its interval is about other prompts, not about other seeds."""
    by_seed: dict[int, float]
    """Seed -> mean difference over the prompts: how far another seed may be from it."""

    def to_json(self) -> dict[str, Any]:
        return {
            **self.paired.to_json(),
            "by_seed": {str(seed): value for seed, value in self.by_seed.items()},
        }


def compare_over_seeds(
    a: Mapping[int, Mapping[str, float]], b: Mapping[int, Mapping[str, float]], *, seed: int = 0
) -> PairedOverSeeds | None:
    """A - B on the same prompts and seeds, paired by prompt.

        d_i = mean_s a_si - mean_s b_si over the seeds s of both;   then as `compare_paired`
        by_seed[s] = mean_i (a_si - b_si)

    Ignores how seeds differ: the prompts are the units of the interval and of the tests. Prompts without a finite value for
    every one of these seeds, of A and of B, are left out.

    Args:
        a, b: seed -> prompt id -> value; any unit.
        seed: of the bootstrap and of the drawn sign flips.
    Returns:
        None where they have no seed, or no such prompt, in common.
    """
    seeds = [s for s in a if s in b]
    of_both = [side[s] for s in seeds for side in (a, b)]
    first = of_both[0] if of_both else {}
    prompts = [i for i in first if all(math.isfinite(values.get(i, math.nan)) for values in of_both)]
    if not prompts:
        return None
    mean_a, mean_b = (
        {i: math.fsum(side[s][i] for s in seeds) / len(seeds) for i in prompts} for side in (a, b)
    )
    by_seed = {s: math.fsum(a[s][i] - b[s][i] for i in prompts) / len(prompts) for s in seeds}
    return PairedOverSeeds(paired=compare_paired(mean_a, mean_b, seed=seed), by_seed=by_seed)
