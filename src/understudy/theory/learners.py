"""The tabular imitation learners of arXiv:2606.30923, over a finite class of policies and an `mdp.MDP`.

K policies, H horizon, S states, A actions, R independent runs side by side, T episodes (plus one: the final weights),
N demonstrations a run. A class is pi_KHSA; the law of the expert's labels is labels_RHSA: already noised, one a run (use
`np.broadcast_to` for a common one). Ties of a score are returned as shares, so that no coin has to be thrown.
Numbers in comments are the lines of the pseudo-code in each docstring; "NAIL 3" where two algorithms share the code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from understudy.theory.mdp import MDP, noised, require_laws, sample_trajectories

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class History:
    """What an online learner did: log weights before every episode and after the last, and the states it visited."""

    logw_TRK: Array
    """[T + 1, R, K], normalised: row t is what episode t was played with, the last row is after all labels."""
    state_TRH: Array
    """[T, R, H] states of the learner's own rollouts."""


def one_hot_policies(action_KHS: Array, num_actions: int) -> Array:
    """Deterministic policies as laws, [..., A]."""
    return np.eye(num_actions)[action_KHS]


def mixture(weight_K: Array, pi_KHSA: Array) -> Array:
    """The per-state mixture mu_h(a|s) = sum_k w_k pi_k,h(a|s), [H, S, A]: at every step the policy is drawn anew."""
    return np.einsum("k,khsa->hsa", weight_K, pi_KHSA)


def vote(weight_K: Array, pi_KHSA: Array) -> Array:
    """The deterministic policy argmax_a sum_k w_k pi_k,h(a|s), [H, S, A]; ties go to the lowest action."""
    votes_HSA = mixture(weight_K, pi_KHSA)
    return np.eye(votes_HSA.shape[-1])[_first_largest(votes_HSA)]


def winners(score_RK: Array) -> Array:
    """How often each policy is returned if ties for the largest score are split evenly, [R, K], rows sum to 1.

    Scores within 1e-9 (relative) of the largest are ties: sums of logarithms in another order differ by rounding.
    """
    best_R1 = score_RK.max(-1, keepdims=True)
    slack_R1 = np.where(np.isfinite(best_R1), 1e-9 * (1 + np.abs(best_R1)), 0)
    is_best_RK = score_RK >= best_R1 - slack_R1
    return is_best_RK / is_best_RK.sum(-1, keepdims=True)


def visit_counts(state_RNH: Array, action_RNH: Array, num_states: int, num_actions: int) -> Array:
    """How often each (step, state, action) was seen by each run, [R, H, S, A]: all that a likelihood needs."""
    num_runs, _, horizon = state_RNH.shape
    run_R11, step_H = np.arange(num_runs)[:, None, None], np.arange(horizon)
    cell_RNH = ((run_R11 * horizon + step_H) * num_states + state_RNH) * num_actions + action_RNH
    shape = (num_runs, horizon, num_states, num_actions)
    return np.bincount(cell_RNH.ravel(), minlength=math.prod(shape)).reshape(shape)


def log_likelihood(counts_RHSA: Array, pi_KHSA: Array) -> Array:
    """sum_(h,s,a) count * log pi_k,h(a|s), [R, K] in nats; -inf where a policy forbids what was seen."""
    counts_RX = counts_RHSA.reshape(len(counts_RHSA), -1).astype(float)
    prob_KX = pi_KHSA.reshape(len(pi_KHSA), -1)
    is_possible_KX = prob_KX > 0
    # 0 * -inf is NaN: sum over the support, and forbid separately.
    logp_KX = np.log(np.where(is_possible_KX, prob_KX, 1))
    num_forbidden_RK = counts_RX @ (~is_possible_KX).astype(float).T
    return np.where(num_forbidden_RK > 0, -np.inf, counts_RX @ logp_KX.T)


def demonstrations(
    mdp: MDP, noisy_HSA: Array, num: int, num_runs: int, generator: np.random.Generator
) -> Array:
    """Counts of `num` trajectories of the noisy expert a run, [R, H, S, A]; here the noise does drive the states."""
    state, action = sample_trajectories(mdp, noisy_HSA, num * num_runs, generator)
    shape = (num_runs, num, mdp.horizon)
    return visit_counts(state.reshape(shape), action.reshape(shape), mdp.num_states, mdp.num_actions)


def noised_cloning(counts_RHSA: Array, pi_KHSA: Array, eta: float, nu_HSA: Array) -> Array:
    """Maximum likelihood over the noised class, as shares of the class [R, K].

        1: return argmin_pi sum -log pi_eta(a|s)        pi_eta = (1 - eta) pi + eta nu

    Source: arXiv:2606.30923, the offline learner of Thm 6. Ours splits ties.
    """
    return winners(log_likelihood(counts_RHSA, noised(pi_KHSA, eta, nu_HSA)))


def plain_cloning(counts_RHSA: Array, pi_KHSA: Array) -> Array:
    """Maximum likelihood that ignores the noise, as shares of the class [R, K]: all policies ruled out is a tie."""
    return winners(log_likelihood(counts_RHSA, pi_KHSA))


def nail(
    mdp: MDP,
    pi_KHSA: Array,
    labels_RHSA: Array,
    eta: float,
    nu_HSA: Array,
    num_episodes: int,
    generator: np.random.Generator,
    rate: float | None = None,
) -> History:
    """Exponential weights on the noised class, along rollouts of the mixture.

        1: w = uniform
        2: for t in 1..n:
        3:     roll out mu_t = sum_pi w(pi) pi
        4:     a'_h ~ noisy expert(.|s_h) at every visited state
        5:     w(pi) *= (prod_h pi_eta(a'_h|s_h))^(1/H); normalise
        6: return mu_T with T uniform in 1..n

    Line 6 is the caller's: `mixture(exp(logw_TRK[T - 1, r]), pi)`.

    Args:
        labels_RHSA: the noisy expert, known to the learner through its labels only.
        eta, nu_HSA: the noise, known to the learner.
        rate: the exponent of line 5; 1/H if None, as published.
    Raises:
        ValueError: shapes that do not fit, or no episode.
    Source: arXiv:2606.30923, Algorithm NAIL (Thm 8).
    """
    _require_class(mdp, pi_KHSA, labels_RHSA, num_episodes)
    # 5, as a gain a label: the log of the noised policy to the power 1/H.
    exponent = 1 / mdp.horizon if rate is None else rate
    noisy_KHSA = noised(pi_KHSA, eta, nu_HSA)
    with np.errstate(divide="ignore"):
        gain_KHSA = exponent * np.log(noisy_KHSA)
    # 1-5
    return _exponential_weights(
        mdp, pi_KHSA, labels_RHSA, gain_KHSA, num_episodes, generator, is_greedy=False
    )


def nailgun(
    mdp: MDP,
    pi_KHSA: Array,
    labels_RHSA: Array,
    alpha: float,
    rho: float,
    num_episodes: int,
    generator: np.random.Generator,
) -> History:
    """Multiplicative votes of a deterministic class, along greedy rollouts of the vote; the noise is not known.

        1: r = sqrt((1 - alpha) / (alpha rho)); w = uniform
        2: for t in 1..n:
        3:     mubar_t(s) = argmax_a sum_{pi: pi(s) = a} w(pi)
        4:     roll out mubar_t
        5:     a'_h ~ noisy expert(.|s_h) at every visited state
        6:     w(pi) *= r^#{h: pi(s_h) = a'_h}; normalise
        7: return mubar_T with T uniform in 1..n

    Line 7 is the caller's: `vote(exp(logw_TRK[T - 1, r]), pi)`. Past the margin (alpha (1 + rho) > 1) r < 1 and labels
    count *against* a policy; this is what is published, so it is not refused here.

    Args:
        alpha, rho: promises that the rate is at most alpha, and no action gets more than rho of the noise.
    Raises:
        ValueError: a stochastic policy in the class, alpha outside (0, 1), rho outside (0, 1], shapes that do not fit.
    Source: arXiv:2606.30923, Algorithm NAILGUN (Thm 9).
    """
    _require_class(mdp, pi_KHSA, labels_RHSA, num_episodes)
    if not (0 < alpha < 1 and 0 < rho <= 1):
        raise ValueError(f"alpha in (0, 1) and rho in (0, 1] expected, got alpha {alpha} and rho {rho}.")
    if not np.all((pi_KHSA == 0) | (pi_KHSA == 1)):
        raise ValueError("NAILGUN votes over deterministic policies; one of the class is stochastic.")
    log_r = 0.5 * math.log((1 - alpha) / (alpha * rho))  # 1
    # 6, as a gain a label: log r where the policy plays the label. pi is 0 or 1.
    gain_KHSA = log_r * pi_KHSA
    # 1-6
    return _exponential_weights(mdp, pi_KHSA, labels_RHSA, gain_KHSA, num_episodes, generator, is_greedy=True)


def mistaken_episodes(history: History, pi_KHSA: Array, expert: int) -> Array:
    """Whether the vote differed from the (deterministic) expert, an index of the class, at a visited state, [T, R]."""
    truth_HS = np.argmax(pi_KHSA[expert], axis=-1)
    step_H = np.arange(truth_HS.shape[0])
    mistaken = []
    for logw_RK, state_RH in zip(history.logw_TRK[:-1], history.state_TRH, strict=True):
        votes_RHA = np.einsum("rk,krha->rha", np.exp(logw_RK), pi_KHSA[:, step_H, state_RH])
        voted_RH = _first_largest(votes_RHA)
        mistaken.append(np.any(voted_RH != truth_HS[step_H, state_RH], axis=-1))
    return np.stack(mistaken)


def neil(
    mdp: MDP,
    pi_KHSA: Array,
    labels_RHSA: Array,
    eta: float,
    nu_HSA: Array,
    num_each: int,
    delta: float,
    generator: np.random.Generator,
) -> Array:
    """Candidate elimination with known noise; the survivors as even shares [R, K].

        1: beta = 2 log(4 |Pi| / delta); V = Pi
        2: for pi in Pi:
        3:     roll out pi m times, query labels
        4:     L(pi') = sum log pi'_eta(a'|s) for every pi'
        5:     if max L - L(pi) > beta: drop pi from V
        6: return any of V

    "Any" is an even share of V here. If nobody survives (probability at most delta) all of Pi share.

    Args:
        num_each: m, episodes a policy; the learner plays m |Pi| in all.
    Raises:
        ValueError: shapes that do not fit, or delta outside (0, 1).
    Source: arXiv:2606.30923, Algorithm NEIL (Thm 16-17).
    """
    _require_class(mdp, pi_KHSA, labels_RHSA, num_each)
    beta = elimination_threshold(len(pi_KHSA), delta)  # 1
    noisy_KHSA = noised(pi_KHSA, eta, nu_HSA)
    num_runs = len(labels_RHSA)
    survives_RK = np.ones((num_runs, len(pi_KHSA)), dtype=bool)
    for k, pi_HSA in enumerate(pi_KHSA):  # 2
        counts_RHSA = np.zeros(labels_RHSA.shape, dtype=int)
        for _ in range(num_each):  # 3
            prob_RHSA = np.broadcast_to(pi_HSA, labels_RHSA.shape)
            state_RH, label_RH = _interact(mdp, prob_RHSA, labels_RHSA, generator)
            counts_RHSA += visit_counts(state_RH[:, None], label_RH[:, None], mdp.num_states, mdp.num_actions)
        score_RK = log_likelihood(counts_RHSA, noisy_KHSA)  # 4
        survives_RK[:, k] = score_RK[:, k] >= score_RK.max(-1) - beta  # 5
    survives_RK[~survives_RK.any(-1)] = True
    return survives_RK / survives_RK.sum(-1, keepdims=True)  # 6


def elimination_threshold(num_policies: int, delta: float) -> float:
    """NEIL's beta = 2 log(4 |Pi| / delta), nats."""
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), got {delta}.")
    return 2 * math.log(4 * num_policies / delta)


def _exponential_weights(
    mdp: MDP,
    pi_KHSA: Array,
    labels_RHSA: Array,
    gain_KHSA: Array,
    num_episodes: int,
    generator: np.random.Generator,
    is_greedy: bool,
) -> History:
    """The loop that NAIL (lines 1-5) and NAILGUN (lines 1-6) share: log w(pi) += sum_h gain_pi(a'_h|s_h)."""
    num_runs = len(labels_RHSA)
    logw_RK = np.full((num_runs, len(pi_KHSA)), -math.log(len(pi_KHSA)))  # NAIL 1, NAILGUN 1
    history, visited = [logw_RK], []
    step_H = np.arange(mdp.horizon)
    # The mixture at every state at once, as a matrix product.
    pi_KX = pi_KHSA.reshape(len(pi_KHSA), -1)
    for _ in range(num_episodes):  # NAIL 2, NAILGUN 2
        prob_RHSA = (np.exp(logw_RK) @ pi_KX).reshape(num_runs, *pi_KHSA.shape[1:])  # NAIL 3
        if is_greedy:
            prob_RHSA = np.eye(mdp.num_actions)[_first_largest(prob_RHSA)]  # NAILGUN 3
        state_RH, label_RH = _interact(mdp, prob_RHSA, labels_RHSA, generator)  # NAIL 3-4, NAILGUN 4-5
        # NAIL 5, NAILGUN 6
        logw_RK = logw_RK + gain_KHSA[:, step_H, state_RH, label_RH].sum(-1).T
        logw_RK = logw_RK - np.logaddexp.reduce(logw_RK, axis=-1, keepdims=True)
        history.append(logw_RK)
        visited.append(state_RH)
    return History(np.stack(history), np.stack(visited))


def _interact(
    mdp: MDP, prob_RHSA: Array, labels_RHSA: Array, generator: np.random.Generator
) -> tuple[Array, Array]:
    """One episode a run under its own policy: visited states [R, H] and the expert's labels there [R, H].

    The labels do not drive the states: the learner's own action does.
    """
    runs = np.arange(len(prob_RHSA))
    # NAIL 3, NAILGUN 4, NEIL 3
    state_R = _draw(np.broadcast_to(mdp.start_S, (len(runs), mdp.num_states)), generator)
    states, labels = [], []
    for h in range(mdp.horizon):
        states.append(state_R)
        labels.append(_draw(labels_RHSA[runs, h, state_R], generator))  # NAIL 4, NAILGUN 5, NEIL 3
        if h < mdp.horizon - 1:
            action_R = _draw(prob_RHSA[runs, h, state_R], generator)
            state_R = _draw(mdp.transition_HSAS[h, state_R, action_R], generator)
    return np.stack(states, axis=1), np.stack(labels, axis=1)


def _draw(prob_RA: Array, generator: np.random.Generator) -> Array:
    """One index a row, by inverting the cumulative law."""
    cumulative = np.cumsum(prob_RA, axis=-1)
    index = (generator.random((len(prob_RA), 1)) * cumulative[:, -1:] >= cumulative).sum(-1)
    return np.minimum(index, prob_RA.shape[-1] - 1)


def _first_largest(votes: Array) -> Array:
    """argmax over the last axis; votes within 1e-9 of the largest are ties, and the lowest action wins."""
    return np.argmax(votes >= votes.max(-1, keepdims=True) - 1e-9, axis=-1)


def _require_class(mdp: MDP, pi_KHSA: Array, labels_RHSA: Array, num_episodes: int) -> None:
    shape = (mdp.horizon, mdp.num_states, mdp.num_actions)
    if pi_KHSA.shape[1:] != shape or labels_RHSA.shape[1:] != shape or num_episodes < 1:
        raise ValueError(
            f"policies and labels [*, {shape}] and an episode at least expected, got {pi_KHSA.shape}, "
            f"{labels_RHSA.shape} and {num_episodes} episodes."
        )
    require_laws(pi_KHSA, "pi_KHSA")
    require_laws(labels_RHSA, "labels_RHSA")
