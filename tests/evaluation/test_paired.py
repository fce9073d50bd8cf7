"""Two evaluations of the same prompts: differences, their intervals and tests, against enumeration and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from understudy.evaluation.paired import compare_evaluations, compare_over_seeds, compare_paired
from understudy.evaluation.statistics import bootstrap_mean


def named(values) -> dict[str, float]:
    return {f"p{i}": float(v) for i, v in enumerate(values)}


def sign_oracle(higher: int, lower: int) -> float:
    """Every equally likely way in which higher + lower signs can fall, as extreme as this one or more."""
    n = higher + lower
    outcomes = [sum(signs) for signs in itertools.product((0, 1), repeat=n)]
    probability = {k: outcomes.count(k) / 2**n for k in range(n + 1)}
    return sum(p for p in probability.values() if p <= probability[higher] * (1 + 1e-9))


def test_by_hand():
    a, b = named([1, 1, 1, 1, 1, 1, 0, 0]), named([0, 0, 0, 0, 0, 0, 0, 1])
    found = compare_paired(a, b)
    assert (found.value_a, found.value_b, found.difference.value, found.difference.n) == (
        0.75,
        0.125,
        0.625,
        8,
    )
    assert (found.num_higher, found.num_lower) == (6, 1)
    assert found.p_sign == pytest.approx(16 / 128)  # two-sided: 2 (1 + 7) / 2^7
    assert found.p_sign == pytest.approx(sign_oracle(6, 1))
    assert found.verdict == "cannot tell"


@pytest.mark.parametrize(("higher", "lower"), [(0, 0), (5, 0), (3, 3), (2, 7), (8, 1)])
def test_the_sign_test_is_the_enumerated_one(higher, lower):
    differences = [1.0] * higher + [-1.0] * lower + [0.0] * 3
    found = compare_paired(named(differences), named([0.0] * len(differences)))
    assert found.p_sign == pytest.approx(sign_oracle(higher, lower) if higher + lower else 1.0)
    expected = (
        "cannot tell" if sign_oracle(higher, lower) >= 0.05 else ("higher" if higher > lower else "lower")
    )
    assert found.verdict == ("cannot tell" if not higher + lower else expected)


def test_pairs_go_by_id_not_by_place():
    a = {"x": 1.0, "y": 0.0, "only a": 1.0}
    b = {"only b": 0.0, "y": 0.0, "x": 1.0}
    found = compare_paired(a, b)
    assert (found.difference.value, found.difference.n, found.num_higher, found.num_lower) == (0.0, 2, 0, 0)
    with pytest.raises(ValueError, match="needs prompts that both have, got 1 and 1"):
        compare_paired({"x": 1.0}, {"y": 1.0})


def test_the_interval_is_the_bootstrap_of_the_differences():
    rng = np.random.default_rng(3)
    a, b = rng.random(30), rng.random(30)
    found = compare_paired(named(a), named(b), seed=7)
    assert found.difference == bootstrap_mean([float(x - y) for x, y in zip(a, b, strict=True)], seed=7)
    # Resampled here by hand: the percentiles of 20,000 means agree up to the noise of 2,000 draws.
    means = (a - b)[rng.integers(0, 30, size=(20000, 30))].mean(axis=1)
    spread = means.std()
    assert abs(found.difference.low - np.quantile(means, 0.025)) < 0.25 * spread
    assert abs(found.difference.high - np.quantile(means, 0.975)) < 0.25 * spread


def test_no_spread_gives_no_interval():
    for a, b in (([0.9, 1.0], [0.4, 0.5]), ([1, 0, 1], [1, 0, 1]), ([1], [0])):
        found = compare_paired(named(a), named(b))
        assert (found.difference.low, found.difference.high) == (None, None)
        assert found.verdict == "cannot tell"


def test_the_bootstrap_covers_and_pairing_is_what_makes_it_narrow():
    """A is right 10 points more often than B on the same prompts, whose difficulty they share; 1,000 worlds of 100 prompts.

    The share of intervals that hold 0.1 is near 0.94 (the percentile bootstrap is a little narrow); Binomial(1000, 0.94)
    leaves [0.91, 0.97] with probability below 1e-4.
    """
    rng = np.random.default_rng(11)
    hits, widths, unpaired = 0, [], []
    for _ in range(1000):
        difficulty = rng.uniform(0, 0.9, size=100)
        luck = rng.random(100)  # the same random numbers for both, as in an evaluation
        a, b = luck < difficulty + 0.1, luck < difficulty
        estimate = bootstrap_mean((a * 1.0 - b * 1.0).tolist(), seed=1, num_resamples=400)
        hits += estimate.low <= 0.1 <= estimate.high
        widths.append(estimate.high - estimate.low)
        unpaired.append(2 * 1.96 * math.sqrt((a.var() + b.var()) / 100))
    assert 0.91 <= hits / 1000 <= 0.97
    assert np.mean(widths) < 0.5 * np.mean(unpaired)


def test_every_metric_that_both_have_and_finite_prompts_only():
    a = {"accuracy": named([1, 0, 1]), "nats": named([1.0, math.inf, 2.0]), "only": named([1])}
    b = {"accuracy": named([0, 0, 1]), "nats": named([0.5, 1.0, 1.0])}
    found = compare_evaluations(a, b)
    assert list(found) == ["accuracy", "nats"]
    assert (found["nats"].difference.n, found["nats"].difference.value) == (2, 0.75)


def test_means_that_are_no_rates_are_judged_by_sign_flips():
    a, b = named(np.linspace(0.2, 0.9, 12)), named(np.linspace(0.2, 0.9, 12) - np.linspace(0.01, 0.2, 12))
    found = compare_paired(a, b)
    assert found.p_sign_flip == pytest.approx(2 / 2**12)
    assert found.verdict == "higher"
    assert compare_paired(b, a).verdict == "lower"


def test_over_seeds_by_hand():
    """Prompt by prompt the mean over the seeds of both; seed 9, which B has not, and p3, which one of them has not, are out."""
    a = {0: named([1, 1, 0, 1]), 1: named([1, 0, 0, 1]), 9: named([0, 0, 0, 0])}
    b = {1: named([0, 0, 1]), 0: named([0, 0, 0])}
    found = compare_over_seeds(a, b)
    assert found is not None
    # A: 1, 1/2, 0; B: 0, 0, 1/2.
    assert (found.paired.value_a, found.paired.value_b) == (0.5, pytest.approx(1 / 6))
    assert (found.paired.difference.value, found.paired.difference.n) == (pytest.approx(1 / 3), 3)
    assert (found.paired.num_higher, found.paired.num_lower) == (2, 1)
    # Of the 8 signs of 1, 1/2, 1/2 a sum of 1 or more in size comes with +++, ++-, +-+ and their mirror images.
    assert found.paired.p_verdict == found.paired.p_sign_flip == 6 / 8
    assert found.by_seed == {0: pytest.approx(2 / 3), 1: pytest.approx(0.0)}
    assert found.to_json()["by_seed"] == {"0": pytest.approx(2 / 3), "1": pytest.approx(0.0)}


def test_over_one_seed_it_is_the_plain_comparison():
    a, b = named([1, 0, 1, 1]), named([0, 0, 1, 0])
    found = compare_over_seeds({3: a}, {3: b}, seed=5)
    assert found is not None
    assert found.paired == compare_paired(a, b, seed=5)


def test_over_seeds_without_any_in_common_there_is_nothing():
    a = named([1.0, math.inf])
    assert compare_over_seeds({0: a}, {1: a}) is None
    assert compare_over_seeds({}, {}) is None
    assert compare_over_seeds({0: a, 1: {}}, {0: a, 1: a}) is None
    found = compare_over_seeds({0: a}, {0: a})
    assert found is not None
    assert found.paired.difference.n == 1  # what is not finite is left out
