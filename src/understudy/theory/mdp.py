"""Tabular episodic MDPs: trajectory laws and their exact Hellinger distances by dynamic programming.

H horizon, S states, A actions. A policy is an array pi[h, s, a] of probabilities. The last step has no transition.
Two trajectory laws of one MDP differ in their policies only, so their Hellinger affinity is a product along the path and
is summed backwards, step by step: exact at every horizon, with no trajectory enumerated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class MDP:
    """Start law [S] and transitions [H - 1, S, A, S]; every row is a probability vector.

    Raises:
        ValueError: shapes that do not fit, or rows that are no probability vectors.
    """

    start_S: Array
    transition_HSAS: Array

    def __post_init__(self) -> None:
        num_states = self.start_S.shape[0]
        shape = self.transition_HSAS.shape
        if len(shape) != 4 or shape[1] != num_states or shape[3] != num_states:
            raise ValueError(f"transitions must be [H - 1, {num_states}, A, {num_states}], got {shape}.")
        require_laws(self.start_S, "start_S")
        require_laws(self.transition_HSAS, "transition_HSAS")

    @property
    def horizon(self) -> int:
        return self.transition_HSAS.shape[0] + 1

    @property
    def num_states(self) -> int:
        return self.transition_HSAS.shape[1]

    @property
    def num_actions(self) -> int:
        return self.transition_HSAS.shape[2]


def require_laws(prob: Array, name: str) -> None:
    """Refuse an array whose last axis does not hold probability vectors."""
    # Asked so that a NaN is refused: every comparison with one is false.
    if prob.size and not (prob.min() >= 0 and np.abs(prob.sum(-1) - 1).max() <= 1e-9):
        raise ValueError(
            f"{name} must hold probabilities >= 0 that sum to 1, got least {prob.min():g} and sums from "
            f"{prob.sum(-1).min():g} to {prob.sum(-1).max():g}."
        )


def noised(pi: Array, eta: float, nu: Array) -> Array:
    """The noised policy (1 - eta) pi + eta nu.

    Args:
        pi: [..., A] probabilities.
        eta: in [0, 1).
        nu: broadcastable to pi.
    """
    if not 0 <= eta < 1:
        raise ValueError(f"eta must be in [0, 1), got {eta}: at 1 nothing of the policy is left.")
    return (1 - eta) * pi + eta * nu


def hellinger_sq(p: Array, q: Array) -> Array:
    """Squared Hellinger distance along the last axis, in [0, 1]:

    D_H^2(p, q) = 1/2 sum_i (sqrt p_i - sqrt q_i)^2
    """
    return 0.5 * ((np.sqrt(p) - np.sqrt(q)) ** 2).sum(-1)


def trajectory_hellinger_sq(mdp: MDP, pi: Array, other: Array) -> float:
    """D_H^2 between the laws P^pi and P^other of the whole trajectory (s_1, a_1, ..., s_H, a_H).

        f_h(s) = sum_a sqrt(pi_h(a|s) other_h(a|s)) sum_s' P_h(s'|s, a) f_{h+1}(s'),    D_H^2 = 1 - sum_s start(s) f_1(s)

    Args:
        pi, other: [H, S, A].
    """
    per_action_HSA = np.sqrt(pi * other)
    affinity_S = per_action_HSA[-1].sum(-1)
    for h in range(mdp.horizon - 2, -1, -1):
        affinity_S = (per_action_HSA[h] * (mdp.transition_HSAS[h] @ affinity_S)).sum(-1)
    return float(1 - mdp.start_S @ affinity_S)


def augmented_hellinger_sq(mdp: MDP, roll_in: Array, labels: Array, other: Array) -> float:
    """D_H^2 between the augmented laws P^{roll_in, labels} and P^{roll_in, other}.

    An augmented trajectory (s_1, a'_1, ..., s_H, a'_H) has the states of a rollout of `roll_in`, and at each state an
    action drawn anew from the second policy, which does not drive the transition.

        f_h(s) = (sum_a sqrt(labels_h(a|s) other_h(a|s))) sum_s' T_h(s'|s) f_{h+1}(s'),
        T_h(s'|s) = sum_a roll_in_h(a|s) P_h(s'|s, a)

    Args:
        roll_in, labels, other: [H, S, A].
    Source: arXiv:2606.30923, the law P^{pi, pi'}.
    """
    per_state_HS = np.sqrt(labels * other).sum(-1)
    affinity_S = per_state_HS[-1]
    for h in range(mdp.horizon - 2, -1, -1):
        kernel_SS = np.einsum("sa,sat->st", roll_in[h], mdp.transition_HSAS[h])
        affinity_S = per_state_HS[h] * (kernel_SS @ affinity_S)
    return float(1 - mdp.start_S @ affinity_S)


def occupancy(mdp: MDP, pi: Array) -> Array:
    """P(s_h = s) under a policy, [H, S]."""
    visits = [mdp.start_S]
    for h in range(mdp.horizon - 1):
        visits.append(np.einsum("s,sa,sat->t", visits[-1], pi[h], mdp.transition_HSAS[h]))
    return np.stack(visits)


def policy_value(mdp: MDP, pi: Array, reward_HSA: Array) -> float:
    """Expected total reward of an episode."""
    return float(np.einsum("hs,hsa,hsa->", occupancy(mdp, pi), pi, reward_HSA))


def sample_trajectories(mdp: MDP, pi: Array, num: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """`num` independent episodes: states [num, H] and actions [num, H], integers."""
    state_N = _draw(np.broadcast_to(mdp.start_S, (num, mdp.num_states)), generator)
    states, actions = [], []
    for h in range(mdp.horizon):
        action_N = _draw(pi[h, state_N], generator)
        states.append(state_N)
        actions.append(action_N)
        if h < mdp.horizon - 1:
            state_N = _draw(mdp.transition_HSAS[h, state_N, action_N], generator)
    return np.stack(states, axis=1), np.stack(actions, axis=1)


def sample_labels(pi: Array, state_NH: Array, generator: np.random.Generator) -> Array:
    """One action drawn from a policy at every visited state, [num, H]."""
    num, horizon = state_NH.shape
    return _draw(pi[np.arange(horizon), state_NH].reshape(num * horizon, -1), generator).reshape(num, horizon)


def _draw(prob_NA: Array, generator: np.random.Generator) -> Array:
    """One index a row, by inverting the cumulative law."""
    cumulative = np.cumsum(prob_NA, axis=-1)
    index = (generator.random((len(prob_NA), 1)) * cumulative[:, -1:] >= cumulative).sum(-1)
    return np.minimum(index, prob_NA.shape[-1] - 1)
