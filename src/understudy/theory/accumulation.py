"""Errors that accumulate: worlds, students and learners whose regret is exact at every horizon.

H horizon, S states, A actions, K candidates, N demonstrations, R independent runs, I rare observations. On the road the
expert goes on (action 0), in a ditch it climbs (action 1). A question that was never labelled is answered wrongly: among
the most likely candidates this is the worst, and the guarantees hold for it too.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from understudy.theory.mdp import (
    MDP,
    Array,
    hellinger_sq,
    occupancy,
    policy_value,
    sample_labels,
    sample_trajectories,
)


@dataclass(frozen=True, eq=False)
class World:
    """An MDP with the reward of every step and the expert's policy."""

    mdp: MDP
    reward_HSA: Array
    expert_HSA: Array


# ---- errors accumulate -------------------------------------------------------------------------------------------------


def ditch_world(horizon: int, depth: int) -> World:
    """A road (state 0) with a ditch: a mistake on it leads to the bottom (state `depth`), each climb up one state.

    Reward 1 a step for going on while on the road. A mistake costs its own step and `depth` steps of climbing, so the gap
    of `interaction_bound` is depth + 1 if the horizon is that long. Going on in the ditch stays where one is.

    Raises:
        ValueError: horizon < 1 or depth < 0.
    """
    if horizon < 1 or depth < 0:
        raise ValueError(f"horizon >= 1 and depth >= 0 expected, got {horizon} and {depth}.")
    transition_SAS = np.zeros((depth + 1, 2, depth + 1))
    transition_SAS[0, 0, 0] = transition_SAS[0, 1, depth] = 1
    for state in range(1, depth + 1):
        transition_SAS[state, 0, state] = transition_SAS[state, 1, state - 1] = 1
    return _road_world(horizon, transition_SAS)


def cliff_world(horizon: int) -> World:
    """A road beside a cliff: after a mistake (state 1) nothing is rewarded any more, whatever one does.

    Raises:
        ValueError: horizon < 1.
    """
    if horizon < 1:
        raise ValueError(f"horizon >= 1 expected, got {horizon}.")
    transition_SAS = np.zeros((2, 2, 2))
    transition_SAS[0, 0, 0] = transition_SAS[0, 1, 1] = transition_SAS[1, :, 1] = 1
    return _road_world(horizon, transition_SAS)


def _road_world(horizon: int, transition_SAS: Array) -> World:
    num_states = len(transition_SAS)
    reward_HSA = np.zeros((horizon, num_states, 2))
    reward_HSA[:, 0, 0] = 1
    expert_HSA = np.zeros((horizon, num_states, 2))
    expert_HSA[:, 0, 0] = expert_HSA[:, 1:, 1] = 1
    transition_HSAS = np.broadcast_to(transition_SAS, (horizon - 1, *transition_SAS.shape))
    return World(MDP(np.eye(num_states)[0], transition_HSAS), reward_HSA, expert_HSA)


def road_student(world: World, road_error: Array | float, off_road_error: float) -> Array:
    """A policy [H, S, 2] that errs at one rate (or one a step) on the road, at another off it.

    Raises:
        ValueError: a rate outside [0, 1].
    """
    error_H = np.broadcast_to(np.asarray(road_error, dtype=float), (world.mdp.horizon,))
    if error_H.min() < 0 or error_H.max() > 1 or not 0 <= off_road_error <= 1:
        raise ValueError(f"error rates in [0, 1] expected, got {road_error} and {off_road_error}.")
    student_HSA = np.empty(world.expert_HSA.shape)
    student_HSA[:, 0] = np.stack([1 - error_H, error_H], axis=-1)
    student_HSA[:, 1:] = [off_road_error, 1 - off_road_error]
    return student_HSA


def regret(world: World, student_HSA: Array) -> float:
    """J(expert) - J(student), exact."""
    return policy_value(world.mdp, world.expert_HSA, world.reward_HSA) - policy_value(
        world.mdp, student_HSA, world.reward_HSA
    )


def error_rates(world: World, roll_in_HSA: Array, student_HSA: Array) -> Array:
    """[H]: how often the student leaves a deterministic expert's action, on the states of `roll_in_HSA`."""
    wrong_HS = 1 - (world.expert_HSA * student_HSA).sum(-1)
    return np.einsum("hs,hs->h", occupancy(world.mdp, roll_in_HSA), wrong_HS)


def expert_values(world: World) -> Array:
    """Q of the expert, [H, S, A]: the reward to go of one action followed by the expert."""
    q_HSA = world.reward_HSA.copy()
    for h in range(world.mdp.horizon - 2, -1, -1):
        value_S = (world.expert_HSA[h + 1] * q_HSA[h + 1]).sum(-1)
        q_HSA[h] += world.mdp.transition_HSAS[h] @ value_S
    return q_HSA


def price_of_errors(world: World, student_HSA: Array) -> tuple[float, float]:
    """(mu, regret by the performance difference lemma).

    mu = max Q_h(s, expert) - Q_h(s, a) over actions and the states the student visits
    J(expert) - J(student) = sum_h E_{s_h ~ student} [Q_h(s_h, expert) - Q_h(s_h, student)]
    """
    q_HSA = expert_values(world)
    gap_HSA = (world.expert_HSA * q_HSA).sum(-1, keepdims=True) - q_HSA
    visits_HS = occupancy(world.mdp, student_HSA)
    total = float(np.einsum("hs,hsa,hsa->", visits_HS, student_HSA, gap_HSA))
    return float(gap_HSA[visits_HS > 0].max()), total


def reward_range(world: World) -> float:
    """R: the largest total reward of a possible episode; the smallest is at least 0 if no reward is negative."""
    best_S = world.reward_HSA[-1].max(-1)
    for h in range(world.mdp.horizon - 2, -1, -1):
        reachable_SAS = np.where(world.mdp.transition_HSAS[h] > 0, best_S, -math.inf)
        best_S = (world.reward_HSA[h] + reachable_SAS.max(-1)).max(-1)
    return float(best_S[world.mdp.start_S > 0].max())


def random_world(generator: np.random.Generator) -> tuple[World, Array]:
    """A small random MDP with a deterministic expert, and a student near it: rewards and laws from even to extreme."""
    horizon, num_states = (int(generator.integers(2, high)) for high in (7, 5))
    num_actions = int(generator.integers(2, 4))
    spread = float(10 ** generator.uniform(-1.5, 0.5))
    shape = (horizon, num_states, num_actions)
    start_S = generator.dirichlet(np.full(num_states, 1.0))
    transition_HSAS = generator.dirichlet(np.full(num_states, spread), size=(horizon - 1, *shape[1:]))
    reward_HSA = generator.random(shape) ** float(10 ** generator.uniform(-1, 1))
    expert_HSA = np.eye(num_actions)[generator.integers(num_actions, size=shape[:2])]
    world = World(MDP(start_S, transition_HSAS), reward_HSA, expert_HSA)
    error_HS1 = generator.random((*shape[:2], 1)) ** 3 * 10 ** generator.uniform(-3, 0)
    elsewhere_HSA = generator.dirichlet(np.ones(num_actions), size=shape[:2])
    return world, noised_by_state(expert_HSA, error_HS1, elsewhere_HSA)


def noised_by_state(pi_HSA: Array, rate_HS1: Array, other_HSA: Array) -> Array:
    """(1 - rate) pi + rate other, with a rate of its own at every state."""
    return (1 - rate_HS1) * pi_HSA + rate_HS1 * other_HSA


def lasting_regret(error_rate: float, horizon: int) -> float:
    """sum_h (1 - (1 - eps)^h): one mistake on the road and nothing more is rewarded (cliff, or a ditch never left)."""
    return float((1 - (1 - error_rate) ** np.arange(1, horizon + 1)).sum())


def recovering_regret(error_rate: float, horizon: int) -> float:
    """eps + (H - 1)(1 - (1 - eps)^2): a ditch of depth 1 and an error rate of eps in it too.

    From step 2 on the student is on the road with probability 1 - eps wherever it was, and rewarded if it errs not again.
    """
    return error_rate + (horizon - 1) * (1 - (1 - error_rate) ** 2)


# ---- log-loss cloning over a finite class ------------------------------------------------------------------------------


def context_world(horizon: int, num_rare: int, rate: float) -> tuple[World, Array, Array]:
    """(world, candidates [K, H, S, 2], regret of each [K]) of an episode that stays in one context: K = 2^I codes.

    One of I rare contexts, each with probability `rate`, or a common one is drawn at the start and stays. A code says
    which rare contexts are answered wrongly, at every step; the expert is code 0. Each step is worth 1/H, so R = 1, and
    a mistake costs its own step only. D of a code is the probability of its wrong contexts, and so is its regret.

    Raises:
        ValueError: I rare contexts of this rate do not fit.
    """
    if horizon < 1 or num_rare < 1 or not 0 < rate * num_rare <= 1:
        raise ValueError(
            f"horizon, num_rare >= 1 and 0 < rate * num_rare <= 1 expected, got {horizon}, {num_rare}, {rate}."
        )
    start_S = np.array([rate] * num_rare + [1 - rate * num_rare])
    num_states = num_rare + 1
    stays_SAS = np.broadcast_to(np.eye(num_states)[:, None], (num_states, 2, num_states))
    mdp = MDP(start_S, np.broadcast_to(stays_SAS, (horizon - 1, *stays_SAS.shape)))
    action_KS = np.array([(*code, 0) for code in itertools.product((0, 1), repeat=num_rare)])
    candidates_KHSA = np.eye(2)[np.repeat(action_KS[:, None], horizon, axis=1)]
    reward_HSA = np.zeros((horizon, num_states, 2))
    reward_HSA[..., 0] = 1 / horizon
    world = World(mdp, reward_HSA, candidates_KHSA[0])
    return world, candidates_KHSA, np.array([regret(world, student) for student in candidates_KHSA])


def log_likelihoods(candidates_KHSA: Array, state_NH: Array, action_NH: Array) -> Array:
    """[N, K]: the log-likelihood of every episode's labels under every candidate."""
    steps = np.arange(state_NH.shape[1])
    with np.errstate(divide="ignore"):
        return np.log(candidates_KHSA[:, steps, state_NH, action_NH]).sum(-1).T


def worst_of_best(logp_RK: Array, regret_K: Array) -> Array:
    """[R]: the candidate with the largest log-likelihood; of several, the one with the largest regret."""
    is_best_RK = logp_RK >= logp_RK.max(1, keepdims=True) - 1e-9
    return np.where(is_best_RK, regret_K, -math.inf).argmax(1)


def clone_offline(
    world: World,
    candidates_KHSA: Array,
    regret_K: Array,
    num_demos: int,
    num_runs: int,
    generator: np.random.Generator,
) -> Array:
    """Log-loss cloning, arXiv:2407.15007: the indices [R] of the candidates that independent runs return.

    1 draw n trajectories of the expert
    2 return argmax over the class of the sum of log pi(a_h | s_h)
    """
    state_NH, action_NH = sample_trajectories(
        world.mdp, world.expert_HSA, num_runs * num_demos, generator
    )  # 1
    logp_NK = log_likelihoods(candidates_KHSA, state_NH, action_NH)
    return worst_of_best(logp_NK.reshape(num_runs, num_demos, -1).sum(1), regret_K)  # 2


def clone_online(
    world: World,
    candidates_KHSA: Array,
    regret_K: Array,
    num_episodes: int,
    num_runs: int,
    generator: np.random.Generator,
) -> Array:
    """DAgger with the same class and loss, arXiv:1011.0686 Alg. 3.1 without the expert's first roll-in: indices [R].

    1 for t in 1..n:
    2   play an episode with the most likely candidate so far
    3   ask the expert for its action at every visited state, and keep all labels
    4 return the most likely candidate
    """
    logp_RK = np.zeros((num_runs, len(candidates_KHSA)))
    for _ in range(num_episodes):  # 1
        student_R = worst_of_best(logp_RK, regret_K)
        for k in np.unique(student_R):
            runs = np.flatnonzero(student_R == k)
            state_NH, _ = sample_trajectories(world.mdp, candidates_KHSA[k], len(runs), generator)  # 2
            label_NH = sample_labels(world.expert_HSA, state_NH, generator)
            logp_RK[runs] += log_likelihoods(candidates_KHSA, state_NH, label_NH)  # 3
    return worst_of_best(logp_RK, regret_K)  # 4


def hardest_missing_rate(num_rare: int, num_draws: int) -> float:
    """I z (1 - z)^n at z = 1/(n + 1), its maximum: the probability of an observation that n draws have not shown.

    The rate is capped at 1/I, so that I rare observations fit. It falls with n.
    """
    rate = min(1 / (num_draws + 1), 1 / num_rare)
    return num_rare * rate * (1 - rate) ** num_draws


def mle_distances(laws_KM: Array, num_demos: int) -> tuple[Array, Array, Array]:
    """Every sample of n independent draws from law 0, by enumeration of the counts.

    Args:
        laws_KM: K laws of M outcomes; an outcome is a whole trajectory.
        num_demos: n >= 1.
    Returns:
        probability of each count vector [C]; D of the worst most likely law there [C]; and for every law the total
        probability [K] that it is at least as likely as law 0.
    """
    num_outcomes = laws_KM.shape[1]
    counts_CM = np.array(
        [
            np.bincount(draw, minlength=num_outcomes)
            for draw in itertools.combinations_with_replacement(range(num_outcomes), num_demos)
        ]
    )
    prob_C = stats.multinomial.pmf(counts_CM, num_demos, laws_KM[0])
    with np.errstate(divide="ignore"):
        logp_KM = np.maximum(
            np.log(laws_KM), -1e6
        )  # 0 * log 0 = 0; an impossible outcome outweighs all others
    logp_CK = counts_CM @ logp_KM.T
    distance_K = np.maximum(0.0, hellinger_sq(laws_KM[0], laws_KM))
    is_best_CK = logp_CK >= logp_CK.max(1, keepdims=True) - 1e-9
    worst_C = np.where(is_best_CK, distance_K, 0).max(1)
    return prob_C, worst_C, prob_C @ (logp_CK >= logp_CK[:, :1] - 1e-9)


# ---- a table for every step: DAgger ------------------------------------------------------------------------------------


def dagger_tables(
    horizon: int, num_rare: int, rate: float, num_episodes: int, num_runs: int, generator: np.random.Generator
) -> tuple[Array, Array]:
    """DAgger in a ditch of depth 1 with nothing shared between steps: (road error rates [R, H], climbs [R, H] bool).

    On the road every step shows one of I rare observations (each at `rate`) or a common one; the answer to a rare one is
    learnt per step. So is what to do in the ditch. `clone_online` over the class of all such tables, in closed form:

    1 for t in 1..n:
    2   play an episode: slip at an unlabelled rare observation, stay in an unlabelled ditch
    3   label every visited state
    """
    known_RHI = np.zeros((num_runs, horizon, num_rare), bool)
    climbs_RH = np.zeros((num_runs, horizon), bool)
    for _ in range(num_episodes):  # 1
        observed_HR = np.floor(generator.random((horizon, num_runs)) / rate)
        is_on_road_R = np.ones(num_runs, bool)
        for h in range(horizon):
            rare = np.flatnonzero(is_on_road_R & (observed_HR[h] < num_rare))
            item = observed_HR[h, rare].astype(int)
            next_R = is_on_road_R | climbs_RH[:, h]  # 2
            next_R[rare] = known_RHI[rare, h, item]
            known_RHI[rare, h, item] = True  # 3
            climbs_RH[:, h] |= ~is_on_road_R
            is_on_road_R = next_R
    return rate * (~known_RHI).sum(-1), climbs_RH


def table_regret(error_RH: Array, climbs_RH: Array) -> tuple[Array, Array]:
    """(regret [R], mean error rate on own states [R]) of the tables that DAgger found, exact."""
    on_road_R, regret_R, wrong_R = np.ones(len(error_RH)), np.zeros(len(error_RH)), np.zeros(len(error_RH))
    for error_R, climbs_R in zip(error_RH.T, climbs_RH.T, strict=True):
        rewarded_R = on_road_R * (1 - error_R)
        regret_R += 1 - rewarded_R
        wrong_R += on_road_R * error_R + (1 - on_road_R) * ~climbs_R
        on_road_R = rewarded_R + (1 - on_road_R) * climbs_R
    return regret_R, wrong_R / error_RH.shape[1]
