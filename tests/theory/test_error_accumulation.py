"""The rivals of accumulation, and the experiment that compares the three."""

import itertools
import json
import math

import numpy as np
import pytest

from understudy.theory import accumulation as acc
from understudy.theory import accumulation_rivals as rivals
from understudy.theory import accumulation_shared as shared
from understudy.theory.experiments import error_accumulation as experiment
from understudy.theory.intervals import bounded_mean_interval, proportion_interval
from understudy.theory.mdp import noised, trajectory_hellinger_sq


def close(value):
    return pytest.approx(value, rel=1e-9, abs=1e-12)


def test_uncovered_risk_by_enumeration():
    prob, coverage, num = [0.2, 0.3, 0.5], 2.5, 3
    outcomes = [
        (prob[i] * (1 / coverage if shown else 1 - 1 / coverage), i, shown)
        for i in range(3)
        for shown in (0, 1)
    ]
    expected = 0.0
    for sample in itertools.product(outcomes, repeat=num):
        covered = {i for _, i, shown in sample if shown}
        expected += (
            math.prod(p for p, _, _ in sample) * 0.5 * sum(prob[i] for i in range(3) if i not in covered)
        )
    assert rivals.uncovered_risk(np.array(prob), coverage, num) == close(expected)
    # Fails by chance with probability at most 1e-3; C = 1 gives 0.17 instead of 0.29.
    drawn = rivals.simulate_uncovered(np.array(prob), coverage, num, 3000, np.random.default_rng(0))
    _, low, high = bounded_mean_interval(drawn, 0, 0.5)
    assert low <= expected <= high
    assert rivals.uncovered_risk(np.array(prob), 1, num) < low


def test_hardest_contexts_maximise_the_risk():
    def risk(rate):
        return 4 * 0.5 * rate * (1 - rate / 8) ** 400

    prob_I = rivals.hardest_contexts(4, 8, 400)
    assert prob_I.sum() == pytest.approx(1)
    assert prob_I[0] == pytest.approx(8 / 401)
    assert risk(prob_I[0]) >= max(risk(rate) for rate in np.linspace(0.001, 0.25, 500)) - 1e-12
    assert rivals.hardest_contexts(4, 64, 10) == pytest.approx([0.25] * 4 + [0])


def test_lock_distances():
    for horizon, eta in itertools.product((2, 3, 9), (0.05, 0.2, 0.5)):
        world, codes, noise = rivals.lock_world(horizon)
        assert trajectory_hellinger_sq(world.mdp, *codes) == pytest.approx(1)
        assert acc.regret(world, codes[1]) == pytest.approx(1)
        noisy = trajectory_hellinger_sq(world.mdp, *(noised(code, eta, noise) for code in codes))
        exact = (1 - eta) ** (horizon - 1) * (1 - 2 * math.sqrt(eta / 2 * (1 - eta / 2)))
        assert noisy == close(exact)
        assert noisy <= (1 - eta) ** (horizon + 1)


@pytest.mark.parametrize("num", [0, 1, 2, 5, 6])
def test_vote_failure_by_enumeration(num):
    expected = 0.0
    for labels in itertools.product((0, 1), repeat=num):
        wrong = sum(labels)
        share = 0.5 if 2 * wrong == num else float(2 * wrong > num)
        expected += share * 0.15**wrong * 0.85 ** (num - wrong)
    assert float(rivals.vote_failure(num, 0.3)) == close(expected)


@pytest.mark.parametrize(("is_online", "num"), [(False, 12), (True, 3)])
def test_simulated_lock(is_online, num):
    # Fails by chance with probability at most 1e-3. Offline 0.29, online 0.028: neither fits the other.
    wrong = rivals.simulate_lock(10, 0.2, num, is_online, 3000, np.random.default_rng(4))
    low, high = proportion_interval(wrong, 3000)
    exact = (rivals.lock_failure(10, 0.2, num), float(rivals.vote_failure(num, 0.2)))
    assert low <= exact[is_online] <= high
    assert not low <= exact[not is_online] <= high


def test_episodes_needed():
    for needed in (1, 2, 3, 7, 8, 9, 1000):
        assert rivals.episodes_needed(lambda n, k=needed: k / n, 1.0) == needed
    with pytest.raises(ValueError, match=r"0\.5 is not reached"):
        rivals.episodes_needed(lambda _: 1.0, 0.5)


SMALL = experiment.Settings(
    horizons=(2, 4, 8),
    num_worlds=60,
    num_rare=4,
    table_episodes=300,
    table_runs=150,
    clone_rare=2,
    clone_horizon=3,
    clone_runs=4000,
    coverages=(1, 2, 4),
    lock_horizons=(2, 4),
    rival_runs=20_000,
    lock_runs=600,
)


def test_experiment():
    shares = []
    outcome = experiment.run(3, shares.append, SMALL)
    assert [row.claim for row in outcome.rows if not row.is_as_expected] == []
    assert 6 <= len(outcome.rows) <= 25
    assert all(len(row.claim) < 80 for row in outcome.rows)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    text = json.dumps(outcome.as_record())
    assert text == json.dumps(experiment.run(3, settings=SMALL).as_record())
    assert text != json.dumps(experiment.run(4, settings=SMALL).as_record())
    assert json.loads(text)["settings"]["num_worlds"] == 60
    accumulation, *_, summary = outcome.panels
    found = {line.label: list(line.y) for line in accumulation.lines}
    error = 4 * (1 / 301) * (300 / 301) ** 300
    assert found["H^2 eps"] == pytest.approx([error * 4, error * 16, error * 64])
    assert found["either, labels shared, state not moved, R = 1"] == pytest.approx([error] * 3)
    needs = [[list(line.y) for line in panel.lines[:2]] for panel in outcome.panels[1:3]]
    # Least n with 2 C/(n + 1) (n/(n + 1))^n <= 0.05 for C = 1, 2, 4: about 40 C / e.
    assert needs[0] == [[15, 29, 59], [15, 15, 15]]
    # One label is wrong with probability 0.1, the best of three with 0.028.
    assert needs[1][1] == [3, 3]
    assert (
        rivals.lock_failure(4, 0.2, int(needs[1][0][1]))
        <= 0.05
        < rivals.lock_failure(4, 0.2, int(needs[1][0][1]) - 1)
    )
    # Offline x online: none, shared ditch, cliff, ditch, class, noise. A doubling at small regret costs 1, 1, 2, 2, 2 and
    # (1/0.8)^16 times the episodes.
    assert summary.heat is not None
    offline, online = zip(*summary.heat.values, strict=True)
    assert offline == pytest.approx([1, 1, 2, 2, 2, 0.8**-16], rel=0.1)
    # In the shared ditch the episodes needed online are 5 and 3: about half, in whole numbers.
    for horizon, needed in ((16, 5), (32, 3)):
        assert (
            shared.share_lost(horizon, 4, needed, True)
            <= 0.05
            < shared.share_lost(horizon, 4, needed - 1, True)
        )
    assert online[1] == 3 / 5
    assert (online[0], *online[2:]) == pytest.approx([1, 2, 1, 1, 1], rel=0.1)
    # Online a ditch with shared labels is climbed again: 2 I/(e n H), offline I/(2 e n).
    drift = {name: found[f"{name}, labels shared, ditch"] for name in ("offline", "DAgger")}
    assert drift["DAgger"][-1] == pytest.approx(8 / (math.e * 300), rel=0.15)
    assert drift["offline"][-1] == pytest.approx(8 * 4 / (2 * math.e * 300), rel=0.2)


NEIGHBOURS = {
    "log-loss cloning": (1, 3),
    "DAgger, same class": (1, 3),
    "class misses the expert, offline, C": (3.85, 4.2),
}


def test_simulated_rows_reject_their_neighbours():
    """One demonstration fewer or more, or another C, does not fit the interval of the row."""
    rows = experiment.run(3, settings=SMALL).rows
    prob_I = rivals.hardest_contexts(4, 4, 200)
    for start, neighbours in NEIGHBOURS.items():
        (row,) = (row for row in rows if row.claim.startswith(start) and row.low is not None)
        assert row.low is not None
        assert row.high is not None
        for other in neighbours:
            is_class = start.startswith("class")
            z, num = 1 / 13, 12 + (-1 if other == 1 else 1)
            value = rivals.uncovered_risk(prob_I, other, 200) if is_class else 2 * z * (1 - z) ** num
            assert not row.low <= value <= row.high
