"""The tabular learners, replayed in plain Python where labels and transitions are deterministic."""

import math

import numpy as np
import pytest

from understudy.theory import learners
from understudy.theory.mdp import MDP, occupancy

ETA = 0.3
NU = np.full((2, 2, 2), 0.5)


def two_steps() -> MDP:
    """Start in state 0; action a leads to state a."""
    return MDP(np.array([1.0, 0.0]), np.broadcast_to(np.eye(2), (1, 2, 2, 2)).copy())


def actions_to_policies(*policies: list[list[int]]) -> np.ndarray:
    return learners.one_hot_policies(np.array(policies), 2)


CLASS = actions_to_policies([[0, 0], [0, 0]], [[0, 0], [1, 0]], [[1, 0], [1, 1]])
LABELS = np.broadcast_to(CLASS[2], (1, 2, 2, 2))  # noiseless: labels of policy 2, always


def test_winners_split_ties_and_rounding():
    shares = learners.winners(np.array([[-1.0, -2.0, -1.0 - 1e-12], [-np.inf] * 3, [-np.inf, -5.0, -6.0]]))
    assert shares.tolist() == [[0.5, 0, 0.5], [1 / 3] * 3, [0, 1, 0]]


def test_counts_and_likelihood_by_hand():
    state = np.array([[[0, 1], [0, 1], [0, 0]]])
    action = np.array([[[1, 0], [1, 1], [0, 0]]])
    counts = learners.visit_counts(state, action, 2, 2)
    assert counts.tolist() == [[[[1, 2], [0, 0]], [[1, 0], [1, 1]]]]
    half = np.full((2, 2, 2), 0.5)
    score = learners.log_likelihood(counts, np.stack([half, CLASS[0], 0.75 * half + 0.25 * CLASS[0]]))
    # Six labels: a mixture gives 0.625 to action 0 (3 of 6) and 0.375 to action 1.
    by_hand = 3 * math.log(0.625) + 3 * math.log(0.375)
    assert score[0, 0] == pytest.approx(6 * math.log(0.5), abs=1e-12)
    assert score[0, 1] == -np.inf
    assert score[0, 2] == pytest.approx(by_hand, abs=1e-12)


def test_cloning_with_and_without_the_noise():
    # One label against policy 0, two for it; policy 1 is contradicted by both of the others.
    counts = learners.visit_counts(np.zeros((1, 3, 1), int), np.array([[[0], [0], [1]]]), 1, 2)
    pi = np.array([[[[1.0, 0.0]]], [[[0.0, 1.0]]]])
    assert learners.noised_cloning(counts, pi, ETA, np.full((1, 1, 2), 0.5)).tolist() == [[1, 0]]
    assert learners.plain_cloning(counts, pi).tolist() == [[0.5, 0.5]]


def test_demonstrations_roll_the_noise_into_the_states():
    noisy = 0.7 * CLASS[0] + 0.3 * NU
    counts = learners.demonstrations(two_steps(), noisy, 500, 8, np.random.default_rng(1))
    assert counts.sum(axis=(2, 3)).tolist() == [[500, 500]] * 8
    # 4000 Bernoulli(0.15); a deviation of 5 standard errors (0.0282) has probability below 1e-6.
    assert counts[:, 1, 1].sum() / 4000 == pytest.approx(0.15, abs=0.0282)


def test_nail_weights_are_the_tempered_likelihood():
    # Every policy of the class but 2 labels 0 in state 0; states differ by run, labels are of policy 2.
    history = learners.nail(two_steps(), CLASS, LABELS, ETA, NU, 3, np.random.default_rng(0))
    score = [0.0, 0.0, 0.0]
    for t in range(3):
        for h, state in enumerate(history.state_TRH[t, 0]):
            label = [[1, 0], [1, 1]][h][state]
            for k, policy in enumerate(([[0, 0], [0, 0]], [[0, 0], [1, 0]], [[1, 0], [1, 1]])):
                score[k] += math.log(0.85 if policy[h][state] == label else 0.15) / 2  # learning rate 1/H
        total = math.log(sum(map(math.exp, score)))
        assert history.logw_TRK[t + 1, 0] == pytest.approx([value - total for value in score], abs=1e-12)
    faster = learners.nail(two_steps(), CLASS[:2], LABELS, ETA, NU, 1, np.random.default_rng(0), rate=1.0)
    ratio = faster.logw_TRK[1, 0, 1] - faster.logw_TRK[1, 0, 0]
    visited = faster.state_TRH[0, 0, 1]
    assert ratio == pytest.approx(math.log(0.85 / 0.15) if visited == 0 else 0, abs=1e-12)


def test_nail_rolls_out_the_mixture_and_not_the_labels():
    runs = 4000
    history = learners.nail(
        two_steps(),
        CLASS,
        np.broadcast_to(CLASS[2], (runs, 2, 2, 2)),
        ETA,
        NU,
        1,
        np.random.default_rng(2),
    )
    expected = occupancy(two_steps(), learners.mixture(np.full(3, 1 / 3), CLASS))[1, 1]
    assert expected == pytest.approx(1 / 3, abs=1e-15)
    # Labels would lead to state 1 always. 5 standard errors = 0.0373: fails by chance below 1e-6.
    assert history.state_TRH[0, :, 1].mean() == pytest.approx(expected, abs=0.0373)


def test_nailgun_counts_matches_along_the_greedy_vote():
    alpha, rho = 0.2, 0.5
    labels = np.broadcast_to(CLASS[2], (40, 2, 2, 2))
    history = learners.nailgun(two_steps(), CLASS, labels, alpha, rho, 4, np.random.default_rng(0))
    log_r = math.log(math.sqrt((1 - alpha) / (alpha * rho)))
    table = ([[0, 0], [0, 0]], [[0, 0], [1, 0]], [[1, 0], [1, 1]])
    matches = [0, 0, 0]
    for t in range(4):
        weight = [math.exp(log_r * value) for value in matches]
        votes = [sum(w for w, policy in zip(weight, table, strict=True) if policy[0][0] == a) for a in (0, 1)]
        action = 0 if votes[0] >= votes[1] else 1
        # All 40 runs: sampling the mixture instead would lead some of them elsewhere.
        assert history.state_TRH[t].tolist() == [[0, action]] * 40
        total = math.log(sum(weight))
        expected = [log_r * value - total for value in matches]
        assert history.logw_TRK[t, 0] == pytest.approx(expected, abs=1e-12)
        for h, state in ((0, 0), (1, action)):
            for k in range(3):
                matches[k] += table[k][h][state] == table[2][h][state]
    assert np.argmax(history.logw_TRK[-1, 0]) == 2


def test_vote_ties_go_to_the_lowest_action():
    voted = learners.vote(np.array([0.25, 0.25, 0.5]), CLASS)
    assert np.argmax(voted[0, 0]) == 0
    assert np.argmax(voted[1, 0]) == 1
    # 0.1 + 0.2 > 0.3 by rounding only: still a tie.
    voted = learners.vote(np.array([0.3, 0.1, 0.2]), np.eye(2)[np.array([0, 1, 1])][:, None, None])
    assert voted.tolist() == [[[1, 0]]]


@pytest.mark.parametrize(
    ("num_each", "survivors"), [(2, [1 / 3] * 3), (3, [0.5, 0.5, 0]), (5, [0.5, 0.5, 0]), (6, [1, 0, 0])]
)
def test_neil_drops_by_the_threshold(num_each: int, survivors: list[float]):
    # Policies 1 and 2 contradict the (noiseless) labels once and twice an episode: they trail by m and 2 m times
    # log(0.85 / 0.15) = 1.7346. beta = 2 log(4 * 3 / 0.1) = 9.575: 2 m > 5.52 at m = 3, m > 5.52 at m = 6.
    world = MDP(np.ones(1), np.ones((1, 1, 2, 1)))
    pi = learners.one_hot_policies(np.array([[[0], [1]], [[0], [0]], [[1], [0]]]), 2)
    nu = np.full((2, 1, 2), 0.5)
    assert learners.elimination_threshold(3, 0.1) == pytest.approx(9.5750, abs=1e-4)
    shares = learners.neil(world, pi, pi[:1], ETA, nu, num_each, 0.1, np.random.default_rng(0))
    assert shares.tolist() == [survivors]


def test_neil_without_survivors_shares_the_class():
    # Labels outside the class: at step 1 always 1, which contradicts each policy on its own rollout and not the other.
    # The leads are 40 * 1.73 +- a walk of step 0 with standard deviation 11: both are dropped but for 1e-7.
    pi = actions_to_policies([[0, 0], [0, 1]], [[1, 0], [1, 0]])
    labels = np.array([[[[0.5, 0.5], [0.5, 0.5]], [[0.0, 1.0], [0.0, 1.0]]]])
    shares = learners.neil(two_steps(), pi, labels, ETA, NU, 40, 0.1, np.random.default_rng(0))
    assert shares.tolist() == [[0.5, 0.5]]


def test_bad_arguments_are_refused():
    world, rng = two_steps(), np.random.default_rng(0)
    mixed = 0.5 * CLASS[:1] + 0.5 * CLASS[2:]
    with pytest.raises(ValueError, match="stochastic"):
        learners.nailgun(world, np.concatenate([CLASS, mixed]), LABELS, 0.2, 0.5, 1, rng)
    for alpha, rho in ((0, 0.5), (1, 0.5), (0.2, 0), (0.2, 1.1)):
        with pytest.raises(ValueError, match="alpha in"):
            learners.nailgun(world, CLASS, LABELS, alpha, rho, 1, rng)
    with pytest.raises(ValueError, match="episode"):
        learners.nail(world, CLASS, LABELS, ETA, NU, 0, rng)
    with pytest.raises(ValueError, match="policies and labels"):
        learners.nail(world, CLASS[:, :1], LABELS, ETA, NU, 1, rng)
    with pytest.raises(ValueError, match="delta"):
        learners.neil(world, CLASS, LABELS, ETA, NU, 1, 1.0, rng)
