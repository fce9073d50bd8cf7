"""The vote: potential steps by enumeration of trajectories and labels, vote errors by enumeration, bounds that bite."""

import itertools
import json
import math

import numpy as np
import pytest

from understudy.theory import voting
from understudy.theory.bounds import nailgun as bounds
from understudy.theory.experiments import nailgun as experiment
from understudy.theory.mdp import MDP, trajectory_hellinger_sq

SMALL = experiment.Settings(
    num_instances=800, horizons=(2, 4), num_runs=60, num_episodes=60, num_policies=8, num_digits=3
)


def enumerated_step(world: voting.Instances, n: int) -> tuple[float, float]:
    """(E[W'/W], P(mistake)) of one world: every state path, every label sequence, in plain Python."""
    action, weight = world.action_NKHS[n], world.weight_NK[n]
    num_policies, horizon, num_states = action.shape
    num_actions, eta = world.nu_NHSA.shape[-1], world.eta_N[n]
    r = math.sqrt((1 - world.alpha_N[n]) / (world.alpha_N[n] * world.rho_N[n]))
    ratio = mistake = 0.0
    for states in itertools.product(range(num_states), repeat=horizon):
        prob, is_mistake = world.start_NS[n, states[0]], False
        for h, s in enumerate(states):
            votes = [
                sum(weight[k] for k in range(num_policies) if action[k, h, s] == a)
                for a in range(num_actions)
            ]
            voted = votes.index(max(votes))
            is_mistake |= voted != action[0, h, s]
            if h + 1 < horizon:
                prob *= world.transition_NHSAS[n, h, s, voted, states[h + 1]]
        mistake += prob * is_mistake
        for labels in itertools.product(range(num_actions), repeat=horizon):
            label_prob = 1.0
            for h, (s, a) in enumerate(zip(states, labels, strict=True)):
                label_prob *= (1 - eta) * (a == action[0, h, s]) + eta * world.nu_NHSA[n, h, s, a]
            matches = [
                sum(action[k, h, s] == a for h, (s, a) in enumerate(zip(states, labels, strict=True)))
                for k in range(num_policies)
            ]
            # W' / W = w(expert) / w'(expert), by the update itself.
            updated = [w * r**m for w, m in zip(weight, matches, strict=True)]
            ratio += prob * label_prob * weight[0] * sum(updated) / updated[0]
    return ratio, mistake


@pytest.mark.parametrize("shape", [(1, 1, 3, 4), (2, 2, 3, 3), (3, 2, 2, 4)])
def test_potential_step_by_enumeration(shape: tuple[int, int, int, int]):
    world = voting.random_instances(12, *shape, np.random.default_rng(sum(shape)))
    ratio_N, mistake_N, _ = voting.potential_step(world)
    for n in range(12):
        ratio, mistake = enumerated_step(world, n)
        assert ratio_N[n] == pytest.approx(ratio, rel=1e-9)
        assert mistake_N[n] == pytest.approx(mistake, abs=1e-12)


def test_random_worlds_keep_the_promises():
    for seed in range(20):
        world = voting.random_instances(50, 2, 2, 3, 4, np.random.default_rng(seed))
        assert np.all(world.eta_N <= world.alpha_N)
        assert np.all(world.nu_NHSA <= world.rho_N[:, None, None, None])
        assert np.all(world.alpha_N * (1 + world.rho_N) < 1)
        np.testing.assert_allclose(world.nu_NHSA.sum(-1), 1, atol=1e-12)


def test_potential_inequality_and_its_mutations():
    """Holds as printed; a larger share than the half, and a larger gap, are violated by worlds that keep the promises."""
    broken_half = broken_gap = 0
    for seed in range(30):
        size = (1 + seed % 3, 1 + seed % 2, 2 + seed % 3, 2 + seed % 2)
        world = voting.random_instances(200, *size, np.random.default_rng(seed))
        ratio_N, mistake_N, worst_N = voting.potential_step(world)
        for n in range(200):
            alpha, rho = float(world.alpha_N[n]), float(world.rho_N[n])
            assert ratio_N[n] <= bounds.potential_factor(alpha, rho, mistake_N[n]) + 1e-12
            assert worst_N[n] <= bounds.label_factor(alpha, rho) + 1e-12
            gap = bounds.gap(alpha, rho)
            broken_half += ratio_N[n] > 1 - 0.6 * gap * mistake_N[n] + 1e-12
            broken_gap += worst_N[n] > 1 - 1.01 * gap + 1e-12
    assert broken_half > 0
    assert broken_gap > 0


def test_false_promises_break_the_inequality():
    tight = voting.tight_instance(0.3, 0.5)
    ratio_N, mistake_N, _ = voting.potential_step(tight)
    assert mistake_N[0] == 1
    assert ratio_N[0] == pytest.approx(bounds.potential_factor(0.3, 0.5, 1.0), abs=1e-12)
    louder = voting.Instances(**{**vars(tight), "eta_N": np.array([0.35])})
    assert voting.potential_step(louder)[0][0] > bounds.potential_factor(0.3, 0.5, 1.0) + 1e-3


@pytest.mark.parametrize(
    ("num", "right", "wrong"), [(0, 0.5, 0.2), (5, 0.5, 0.2), (6, 0.1, 0.3), (4, 1.0, 0.0), (3, 0.4, 0.6)]
)
def test_vote_error_by_enumeration(num: int, right: float, wrong: float):
    total = 0.0
    for votes in itertools.product(((1, right), (-1, wrong), (0, 1 - right - wrong)), repeat=num):
        lead = sum(vote for vote, _ in votes)
        total += math.prod(prob for _, prob in votes) * (1.0 if lead < 0 else 0.5 if lead == 0 else 0.0)
    assert voting.vote_error(num, right, wrong) == pytest.approx(total, abs=1e-12)


def test_vote_error_of_many_labels_keeps_its_tails():
    # Truncation of the sum is invisible: all m of n = 3000, by the untruncated sum.
    num, right, wrong = 3000, 0.3, 0.29
    spoken = np.arange(num + 1)
    log_pmf = [
        math.lgamma(num + 1)
        - math.lgamma(m + 1)
        - math.lgamma(num - m + 1)
        + m * math.log(0.59)
        + (num - m) * math.log(0.41)
        for m in spoken
    ]
    direct = float(np.exp(log_pmf) @ voting.majority_error(spoken, 0.3 / 0.59))
    assert voting.vote_error(num, right, wrong) == pytest.approx(direct, rel=1e-9)


def test_votes_needed_is_the_least():
    for right, wrong, digits in ((0.6, 0.2, 1), (0.55, 0.45, 1), (0.5, 0.3, 4)):
        least = next(n for n in itertools.count(1) if voting.vote_error(n, right, wrong, digits) <= 0.1)
        assert voting.votes_needed(0.1, right, wrong, digits) == least
    for target, right in ((0.5, 0.6), (0.1, 0.2)):
        with pytest.raises(ValueError, match="target"):
            voting.votes_needed(target, right, 0.2)
    with pytest.raises(ValueError, match="right"):
        voting.vote_error(3, 0.8, 0.3)


def test_lock_mistakes_by_enumeration():
    found = voting.code_mistakes(5, 0.6, 0.2, 2)
    for t in range(5):
        strict = 0.0
        for labels in itertools.product(((1, 0.6), (-1, 0.2), (0, 0.2)), repeat=t):
            strict += math.prod(prob for _, prob in labels) * (sum(vote for vote, _ in labels) > 0)
        assert found[t] == pytest.approx(1 - strict**2, abs=1e-12)


def test_mistake_probability_by_hand():
    # Start in 0 or 1 evenly; action a of the vote leads to state a with 0.9. The vote differs at (h = 1, s = 1) only.
    world = MDP(np.array([0.5, 0.5]), np.array([[[[0.9, 0.1], [0.1, 0.9]]] * 2]))
    expert = np.eye(2)[np.array([[0, 1], [1, 0]])]
    voted = np.eye(2)[np.array([[0, 1], [1, 1]])]
    assert voting.mistake_probability(world, expert, voted) == pytest.approx(0.5 * 0.1 + 0.5 * 0.9, abs=1e-12)
    assert trajectory_hellinger_sq(world, expert, voted) == pytest.approx(0.5, abs=1e-12)
    first = np.eye(2)[np.array([[1, 1], [1, 0]])]
    assert voting.mistake_probability(world, expert, first) == pytest.approx(0.5, abs=1e-12)


def test_twins_have_the_same_labels():
    expert, nu = np.array([0.0, 1.0, 0.0]), np.array([0.2, 0.3, 0.5])
    twin = voting.confusing_policy(expert, nu, 0.1, 0.4)
    assert twin == pytest.approx([0.3 * 0.2 / 0.9, (0.6 + 0.3 * 0.3) / 0.9, 0.3 * 0.5 / 0.9], abs=1e-15)
    np.testing.assert_allclose(0.9 * twin + 0.1 * nu, 0.6 * expert + 0.4 * nu, atol=1e-15)
    assert voting.confusing_policy(expert, nu, 0.25, 0.25) == pytest.approx(expert, abs=1e-15)
    for eta, alpha in ((0.4, 0.1), (0.1, 1.1), (1.0, 1.0)):
        with pytest.raises(ValueError, match="eta <= alpha"):
            voting.confusing_policy(expert, nu, eta, alpha)


def test_bounds_by_hand():
    # alpha = 0.2, rho = 0.2: sqrt(0.8) - sqrt(0.04) = 0.694427, squared 0.482229; margin 0.76.
    assert bounds.gap(0.2, 0.2) == pytest.approx(0.482229, abs=1e-6)
    assert bounds.margin(0.2, 0.2) == pytest.approx(0.76, abs=1e-12)
    assert bounds.mistakes(0.2, 0.2, 8) == pytest.approx(2 * math.log(8) / 0.482229, rel=1e-5)
    assert bounds.hellinger_sq(0.2, 0.2, 8, 50) == pytest.approx(4 * math.log(8) / 0.482229 / 50, rel=1e-5)
    assert bounds.hellinger_sq_by_margin(0.2, 0.2, 8, 50) == pytest.approx(
        math.log(8) / 0.5776 / 50, rel=1e-9
    )
    assert bounds.episodes_lower(0.2, 0.2, 0.1) == pytest.approx(0.04 / 0.05776, rel=1e-9)
    with pytest.raises(ValueError, match="says nothing"):
        bounds.gap(0.6, 0.8)
    with pytest.raises(ValueError, match="alpha in"):
        bounds.margin(0.0, 0.5)
    with pytest.raises(ValueError, match="epsilon"):
        bounds.episodes_lower(0.2, 0.2, 1.0)


def test_run_holds_repeats_and_serialises():
    outcome = experiment.run(0, settings=SMALL)
    assert [row.claim for row in outcome.rows if not row.is_as_expected] == []
    assert 6 <= len(outcome.rows) <= 25
    assert json.loads(json.dumps(outcome.as_record()))["settings"]["num_digits"] == 3
    assert experiment.run(0, settings=SMALL).rows == outcome.rows
    assert experiment.run(1, settings=SMALL).rows != outcome.rows
