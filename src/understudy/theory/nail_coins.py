"""NAIL on a class of coins, exactly: one state, two actions, an expert that is a biased coin.

K coins, T episodes, X counts of labels. A coin is its probability of action 0; the noise is a fair coin.
"""

from __future__ import annotations

from itertools import islice

import numpy as np
from scipy import special

from understudy.theory import learners
from understudy.theory.intervals import bounded_mean_interval
from understudy.theory.mdp import MDP, noised, trajectory_hellinger_sq
from understudy.theory.voting import binomials

Array = np.ndarray

COINS = (0.8, 0.0, 0.1, 0.2)
"""The expert first. Evenly mixed they are farther from it than the best deterministic policy is."""


def coin_world(horizon: int, eta: float) -> tuple[MDP, Array, Array, Array]:
    """(MDP, pi_KHSA, nu_HSA, noisy expert [H, S, A]) of `COINS`: every step is the same toss."""
    prob_K = np.array(COINS)
    pi_KHSA = np.broadcast_to(
        np.stack([prob_K, 1 - prob_K], axis=-1)[:, None, None], (len(COINS), horizon, 1, 2)
    )
    nu_HSA = np.full((horizon, 1, 2), 0.5)
    return MDP(np.ones(1), np.ones((horizon - 1, 1, 2, 1))), pi_KHSA, nu_HSA, noised(pi_KHSA[0], eta, nu_HSA)


def distance_by_episode(num: int, horizon: int, eta: float) -> Array:
    """E D_H^2(P^expert, P^mu_t) for t = 1..n, [n], exactly: the weights depend on the count of one label only.

    After t episodes x of t H labels are 0, x ~ Bin(t H, noisy expert), log w = 1/H (x log p + (t H - x) log(1 - p)), and

        D_H^2 = 1 - (sqrt(e m) + sqrt((1 - e) (1 - m)))^H,    e the expert's coin, m the weights' mean coin
    """
    prob_K = np.array(COINS)
    noisy_K, expert = noised(prob_K, eta, np.array(0.5)), prob_K[0]
    distance_T = np.empty(num)
    every_episode = islice(binomials(num * horizon, float(noisy_K[0])), 0, None, horizon)
    for t, (zeros_X, prob_X) in enumerate(every_episode):
        zeros_X1 = zeros_X[:, None]
        score_XK = (zeros_X1 * np.log(noisy_K) + (t * horizon - zeros_X1) * np.log1p(-noisy_K)) / horizon
        mean_X = special.softmax(score_XK, axis=-1) @ prob_K
        affinity_X = np.sqrt(expert * mean_X) + np.sqrt((1 - expert) * (1 - mean_X))
        distance_T[t] = prob_X @ (1 - affinity_X**horizon)
    return distance_T


def simulated_distance(
    num: int, horizon: int, eta: float, num_runs: int, generator: np.random.Generator
) -> tuple[float, float, float]:
    """(mean, low, high) of D_H^2(P^expert, P^mu_T) over real runs of NAIL, T uniform in 1..n."""
    world, pi_KHSA, nu_HSA, noisy_HSA = coin_world(horizon, eta)
    labels_RHSA = np.broadcast_to(noisy_HSA, (num_runs, *noisy_HSA.shape))
    history = learners.nail(world, pi_KHSA, labels_RHSA, eta, nu_HSA, num, generator)
    drawn_RK = np.exp(history.logw_TRK[generator.integers(num, size=num_runs), np.arange(num_runs)])
    mixtures = (learners.mixture(weight_K, pi_KHSA) for weight_K in drawn_RK)
    distance_R = np.array([trajectory_hellinger_sq(world, pi_KHSA[0], mixed_HSA) for mixed_HSA in mixtures])
    return bounded_mean_interval(np.clip(distance_R, 0, 1), 0, 1)


def best_vote(horizon: int) -> float:
    """The least D_H^2 between the expert and a deterministic policy of the coin world, by trying all 2^H."""
    world, pi_KHSA, _, _ = coin_world(horizon, 0.0)
    plays = np.stack(np.meshgrid(*[[0, 1]] * horizon), axis=-1).reshape(-1, horizon)
    return min(trajectory_hellinger_sq(world, pi_KHSA[0], np.eye(2)[play][:, None]) for play in plays)
