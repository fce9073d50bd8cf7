"""The probe of forks: its numbers by hand, its intervals against worlds whose truth is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from understudy.diagnostics import forks
from understudy.diagnostics.forks import ProbedToken, probe_forks
from understudy.evaluation.statistics import wilson


def tokens(group, trajectory, *pairs):
    """(loss, distance) of one trajectory's probed tokens."""
    return [
        ProbedToken(trajectory=trajectory, group=group, loss_nats=loss, distance=distance)
        for loss, distance in pairs
    ]


def by_group(probe):
    return {row.group: row for row in probe.quartiles}


def test_by_hand():
    """Low distances 0, 0.1 .. 0.4: Q3 = 0.3. Of five high ones 0.1 and 0.2 lie below; 0.3 itself does not."""
    probe = probe_forks(
        [
            *tokens("low", "a", (0.1, 0.0), (0.2, 0.1), (0.1, 0.2)),
            *tokens("low", "b", (0.1, 0.3), (0.3, 0.4)),
            *tokens("high", "a", (5, 0.1), (6, 0.9), (7, 0.2)),
            *tokens("high", "c", (8, 0.3), (9, 0.6)),
        ],
        seed=0,
        num_resamples=200,
    )
    assert probe.false_alarm_share.value == pytest.approx(0.4)
    assert probe.median_gap.value == pytest.approx(0.3 - 0.2)
    rows = by_group(probe)
    assert list(rows) == ["high", "low"]
    low, high = rows["low"], rows["high"]
    assert (low.lower.value, low.median.value, low.upper.value) == pytest.approx((0.1, 0.2, 0.3))
    assert (high.lower.value, high.median.value, high.upper.value) == pytest.approx((0.2, 0.3, 0.6))
    assert (low.num_tokens, low.median.n, probe.pearson.n) == (5, 2, 3)
    loss = [0.1, 0.2, 0.1, 0.1, 0.3, 5, 6, 7, 8, 9]
    distance = [0, 0.1, 0.2, 0.3, 0.4, 0.1, 0.9, 0.2, 0.3, 0.6]
    assert probe.pearson.value == pytest.approx(stats.pearsonr(loss, distance).statistic)
    assert probe.spearman.value == pytest.approx(stats.spearmanr(loss, distance).statistic)
    assert math.isnan(probe.spearman_random.value)
    assert probe.spearman_random.low is None


def test_correlations_of_random_tokens_leave_the_others_out():
    """A perfect line among random tokens, whatever was chosen for its loss."""
    probe = probe_forks(
        [
            *tokens("random", "a", (1, 0.1), (2, 0.2)),
            *tokens("random", "b", (3, 0.3), (4, 0.4)),
            *tokens("high", "a", (9, 0.0)),
            *tokens("low", "b", (0, 0.9)),
        ],
        seed=0,
        num_resamples=100,
    )
    assert probe.pearson_random.value == pytest.approx(1)
    assert probe.pearson.value < 0
    assert (probe.pearson_random.low, probe.pearson_random.n) == (None, 2)  # equal resamples are no certainty


def world(rng, num_trajectories, num_each, spread):
    """Distances: a normal place of each trajectory, of the group, and noise; losses say nothing within a group."""
    made = []
    for i in range(num_trajectories):
        place = spread * rng.standard_normal()
        for group, shift in (("high", 0.5), ("random", 0.2), ("low", 0.0)):
            noise = rng.standard_normal(num_each)
            made += tokens(group, str(i), *((rng.random(), shift + place + x) for x in noise))
    return made


def test_intervals_cover_the_truth_where_tokens_of_a_trajectory_are_alike():
    """40 data sets of 30 trajectories, four numbers with a known truth; nominal coverage 0.95.

    Covering 30 or fewer of 40 has probability 2e-5 at 0.95 and 0.005 at 0.9. Resampling tokens instead of trajectories
    covers the median of a group in about half of them.
    """
    spread = 1.0
    total = math.sqrt(1 + spread**2)
    truth = {
        "share": stats.norm.cdf((stats.norm.ppf(0.75) * total - 0.5) / total),
        "median": 0.5,
        "gap": 0.5,
        "pearson": 0.0,
    }
    covered = dict.fromkeys(truth, 0)
    for trial in range(40):
        rng = np.random.default_rng([7, trial])
        probe = probe_forks(world(rng, 30, 6, spread), seed=trial, num_resamples=100)
        found = {
            "share": probe.false_alarm_share,
            "median": by_group(probe)["high"].median,
            "gap": probe.median_gap,
            "pearson": probe.pearson_random,
        }
        for name, estimate in found.items():
            assert estimate.n == 30
            assert estimate.low <= estimate.value <= estimate.high
            covered[name] += estimate.low <= truth[name] <= estimate.high
    assert min(covered.values()) > 30, covered


def test_the_verdict():
    rng = np.random.default_rng(0)
    near = [*tokens("low", "a", (0, 0.1)), *tokens("high", "a", (9, 0.2))]
    probe = probe_forks(near, seed=0, num_resamples=100)
    assert (probe.verdict, probe.median_gap.low) == ("cannot tell", None)
    lone = [*tokens("low", "a", (0, 0.1), (0, 0.5)), *tokens("high", "a", (9, 0.2), (9, 0.9))]
    share = probe_forks(lone, seed=0, num_resamples=100).false_alarm_share
    assert (share.value, share.low, share.high) == (0.5, None, None)  # one trajectory
    alike = [
        t for i in range(12) for name in ("low", "high") for t in tokens(name, str(i), (i, rng.random()))
    ]
    probe = probe_forks(alike, seed=0, num_resamples=100)
    assert probe.median_gap.low < 0 < probe.median_gap.high
    assert probe.verdict == "cannot tell"
    apart = [
        *(t for i in range(12) for t in tokens("low", str(i), *((0.1, x) for x in rng.random(5)))),
        *(t for i in range(12) for t in tokens("high", str(i), *((9, 3 + x) for x in rng.random(5)))),
    ]
    assert probe_forks(apart, seed=0, num_resamples=100).verdict == "higher"
    mirrored = [
        ProbedToken(trajectory=t.trajectory, group=t.group, loss_nats=t.loss_nats, distance=-t.distance)
        for t in apart
    ]
    assert probe_forks(mirrored, seed=0, num_resamples=100).verdict == "lower"


def test_a_share_that_never_varies_is_not_certain():
    """No false alarm among 6 trajectories: Wilson's interval of 0 out of 6, and nothing for the rest."""
    data = [
        t for i in range(6) for t in (*tokens("low", str(i), (0, 0.1)), *tokens("high", str(i), (9, 0.9)))
    ]
    share = probe_forks(data, seed=0, num_resamples=100).false_alarm_share
    assert (share.value, share.low, share.n) == (0, 0, 6)
    assert share.high == pytest.approx(wilson(0, 6).high)
    gap = probe_forks(data, seed=0, num_resamples=100).median_gap
    assert (gap.low, gap.high) == (None, None)


def test_a_group_that_few_trajectories_have():
    """One of three trajectories has low-loss tokens: 8 of 27 resamples are without it, and no interval is given."""
    data = [
        *tokens("low", "a", (0, 0.1), (0, 0.2)),
        *(t for name in "abc" for t in tokens("high", name, (9, 0.9), (8, 0.15))),
    ]
    probe = probe_forks(data, seed=0, num_resamples=100)
    assert (probe.false_alarm_share.value, probe.false_alarm_share.low) == (0.5, None)
    assert probe.false_alarm_share.n == 1
    assert by_group(probe)["high"].median.n == 3


def test_no_interval_where_more_than_one_resample_in_twenty_says_nothing():
    """Two of five have low tokens: (3/5)^5 = 8 % of resamples have none."""
    data = [
        *(t for name in "ab" for t in tokens("low", name, (0, 0.1), (0, 0.5))),
        *(t for name in "abcde" for t in tokens("high", name, (9, 0.9), (8, 0.15))),
    ]
    probe = probe_forks(data, seed=0, num_resamples=400)
    assert (probe.false_alarm_share.low, probe.false_alarm_share.n) == (None, 2)
    assert by_group(probe)["low"].median.low is None


def test_resamples_are_whole_trajectories():
    """Three trajectories of 1, 2 and 3 tokens: how many tokens a resample has tells which it drew."""
    data = [
        *tokens("low", "a", (0, 1.0)),
        *tokens("low", "b", *[(0, 2.0)] * 2),
        *tokens("low", "c", *[(0, 4.0)] * 3),
    ]
    table = forks._table(data, 100, 0.95)
    drawn = forks._resampled(table, lambda t: np.array([len(t.loss_N), t.distance_N.sum()]), 2000, 0)
    # Drawn counts (i, j, k) with i + j + k = 3: tokens i + 2j + 3k, sum of distances i + 4j + 12k.
    possible = {
        (i + 2 * j + 3 * k, i + 4 * j + 12 * k) for i in range(4) for j in range(4 - i) for k in [3 - i - j]
    }
    assert {tuple(row) for row in drawn.tolist()} == possible
    assert drawn[:, 0].mean() == pytest.approx(6, abs=0.15)  # sqrt(2) / sqrt(2000) = 0.03


def test_the_percentiles_that_nine_trajectories_need():
    """Phi(-t(8) sqrt(9/8)) = 0.0072 of evenly spread resamples; t alone would take 0.0106, the plain percentile 0.025."""
    table = forks._table([t for i in range(9) for t in tokens("high", str(i), (i, 0.5))], 100, 0.95)
    found = forks._estimate("high/median", 0.5, np.linspace(0, 1, 1001), table, 0.95)
    level = stats.norm.cdf(-stats.t.ppf(0.975, 8) * math.sqrt(9 / 8))
    assert (found.low, found.value, found.high, found.n) == pytest.approx((level, 0.5, 1 - level, 9))
    some = np.where(
        np.arange(1001) % 25 == 0, np.nan, np.linspace(0, 1, 1001)
    )  # 41 of them: fewer than 1 in 20
    assert forks._estimate("high/median", 0.5, some, table, 0.95).low == pytest.approx(level, abs=1e-3)
    # The value itself is never outside.
    assert forks._estimate("high/median", 2.0, some, table, 0.95).high == 2.0


def test_what_the_seed_and_the_order_of_tokens_do():
    data = world(np.random.default_rng(1), 12, 4, 1.0)
    one = probe_forks(data, seed=0, num_resamples=100)
    assert one == probe_forks(data, seed=0, num_resamples=100)
    assert one.median_gap != probe_forks(data, seed=1, num_resamples=100).median_gap
    reverse = probe_forks(data[::-1], seed=0, num_resamples=100)
    assert reverse.spearman.value == pytest.approx(one.spearman.value)


def test_a_record_is_json():
    probe = probe_forks(tokens("high", "a", (9, 0.5)), seed=0, num_resamples=100)
    record = json.loads(json.dumps(probe.as_record(), allow_nan=False))
    assert record["verdict"] == "cannot tell"
    assert record["false_alarm_share"] == {"value": None, "low": None, "high": None, "n": 0}
    assert record["quartiles"][0]["median"]["value"] == 0.5
    assert {"pearson", "spearman", "pearson_random", "spearman_random", "median_gap"} <= record.keys()


def test_what_cannot_be_probed():
    good = tokens("high", "a", (1, 0.5))
    for bad, options, message in (
        ([], {}, "needs tokens"),
        (tokens("high", "a", (math.inf, 0.5)), {}, "must be finite"),
        (tokens("high", "a", (1, math.nan)), {}, "must be finite"),
        (tokens("middle", "a", (1, 0.5)), {}, "group must be one of high, random, low, got 'middle'"),
        (good, {"num_resamples": 99}, "num_resamples >= 100"),
        (good, {"confidence": 1.0}, "confidence in"),
    ):
        with pytest.raises(ValueError, match=message):
            probe_forks(bad, seed=0, **options)
