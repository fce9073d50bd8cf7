"""The vote: potential steps by enumeration of trajectories and labels, vote errors by enumeration, bounds that bite."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from understudy.theory import learners, nail_coins, nailgun_worlds, voting
from understudy.theory.bounds import nailgun as bounds
from understudy.theory.experiments import nailgun as experiment
from understudy.theory.mdp import MDP, trajectory_hellinger_sq

SMALL = experiment.Settings(
    num_instances=800,
    horizons=(2, 8),
    num_runs=60,
    num_episodes=100,
    num_policies=8,
    num_digits=3,
    coin_runs=300,
    exact_coin_episodes=400,
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
    assert max(len(row.claim) for row in outcome.rows) < 85
    assert json.loads(json.dumps(outcome.as_record()))["settings"]["num_digits"] == 3
    assert experiment.run(0, settings=SMALL).rows == outcome.rows
    assert experiment.run(1, settings=SMALL).rows != outcome.rows


def test_binomials_are_binomial():
    for t, (x_X, prob_X) in enumerate(voting.binomials(7, 0.3)):
        assert x_X.tolist() == list(range(t + 1))
        expected = [math.comb(t, x) * 0.3**x * 0.7 ** (t - x) for x in range(t + 1)]
        np.testing.assert_allclose(prob_X, expected, rtol=1e-12)
    *_, (x_X, prob_X) = voting.binomials(3001, 0.3)
    assert len(x_X) < 1500
    assert prob_X.sum() == pytest.approx(1, abs=1e-11)
    assert prob_X @ x_X == pytest.approx(900, rel=1e-11)


@pytest.mark.parametrize("horizon", [2, 5, 16])
def test_hidden_centre_worlds_give_every_horizon_as_much_to_learn(horizon: int):
    for seed in range(5):
        world, pi, nu = voting.hidden_centre_world(horizon, 32, 0.5, np.random.default_rng(seed))
        voted = learners.vote(np.full(32, 1 / 32), pi)
        assert voting.mistake_probability(world, pi[0], voted) == pytest.approx(1, abs=1e-12)
        # Each policy leaves the centre in all four states of one step; the noise never helps the expert.
        action, centre = pi.argmax(-1), voted.argmax(-1)
        assert ((action != centre).sum((1, 2)) == 4).all()
        assert ((action != centre).any(-1).sum(-1) == 1).all()
        assert (nu * pi[0]).max() == 0
        assert nu.max() == 0.5
        own = action[0] != centre
        assert (nu[own].argmax(-1) == centre[own]).all()
        np.testing.assert_allclose(nu.sum(-1), 1, atol=1e-12)
    with pytest.raises(ValueError, match="rho in"):
        voting.hidden_centre_world(2, 4, 0.2, np.random.default_rng(0))


def test_mixture_of_coins_by_enumeration():
    eta, horizon = 0.4, 2
    found = nail_coins.distance_by_episode(4, horizon, eta)
    noisy = [0.6 * coin + 0.2 for coin in nail_coins.COINS]
    for t in range(4):
        total = 0.0
        for labels in itertools.product((True, False), repeat=t * horizon):
            prob = math.prod(noisy[0] if zero else 1 - noisy[0] for zero in labels)
            weights = [math.prod(p if zero else 1 - p for zero in labels) ** (1 / horizon) for p in noisy]
            mean = sum(w * c for w, c in zip(weights, nail_coins.COINS, strict=True)) / sum(weights)
            total += prob * (1 - (math.sqrt(0.8 * mean) + math.sqrt(0.2 * (1 - mean))) ** horizon)
        assert found[t] == pytest.approx(total, abs=1e-12)
    # The best vote plays 0 twice; the untrained mixture, a coin of 0.275, is worse: it must be trained to pass.
    assert nail_coins.best_vote(2) == pytest.approx(0.2, abs=1e-12)
    assert found[0] == pytest.approx(1 - (math.sqrt(0.8 * 0.275) + math.sqrt(0.2 * 0.725)) ** 2, abs=1e-12)
    assert found[0] > nail_coins.best_vote(2)


def test_uniform_noise_by_hand():
    # eta 0.8, 4 actions: 0.2 + 0.2 right, 0.2 wrong.
    assert nailgun_worlds.uniform_error(9, 0.8, 4) == pytest.approx(voting.vote_error(9, 0.4, 0.2), abs=1e-14)


def wrong_claims() -> list[str]:
    return [row.claim for row in experiment.run(0, settings=SMALL).rows if row.holds == "no"]


def test_rows_see_a_learner_that_never_updates(monkeypatch: pytest.MonkeyPatch):
    real = learners._exponential_weights

    def frozen(world, pi_KHSA, labels_RHSA, gain_KHSA, num_episodes, generator, is_greedy):
        return real(world, pi_KHSA, labels_RHSA, np.zeros_like(gain_KHSA), num_episodes, generator, is_greedy)

    monkeypatch.setattr(learners, "_exponential_weights", frozen)
    wrong = wrong_claims()
    for part in (
        "mistaken episodes in all",
        "is nearer than any vote",
        "is the binomial sum",
        "the binomial sums",
    ):
        assert any(part in claim for claim in wrong), part


def test_rows_see_growth_with_the_horizon(monkeypatch: pytest.MonkeyPatch):
    """With a rate of 1/H the vote still converges, but slower at longer horizons."""
    settings = replace(SMALL, horizons=(2, 16), num_policies=32, num_episodes=200, num_runs=200)
    real = learners._exponential_weights

    def verdict() -> str:
        generator = np.random.default_rng(1)
        worlds = [nailgun_worlds.run_world(horizon, settings, generator) for horizon in settings.horizons]
        rows = experiment._random_world_rows(settings, worlds)
        return next(row.holds for row in rows if " over those at " in row.claim)

    def slow(world, pi_KHSA, labels_RHSA, gain_KHSA, num_episodes, generator, is_greedy):
        gain = gain_KHSA / world.horizon
        return real(world, pi_KHSA, labels_RHSA, gain, num_episodes, generator, is_greedy)

    assert verdict() == "yes"
    monkeypatch.setattr(learners, "_exponential_weights", slow)
    assert verdict() == "no"
