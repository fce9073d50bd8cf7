"""When a claim holds, and the intervals behind simulated numbers."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from lab_sample import sample
from understudy.files import finite
from understudy.theory.intervals import CONFIDENCE, bounded_mean_interval, mean_interval, proportion_interval
from understudy.theory.outcome import Outcome, Row
from understudy.theory.table import EXPERIMENTS


def row(relation, bound, measured, low=None, high=None, **more):
    return Row(
        claim="c", source="s", relation=relation, bound=bound, measured=measured, low=low, high=high, **more
    )


@pytest.mark.parametrize(
    ("relation", "bound", "numbers", "holds"),
    [
        ("<=", 1.0, (1.0,), "yes"),
        ("<=", 1.0, (1.0001,), "no"),
        ("<=", 1.0, (0.5, 0.4, 1.0), "yes"),
        ("<=", 1.0, (0.9, 0.8, 1.1), "cannot tell"),
        ("<=", 1.0, (1.2, 1.1, 1.3), "no"),
        (">=", 1.0, (1.0,), "yes"),
        (">=", 1.0, (0.9999,), "no"),
        (">=", 1.0, (1.2, 1.0, 1.3), "yes"),
        (">=", 1.0, (1.2, 0.9, 1.3), "cannot tell"),
        (">=", 1.0, (0.5, 0.4, 0.9), "no"),
        ("=", 1.0, (1.0,), "yes"),
        ("=", 1.0, (1.0001,), "no"),
        ("=", 1.0, (1.2, 1.0, 1.4), "yes"),
        ("=", 1.0, (1.2, 1.1, 1.4), "no"),
        ("=", 1.0, (0.8, 0.7, 0.9), "no"),
        ("<=", math.nan, (1.0,), "cannot tell"),
        ("=", 1.0, (math.nan,), "cannot tell"),
        (">=", 1e9, (math.inf,), "yes"),
        ("<=", 1.0, (0.5, -math.inf, math.inf), "cannot tell"),
        ("~", 1.0, (1.0,), "not judged"),
        ("~", 1.0, (9.0, 8.0, 10.0), "not judged"),
        ("~", 1.0, (math.nan,), "not judged"),
    ],
)
def test_when_a_claim_holds(relation, bound, numbers, holds):
    assert row(relation, bound, *numbers).holds == holds


@pytest.mark.parametrize("relation", ["<=", ">=", "="])
def test_tolerance_is_absolute_and_on_the_right_side(relation):
    above, below = row(relation, 1.0, 1.05, tolerance=0.1), row(relation, 1.0, 0.95, tolerance=0.1)
    assert above.holds == below.holds == "yes"
    assert row(relation, 1.0, 1.15, tolerance=0.1).holds == ("yes" if relation == ">=" else "no")
    assert row(relation, 1.0, 0.85, tolerance=0.1).holds == ("yes" if relation == "<=" else "no")


def test_a_refuted_claim_is_as_expected_while_it_fails():
    assert row("=", 1, 2, is_refuted=True).is_as_expected
    assert not row("=", 1, 1, is_refuted=True).is_as_expected
    assert not row("=", 1, 2).is_as_expected
    assert row("<=", 1, 1, 0.5, 1.5).is_as_expected  # cannot tell is no failure
    assert row("~", 1, 2).is_as_expected  # nothing is claimed
    with pytest.raises(ValueError, match="cannot be refuted, got 'c'"):
        row("~", 1, 2, is_refuted=True)
    assert sample().is_as_expected
    assert not Outcome(rows=(row("=", 1, 2),), panels=(), reading=()).is_as_expected


def test_a_record_survives_json():
    record = finite(sample().as_record())
    assert json.loads(json.dumps(record))["rows"][3]["holds"] == "no"
    assert record["panels"][0]["lines"][0]["y"] == [0.5, None, 0.05]


def test_proportion_interval_is_clopper_pearson():
    low, high = proportion_interval(7, 50)
    tail = (1 - CONFIDENCE) / 2
    assert stats.binom.sf(6, 50, low) == pytest.approx(tail, rel=1e-6)
    assert stats.binom.cdf(7, 50, high) == pytest.approx(tail, rel=1e-6)
    assert proportion_interval(0, 10)[0] == 0
    assert proportion_interval(10, 10)[1] == 1
    for bad in ((-1, 3), (4, 3), (0, 0)):
        with pytest.raises(ValueError, match="expected, got"):
            proportion_interval(*bad)


def test_mean_interval_by_hand():
    # mean 2, standard deviation 1, n = 3: t quantile with two degrees of freedom at 0.9995 is 31.5991
    mean, low, high = mean_interval(np.array([1.0, 2.0, 3.0]))
    assert (mean, high - mean) == pytest.approx((2.0, 31.5991 / math.sqrt(3)), rel=1e-5)
    assert mean - low == pytest.approx(high - mean)
    assert mean_interval(np.array([4.0])) == (4.0, -math.inf, math.inf)


def test_bounded_mean_interval_covers_rare_events():
    """A rare event that is never seen among 200: Student's t would say exactly 0."""
    assert mean_interval(np.zeros(200))[2] == 0
    mean, low, high = bounded_mean_interval(np.zeros(200), 0.0, 1.0)
    # variance 0: 7 ln(4 / 0.001) / (3 * 199)
    assert (mean, low) == (0.0, 0.0)
    assert high == pytest.approx(7 * math.log(4000) / 597)
    generator = np.random.default_rng(0)
    # Covers with 99.9 % each; the chance that two or more of 300 miss is below 0.04, and in fact the bound is loose.
    draws = generator.random((300, 400)) < 0.03
    missed = sum(not lo <= 0.03 <= hi for _, lo, hi in (bounded_mean_interval(d * 1.0, 0, 1) for d in draws))
    assert missed <= 1
    with pytest.raises(ValueError, match="in another range"):
        bounded_mean_interval(np.array([0.0, 2.0]), 0, 1)


def test_every_experiment_has_a_module_with_the_same_interface():
    for name, experiment in EXPERIMENTS.items():
        assert experiment.name == name
        assert experiment.question.endswith("?")
