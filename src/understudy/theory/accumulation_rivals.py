"""The two rivals of accumulation: a class that misses the expert (a bandit) and noisy actions (a combination lock).

H horizon, S states, A actions, K = 2 candidates, N demonstrations, R independent runs, I rare contexts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from understudy.theory.accumulation import World
from understudy.theory.mdp import MDP, Array, noised, sample_labels, sample_trajectories

# ---- misspecification --------------------------------------------------------------------------------------------------


def uncovered_risk(prob_I: Array, coverage: float, num_samples: int) -> float:
    """1/2 sum_i D(x_i) (1 - D(x_i)/C)^N: exact risk of a learner that guesses where no answer of its class was shown.

    The expert gives an answer the student cannot give, except with probability 1/C. Offline a demonstration helps only
    then; online (C = 1) every own answer is scored, so one query of a context tells which of two answers is right.

    Args:
        prob_I: probabilities of the contexts.
        coverage: C >= 1.
        num_samples: N, demonstrations or queries.
    Raises:
        ValueError: coverage below 1.
    Source: DERIVED, for the instance of arXiv:2606.30445 Thm 1.
    """
    if coverage < 1:
        raise ValueError(f"coverage must be >= 1, got {coverage}.")
    return float(0.5 * (prob_I * (1 - prob_I / coverage) ** num_samples).sum())


def hardest_contexts(num_rare: int, coverage: float, num_samples: int) -> Array:
    """I rare contexts at the rate C/(N + 1) where their risk is largest (capped at 1/I), and a common one."""
    rate = min(coverage / (num_samples + 1), 1 / num_rare)
    return np.array([rate] * num_rare + [max(0.0, 1 - num_rare * rate)])


def simulate_uncovered(
    prob_I: Array, coverage: float, num_samples: int, num_runs: int, generator: np.random.Generator
) -> Array:
    """Risk [R] of that learner on drawn demonstrations; the coin of a guess enters by its mean."""
    seen_RI = generator.multinomial(num_samples, prob_I, size=num_runs)
    is_shown_RI = generator.binomial(seen_RI, 1 / coverage) > 0
    return 0.5 * (~is_shown_RI * prob_I).sum(-1)


# ---- noise -------------------------------------------------------------------------------------------------------------


def lock_world(horizon: int) -> tuple[World, Array, Array]:
    """(world, candidates [2, H, 2, 3], noise law [H, 2, 3]) of the combination lock.

    Action 0 advances, any other falls to the bottom (state 1) for good. Both candidates advance until the last step, and
    there play 0 or 1; reward 1 for the expert's (candidate 0's) action there. The noise falls (action 2), and at the
    last step tosses a coin between 0 and 1.

    Raises:
        ValueError: horizon < 2.
    Source: arXiv:2606.30923, lower bound for offline learners.
    """
    if horizon < 2:
        raise ValueError(f"horizon >= 2 expected, got {horizon}.")
    transition_SAS = np.zeros((2, 3, 2))
    transition_SAS[:, :, 1] = 1
    transition_SAS[0, 0] = [1, 0]
    mdp = MDP(np.array([1.0, 0.0]), np.broadcast_to(transition_SAS, (horizon - 1, 2, 3, 2)))
    candidates_KHSA = np.zeros((2, horizon, 2, 3))
    candidates_KHSA[..., 0] = 1
    candidates_KHSA[1, -1, 0] = [0, 1, 0]
    noise_HSA = np.zeros((horizon, 2, 3))
    noise_HSA[..., 2] = 1
    noise_HSA[-1, 0] = [0.5, 0.5, 0]
    reward_HSA = np.zeros((horizon, 2, 3))
    reward_HSA[-1, 0, 0] = 1
    return World(mdp, reward_HSA, candidates_KHSA[0]), candidates_KHSA, noise_HSA


def vote_failure(num_labels: Array | int, eta: float) -> Array:
    """P(a majority of k labels is wrong), each wrong with probability eta/2, ties decided by a coin."""
    k = np.asarray(num_labels)
    below = stats.binom.sf(k // 2, k, eta / 2)
    return below + np.where(k % 2 == 0, 0.5 * stats.binom.pmf(k // 2, k, eta / 2), 0.0)


def lock_failure(horizon: int, eta: float, num_demos: int) -> float:
    """P(the noise-aware most likely candidate is wrong after n demonstrations of the lock), exact.

    A demonstration reaches the last step with probability q = (1 - eta)^(H - 1) and then is one label:
    sum_k Binomial(k; n, q) P(k labels mislead), at least 1/2 (1 - q)^n, the term without any label.

    Source: DERIVED.
    """
    reach = (1 - eta) ** (horizon - 1)
    most = int(min(num_demos, num_demos * reach + 12 * math.sqrt(num_demos * reach) + 40))
    k = np.arange(most + 1)
    return float(stats.binom.pmf(k, num_demos, reach) @ vote_failure(k, eta))


def simulate_lock(
    horizon: int, eta: float, num_demos: int, is_online: bool, num_runs: int, generator: np.random.Generator
) -> int:
    """How many of `num_runs` learners choose the wrong candidate.

    Offline the trajectories are the noisy expert's, online the states are those of the candidates themselves (which
    agree on them), and the noisy expert labels them.
    """
    world, candidates_KHSA, noise_HSA = lock_world(horizon)
    laws_KHSA = noised(candidates_KHSA, eta, noise_HSA)
    num_all = num_runs * num_demos
    state_NH, action_NH = sample_trajectories(
        world.mdp, world.expert_HSA if is_online else laws_KHSA[0], num_all, generator
    )
    if is_online:
        action_NH = sample_labels(laws_KHSA[0], state_NH, generator)
    ratio = np.log(laws_KHSA[1, -1, 0, :2] / laws_KHSA[0, -1, 0, :2])
    evidence_N = np.where(state_NH[:, -1] == 0, ratio[np.minimum(action_NH[:, -1], 1)], 0.0)
    evidence_R = evidence_N.reshape(num_runs, num_demos).sum(1)
    is_tie_R = np.abs(evidence_R) < 1e-9
    return int(np.where(is_tie_R, generator.random(num_runs) < 0.5, evidence_R > 0).sum())


# ---- the common currency -----------------------------------------------------------------------------------------------


def episodes_needed(regret_after: Callable[[int], float], target: float) -> int:
    """The least n >= 1 with regret_after(n) <= target, for a function that does not rise; by doubling and bisection.

    Raises:
        ValueError: not reached within 2^40 episodes.
    """
    high = 1
    while regret_after(high) > target:
        high *= 2
        if high > 2**40:
            raise ValueError(f"a regret of {target} is not reached within 2^40 episodes.")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if regret_after(middle) <= target else (middle, high)
    return high
