"""The tabular core against every trajectory written out in plain Python."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from understudy.theory import mdp as core
from understudy.theory.mdp import MDP

SIZES = [(1, 2, 2), (2, 3, 2), (3, 2, 3), (4, 2, 2)]


def problem(
    horizon: int, num_states: int, num_actions: int, seed: int = 0
) -> tuple[MDP, np.ndarray, np.ndarray, np.ndarray]:
    """An MDP with a few exact zeros, and three policies of which the second is deterministic at the first step."""
    generator = np.random.default_rng([seed, horizon, num_states, num_actions])
    world = MDP(
        generator.dirichlet(np.ones(num_states)),
        generator.dirichlet(np.ones(num_states), size=(horizon - 1, num_states, num_actions)),
    )
    world.transition_HSAS[:, 0, 0] = np.eye(num_states)[-1]
    first, second, third = generator.dirichlet(np.full(num_actions, 0.6), size=(3, horizon, num_states))
    second[0, :] = np.eye(num_actions)[0]
    return world, first, second, third


def paths(world: MDP):
    """Every (states, actions) of full length."""
    states = itertools.product(range(world.num_states), repeat=world.horizon)
    for path in states:
        for acts in itertools.product(range(world.num_actions), repeat=world.horizon):
            yield path, acts


def path_probability(world: MDP, pi: np.ndarray, path: tuple[int, ...], acts: tuple[int, ...]) -> float:
    total = float(world.start_S[path[0]])
    for h, (s, a) in enumerate(zip(path, acts, strict=True)):
        total *= float(pi[h, s, a])
        if h + 1 < len(path):
            total *= float(world.transition_HSAS[h, s, a, path[h + 1]])
    return total


def augmented_probability(
    world: MDP, roll_in: np.ndarray, labels: np.ndarray, path: tuple[int, ...], acts: tuple[int, ...]
) -> float:
    """States by `roll_in`, its actions summed over one by one; recorded actions by `labels`."""
    total = 0.0
    for driven in itertools.product(range(world.num_actions), repeat=world.horizon):
        total += path_probability(world, roll_in, path, driven)
    for h, (s, a) in enumerate(zip(path, acts, strict=True)):
        total *= float(labels[h, s, a])
    return total


def distance(p: list[float], q: list[float]) -> float:
    return 0.5 * math.fsum((math.sqrt(a) - math.sqrt(b)) ** 2 for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("size", SIZES)
def test_trajectory_distance(size):
    world, pi, other, _ = problem(*size)
    p = [path_probability(world, pi, *path) for path in paths(world)]
    q = [path_probability(world, other, *path) for path in paths(world)]
    assert math.fsum(p) == pytest.approx(1, abs=1e-12)
    assert core.trajectory_hellinger_sq(world, pi, other) == pytest.approx(distance(p, q), abs=1e-12)
    assert core.trajectory_hellinger_sq(world, pi, pi) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("size", [(1, 2, 2), (2, 3, 2), (3, 2, 2)])
def test_augmented_distance(size):
    world, roll_in, labels, other = problem(*size)
    p = [augmented_probability(world, roll_in, labels, *path) for path in paths(world)]
    q = [augmented_probability(world, roll_in, other, *path) for path in paths(world)]
    assert math.fsum(p) == pytest.approx(1, abs=1e-12)
    assert core.augmented_hellinger_sq(world, roll_in, labels, other) == pytest.approx(
        distance(p, q), abs=1e-12
    )


def test_roll_in_matters():
    """Labels differ in state 1 only, where one roll-in goes and the other does not."""
    world = MDP(np.array([1.0, 0]), np.eye(2)[None, None].repeat(2, axis=1))
    stays, goes = np.eye(2)[np.zeros((2, 2), int)], np.eye(2)[np.ones((2, 2), int)]
    labels, other = stays.copy(), stays.copy()
    other[1, 1] = [0, 1]
    assert core.augmented_hellinger_sq(world, stays, labels, other) == 0
    assert core.augmented_hellinger_sq(world, goes, labels, other) == 1


@pytest.mark.parametrize("size", SIZES)
def test_occupancy_and_value(size):
    world, pi, _, _ = problem(*size)
    reward = np.random.default_rng(5).uniform(size=pi.shape)
    visits, value = np.zeros((world.horizon, world.num_states)), 0.0
    for path, acts in paths(world):
        prob = path_probability(world, pi, path, acts)
        for h, (s, a) in enumerate(zip(path, acts, strict=True)):
            visits[h, s] += prob
            value += prob * float(reward[h, s, a])
    np.testing.assert_allclose(core.occupancy(world, pi), visits, rtol=0, atol=1e-12)
    assert core.policy_value(world, pi, reward) == pytest.approx(value, abs=1e-12)


def test_hellinger_by_hand():
    # 1/2 ((1 - sqrt .25)^2 + .75) = 1 - sqrt .25
    assert core.hellinger_sq(np.array([1, 0.0]), np.array([0.25, 0.75])) == pytest.approx(0.5, abs=1e-15)
    assert core.hellinger_sq(np.array([1.0, 0]), np.array([0, 1.0])) == 1
    np.testing.assert_allclose(core.hellinger_sq(np.ones((3, 1)), np.ones((3, 1))), np.zeros(3), atol=0)


def test_noised_by_hand():
    found = core.noised(np.array([[1.0, 0], [0.5, 0.5]]), 0.2, np.array([0.25, 0.75]))
    np.testing.assert_allclose(found, [[0.85, 0.15], [0.45, 0.55]], rtol=0, atol=1e-15)
    np.testing.assert_array_equal(core.noised(np.array([1.0, 0]), 0, np.array([0, 1.0])), [1, 0])


def test_sampled_trajectories_follow_the_law():
    """Chi-square over all 64 paths at level 1e-6, the failure probability if the sampler is right (and the seed were new)."""
    world, pi, _, _ = problem(3, 2, 2)
    num = 40_000
    states, actions = core.sample_trajectories(world, pi, num, np.random.default_rng(1))
    assert states.shape == actions.shape == (num, 3)
    counts: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    for path, acts in zip(states.tolist(), actions.tolist(), strict=True):
        key = (tuple(path), tuple(acts))
        counts[key] = counts.get(key, 0) + 1
    observed, expected, rare_observed, rare_expected = [], [], 0, 0.0
    for path, acts in paths(world):
        prob, seen = path_probability(world, pi, path, acts), counts.get((path, acts), 0)
        assert prob > 0 or seen == 0
        if prob * num >= 10:
            observed.append(seen)
            expected.append(prob * num)
        else:
            rare_observed, rare_expected = rare_observed + seen, rare_expected + prob * num
    if rare_expected > 0:
        observed.append(rare_observed)
        expected.append(rare_expected)
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    assert statistic < stats.chi2.ppf(1 - 1e-6, len(observed) - 1)


def test_sampled_labels_follow_the_law_of_their_step_and_state():
    """Each of 8 frequencies within sqrt(ln(2 * 8 / 1e-6) / (2 n)) of its mean: Hoeffding, failure below 1e-6 in all."""
    pi = np.array([[[0.1, 0.9], [0.4, 0.6]], [[0.7, 0.3], [1.0, 0.0]]])
    num = 20_000
    state_NH = np.array([[0, 0], [1, 1]]).repeat(num, axis=0)
    labels = core.sample_labels(pi, state_NH, np.random.default_rng(2))
    assert labels.shape == (2 * num, 2)
    within = math.sqrt(math.log(2 * 8 / 1e-6) / (2 * num))
    for s in (0, 1):
        for h in (0, 1):
            frequency = float((labels[state_NH[:, 0] == s, h] == 1).mean())
            assert abs(frequency - pi[h, s, 1]) <= within
    assert not (labels[num:, 1] == 1).any()


def test_sampling_is_deterministic_for_a_seed():
    world, pi, _, _ = problem(3, 2, 2)
    first, second = (core.sample_trajectories(world, pi, 50, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_bad_problems_are_refused():
    good = np.full((1, 2, 2, 2), 0.5)
    with pytest.raises(ValueError, match=r"\[H - 1, 2, A, 2\], got \(1, 3, 2, 2\)"):
        MDP(np.array([1.0, 0]), np.full((1, 3, 2, 2), 0.5))
    with pytest.raises(ValueError, match=r"got \(2, 2, 2\)"):
        MDP(np.array([1.0, 0]), good[0])
    with pytest.raises(ValueError, match="start_S must hold probabilities"):
        MDP(np.array([0.5, 0.4]), good)
    with pytest.raises(ValueError, match="transition_HSAS must hold probabilities"):
        MDP(np.array([1.0, 0]), good * 1.01)
    with pytest.raises(ValueError, match=r"got least -0\.5"):
        MDP(np.array([1.5, -0.5]), good)
    with pytest.raises(ValueError, match=r"eta must be in \[0, 1\), got 1"):
        core.noised(np.array([1.0]), 1, np.array([1.0]))
    with pytest.raises(ValueError, match=r"got -0\.1"):
        core.noised(np.array([1.0]), -0.1, np.array([1.0]))


def test_nan_is_no_law():
    with pytest.raises(ValueError, match="probabilities"):
        core.require_laws(np.array([np.nan, 1.0]), "law")


def test_sizes_are_read_from_the_tables():
    world = MDP(np.array([1.0, 0, 0]), np.full((4, 3, 2, 3), 1 / 3))
    assert (world.horizon, world.num_states, world.num_actions) == (5, 3, 2)
    single = MDP(np.array([1.0]), np.zeros((0, 1, 4, 1)))
    assert (single.horizon, single.num_states, single.num_actions) == (1, 1, 4)
