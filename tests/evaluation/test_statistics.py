"""Intervals and tests against hand-computed numbers, exact enumeration, and oracles in plain Python."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.evaluation.statistics import (
    MAX_EXACT_PAIRS,
    Estimate,
    bootstrap_mean,
    mean_interval,
    paired_difference,
    pass_at_k,
    rate_over_seeds,
    ratio_interval,
    wilson,
)

Z95 = 1.959963984540054
T95_2DF = 4.302652729911275  # 0.975 quantile of Student's t with 2 degrees of freedom


def test_estimate_json_has_no_nan():
    assert json.loads(json.dumps(Estimate(0.5, None, None, 1).to_json(), allow_nan=False)) == {
        "value": 0.5,
        "low": None,
        "high": None,
        "n": 1,
    }
    assert Estimate(math.nan, math.inf, 1.0, 2).to_json() == {"value": None, "low": None, "high": 1.0, "n": 2}


def test_wilson_by_hand():
    estimate = wilson(8, 10)
    # center (8 + z^2/2) / (10 + z^2), half z sqrt(8*2/10 + z^2/4) / (10 + z^2)
    assert (estimate.value, estimate.n) == (0.8, 10)
    assert estimate.low == pytest.approx(0.490162, abs=1e-6)
    assert estimate.high == pytest.approx(0.943318, abs=1e-6)
    # All of n right: low = n / (n + z^2), high exactly 1.
    assert wilson(256, 256).low == pytest.approx(256 / (256 + Z95**2), abs=1e-12)
    assert wilson(256, 256).high == 1.0
    assert wilson(0, 256).low == 0.0


@pytest.mark.parametrize(
    ("rate", "n", "least"), [(0.1, 50, 0.93), (0.5, 50, 0.93), (0.02, 256, 0.93), (0.9, 20, 0.93)]
)
def test_wilson_coverage_by_exact_enumeration(rate, n, least):
    covered = 0.0
    for k in range(n + 1):
        estimate = wilson(k, n)
        if estimate.low <= rate <= estimate.high:
            covered += math.comb(n, k) * rate**k * (1 - rate) ** (n - k)
    assert least <= covered <= 0.99  # the upper limit: not wide for the sake of safety


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 400), st.data())
def test_wilson_contains_the_rate_and_mirrors(n, data):
    k = data.draw(st.integers(0, n))
    estimate, mirrored = wilson(k, n), wilson(n - k, n)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.low == pytest.approx(1 - mirrored.high, abs=1e-12)


def test_mean_interval_by_hand():
    estimate = mean_interval([1.0, 2.0, 3.0])  # s = 1, half = t / sqrt(3)
    assert (estimate.value, estimate.n) == (2.0, 3)
    assert estimate.low == pytest.approx(2 - T95_2DF / math.sqrt(3), abs=1e-9)
    assert estimate.high == pytest.approx(2 + T95_2DF / math.sqrt(3), abs=1e-9)
    assert mean_interval([0.9, 1.0, 0.95], bounds=(0, 1)).high == 1.0
    assert mean_interval([0.0, 0.1, 0.05], bounds=(0, 1)).low == 0.0
    # 80 %: the 0.9 quantile with 1 degree of freedom is tan(0.4 pi) = 3.0777; s / sqrt(2) = 1/2
    assert mean_interval([0.0, 1.0], 0.8).high == pytest.approx(0.5 + 0.5 * math.tan(0.4 * math.pi), abs=1e-9)


def test_one_seed_cannot_tell():
    assert mean_interval([0.7]) == Estimate(0.7, None, None, 1)
    assert rate_over_seeds([0.7], 256) == Estimate(0.7, None, None, 1)
    assert bootstrap_mean([0.7], seed=0) == Estimate(0.7, None, None, 1)


def test_mean_interval_covers_for_normal_seeds():
    # 4,000 draws of 3 seeds: the covered share has standard deviation 0.0034, so the window is +- 4.3 of them
    # (false alarm about 2e-5; the generator is seeded, so it either passes always or never).
    draws = np.random.default_rng(7).normal(size=(4000, 3))
    half = T95_2DF * draws.std(axis=1, ddof=1) / math.sqrt(3)
    covered = np.abs(draws.mean(axis=1)) <= half
    assert abs(covered.mean() - 0.95) < 0.015
    for row, expected in zip(draws[:200].tolist(), covered[:200].tolist(), strict=True):
        estimate = mean_interval(row)
        assert (estimate.low <= 0 <= estimate.high) is expected


def test_rate_over_seeds_is_t_when_seeds_differ_and_wilson_when_they_agree():
    spread = rate_over_seeds([0.2, 0.5, 0.8], 1000)  # s = 0.3: half = 0.745 > Wilson's 0.031
    assert (spread.low, spread.high, spread.n) == (0.0, 1.0, 3)
    spread = rate_over_seeds([0.45, 0.5, 0.55], 10_000)
    assert spread.high == pytest.approx(0.5 + T95_2DF * 0.05 / math.sqrt(3), abs=1e-9)
    agree = rate_over_seeds([1.0, 1.0, 1.0], 256)
    assert agree.low == pytest.approx(
        256 / (256 + Z95**2), abs=1e-12
    )  # one seed's prompts, not three times as many
    assert (agree.value, agree.high, agree.n) == (1.0, 1.0, 3)


def test_bootstrap_mean_is_seeded_and_has_the_right_width():
    values = np.random.default_rng(3).exponential(size=400).tolist()
    estimate = bootstrap_mean(values, seed=11)
    assert estimate == bootstrap_mean(values, seed=11)
    assert estimate != bootstrap_mean(values, seed=12)
    assert estimate.value == pytest.approx(sum(values) / 400, abs=1e-12)
    # The bootstrap's own standard error is s / sqrt(n) (population s); 2,000 resamples know the width to a
    # few percent.
    mean = sum(values) / 400
    standard_error = math.sqrt(sum((v - mean) ** 2 for v in values) / 400) / 20
    assert estimate.high - estimate.low == pytest.approx(2 * Z95 * standard_error, rel=0.1)
    assert bootstrap_mean([2.0] * 5, seed=0) == Estimate(2.0, 2.0, 2.0, 5)


def test_pass_at_k_by_enumeration():
    for n in range(1, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                picks = list(itertools.combinations([True] * c + [False] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, picks)) / len(picks), abs=1e-15)
    assert pass_at_k(5000, 1, 2500) == 0.5  # C(5000, 2500) is far above the largest float
    assert pass_at_k(10**6, 1, 1) == 1e-6  # no cancellation in 1 - (1 - small)


def test_pass_at_k_is_unbiased():
    rate, n, k = 0.3, 6, 3
    mean = sum(math.comb(n, c) * rate**c * (1 - rate) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1))
    assert mean == pytest.approx(1 - (1 - rate) ** k, abs=1e-12)


def sign_flip_oracle(difference: list[float]) -> float:
    observed = abs(math.fsum(difference))
    flips = list(itertools.product((1, -1), repeat=len(difference)))
    extreme = sum(
        abs(math.fsum(s * d for s, d in zip(f, difference, strict=True))) >= observed - 1e-12 for f in flips
    )
    return extreme / len(flips)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-8, 8), min_size=2, max_size=7))
def test_sign_flip_against_enumeration(difference):
    result = paired_difference([d / 8 for d in difference], [0.0] * len(difference))
    assert result.p_sign_flip == pytest.approx(sign_flip_oracle([d / 8 for d in difference]), abs=1e-12)


def test_paired_difference_by_hand():
    a, b = (
        [0.9, 0.8, 0.95, 0.85],
        [0.5, 0.6, 0.65, 0.55],
    )  # d = 0.4, 0.2, 0.3, 0.3; mean 0.3; s = sqrt(0.02 / 3)
    result = paired_difference(a, b)
    standard_error = math.sqrt(0.02 / 3) / 2
    t95_3df = 3.182446305284263
    assert result.difference.value == pytest.approx(0.3, abs=1e-12)
    assert result.difference.low == pytest.approx(0.3 - t95_3df * standard_error, abs=1e-9)
    # Student's t with 3 degrees of freedom has the closed-form tail 1/2 - (atan(u) + u / (1 + u^2)) / pi, u =
    # t/sqrt(3)
    u = 0.3 / standard_error / math.sqrt(3)
    assert result.p_paired_t == pytest.approx(
        2 * (0.5 - (math.atan(u) + u / (1 + u * u)) / math.pi), abs=1e-9
    )
    assert result.p_sign_flip == 2 / 16  # all signs equal: the data and its mirror
    assert result.p_mcnemar is None
    assert result.verdict == "higher"
    swapped = paired_difference(b, a)
    assert swapped.verdict == "lower"
    assert swapped.difference.high == pytest.approx(-result.difference.low, abs=1e-12)
    assert json.loads(json.dumps(result.to_json()))["verdict"] == "higher"


def test_equal_differences_leave_only_the_sign_flips():
    three = paired_difference([1.0, 0.9, 0.95], [0.5, 0.4, 0.45])
    assert (three.p_paired_t, three.p_sign_flip, three.verdict) == (
        None,
        0.25,
        "cannot tell",
    )  # 0.9 - 0.4 != 0.5
    six = paired_difference([3.0] * 6, [2.0] * 6)
    assert (six.p_paired_t, six.p_sign_flip, six.verdict) == (None, 2 / 64, "higher")
    assert paired_difference([3.0] * 3, [2.0] * 3).verdict == "cannot tell"
    assert paired_difference([0.7], [0.1]).verdict == "cannot tell"


def test_mcnemar_by_hand():
    # 40 prompts: 9 right for a only, 1 for b only: 2 * (C(10,0) + C(10,1)) / 2^10 = 22 / 1024
    a = [1] * 9 + [0] + [1] * 20 + [0] * 10
    b = [0] * 9 + [1] + [1] * 20 + [0] * 10
    result = paired_difference(a, b)
    assert result.p_mcnemar == pytest.approx(22 / 1024, abs=1e-12)
    assert result.difference.value == pytest.approx(8 / 40, abs=1e-12)
    assert result.verdict == "higher"
    assert paired_difference([0, 1, 1], [0, 1, 1]).p_mcnemar == 1.0
    # 5 to 0 out of 200: exact 2 / 32 = 0.0625. The t test would reject (t = 2.25): McNemar decides for 0/1
    # outcomes.
    few = paired_difference([1] * 5 + [0] * 195, [0] * 200)
    assert (few.p_mcnemar, few.verdict) == (0.0625, "cannot tell")
    assert few.p_paired_t < 0.05


def test_many_pairs_draw_seeded_flips():
    generator = np.random.default_rng(5)
    b = generator.normal(size=MAX_EXACT_PAIRS + 24)
    a = b + generator.normal(0.3, 1.0, size=b.size)
    result = paired_difference(a.tolist(), b.tolist(), seed=1)
    assert result.p_sign_flip == paired_difference(a.tolist(), b.tolist(), seed=1).p_sign_flip
    # 9,999 draws: the p-value's standard error is at most 0.005; here both tests ask nearly the same
    # question.
    assert result.p_sign_flip == pytest.approx(result.p_paired_t, abs=0.03)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson(3, 0), r"n >= 1.*n=0"),
        (lambda: wilson(4, 3), r"successes=4, n=3"),
        (lambda: wilson(1, 3, 95), r"confidence must be in \(0, 1\), got 95"),
        (lambda: mean_interval([]), r"mean_interval needs a non-empty"),
        (lambda: mean_interval([1.0, math.nan]), r"got nan at index 1"),
        (lambda: rate_over_seeds([0.5, 1.5], 10), r"\[0, 1\], got 0.5 to 1.5"),
        (lambda: rate_over_seeds([0.5, 0.6], 0), r"num_prompts must be >= 1, got 0"),
        (lambda: bootstrap_mean([1.0, 2.0], seed=0, num_resamples=5), r">= 100.*got 5"),
        (lambda: pass_at_k(5, 6, 1), r"n=5, c=6, k=1"),
        (lambda: pass_at_k(5, 2, 6), r"k=6"),
        (lambda: paired_difference([1.0], [1.0, 2.0]), r"got 1 and 2 values"),
    ],
)
def test_errors_say_what_was_found(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_ratio_interval_by_hand() -> None:
    # Two trajectories: 1 right of 2 tokens, 3 right of 4. ratio = 4/6; residuals 1 - 2*2/3 = -1/3 and 3 - 4*2/3 = 1/3;
    # sd of the ratio = sqrt(2/1 * (1/9 + 1/9)) / 6 = (2/3) / 6 = 1/9; t(1 d.o.f., 97.5 %) = 12.7062.
    found = ratio_interval([1, 3], [2, 4])
    assert found.value == pytest.approx(2 / 3)
    assert found.n == 2
    assert found.high is not None
    assert found.high - found.value == pytest.approx(12.7062 / 9, rel=1e-4)


def test_ratio_interval_covers_when_lengths_vary() -> None:
    # 400 data sets of 40 trajectories with 1..9 tokens, token success .3 with a shared trajectory effect. Coverage of a
    # 95 % interval: binomial sd .011, and the delta method is a little narrow, so below .90 has probability < 1e-4.
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        counts = rng.integers(1, 10, size=40)
        rates = np.clip(0.3 + 0.2 * rng.standard_normal(40), 0, 1)
        found = ratio_interval(rng.binomial(counts, rates).tolist(), counts.tolist())
        truth = float(np.clip(0.3 + 0.2 * rng.standard_normal(20_000), 0, 1).mean())
        hits += found.low is not None and found.high is not None and found.low <= truth <= found.high
    assert hits / 400 > 0.90


def test_ratio_interval_edges() -> None:
    assert ratio_interval([2.0], [4]).low is None
    assert math.isinf(ratio_interval([math.inf, 1.0], [1, 1]).value)
    assert ratio_interval([math.inf, 1.0], [1, 1]).low is None
    with pytest.raises(ValueError, match="all counts are 0"):
        ratio_interval([0.0], [0])
    with pytest.raises(ValueError, match="2 sums and 1 counts"):
        ratio_interval([0.0, 1.0], [1])
