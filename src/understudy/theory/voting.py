"""Votes counted exactly: how often the wrong action leads, what one label does to NAILGUN's weights, what no vote can tell.

N instances at once, K policies (policy 0 is the expert), H horizon, S states, A actions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from understudy.theory.mdp import MDP

Array = np.ndarray


def majority_error(num_M: Array, right_share: float) -> Array:
    """P(a majority of m labels is wrong), ties split, for every m of an integer array.

    P(X < m/2) + 1/2 P(X = m/2),   X ~ Bin(m, right_share);   1/2 at m = 0
    """
    num_M = np.asarray(num_M)
    below = stats.binom.cdf((num_M + 1) // 2 - 1, num_M, right_share)
    tie = np.where(num_M % 2 == 0, stats.binom.pmf(num_M // 2, num_M, right_share), 0)
    return below + 0.5 * tie


def vote_error(num: int, right: float, wrong: float, digits: int = 1) -> float:
    """P(some of `digits` votes goes wrong) after `num` draws that each say right, wrong or nothing; ties split.

        1 - sum_m Bin(m; n, right + wrong) (1 - majority_error(m))^digits

    All digits speak in the same draws (a demonstration that arrives shows all of them), independently otherwise.

    Args:
        num: draws, >= 0.
        right, wrong: probabilities a draw, at most 1 together.
    Raises:
        ValueError: no such probabilities.
    """
    speaks = right + wrong
    if num < 0 or right < 0 or wrong < 0 or speaks > 1 + 1e-12:
        raise ValueError(f"num >= 0 and right + wrong <= 1 expected, got {num}, {right} and {wrong}.")
    if speaks == 0:
        return 1 - 0.5**digits
    speaks, share = min(speaks, 1.0), right / speaks
    # Bernstein: mass beyond `spread` of the mean is below e^-41 a side (the quantiles of SciPy are slow at large n).
    mean = num * speaks
    spread = 28 + 9.1 * math.sqrt(mean)
    first, last = max(0, math.floor(mean - spread)), min(num, math.ceil(mean + spread))
    spoken_M = np.arange(first, last + 1)
    error_M = majority_error(spoken_M, share)
    # -expm1(L log1p(-e)) = 1 - (1 - e)^L without cancellation where e is tiny; e = 1 gives 1.
    with np.errstate(divide="ignore"):
        some_wrong_M = -np.expm1(digits * np.log1p(-error_M))
    return float(stats.binom.pmf(spoken_M, num, speaks) @ some_wrong_M)


def votes_needed(target: float, right: float, wrong: float, digits: int = 1) -> int:
    """The least number of draws with `vote_error` <= target; the error never grows with another draw.

    Raises:
        ValueError: target outside (0, 1/2), or right <= wrong, where no number suffices.
    """
    if not 0 < target < 0.5 or right <= wrong:
        raise ValueError(f"target in (0, 1/2) and right > wrong expected, got {target}, {right} and {wrong}.")
    enough = 1
    while vote_error(enough, right, wrong, digits) > target:
        enough *= 2
    too_few = enough // 2 if enough > 1 else 0
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if vote_error(middle, right, wrong, digits) > target:
            too_few = middle
        else:
            enough = middle
    return enough


@dataclass(frozen=True, eq=False, kw_only=True)
class Instances:
    """One step of NAILGUN in many random worlds: an MDP, a deterministic class, its weights, and noise within promises."""

    start_NS: Array
    transition_NHSAS: Array
    """[N, H - 1, S, A, S]."""
    action_NKHS: Array
    weight_NK: Array
    eta_N: Array
    nu_NHSA: Array
    alpha_N: Array
    """>= eta_N."""
    rho_N: Array
    """>= every entry of nu_NHSA; alpha (1 + rho) < 1."""


def random_instances(
    num: int,
    horizon: int,
    num_states: int,
    num_actions: int,
    num_policies: int,
    generator: np.random.Generator,
) -> Instances:
    """Worlds of every kind: spiky and flat laws, policies far from the expert or one entry away, noise that aims at the vote.

    rho is the largest entry of nu and eta is alpha half of the time, so that the promises are often kept with equality.
    """
    shape_HS = (horizon, num_states)
    spike = generator.choice([0.2, 1.0, 5.0], size=2)
    start = generator.dirichlet(np.full(num_states, spike[0]), num)
    transition = generator.dirichlet(
        np.full(num_states, spike[0]), (num, horizon - 1, num_states, num_actions)
    )
    action = generator.integers(num_actions, size=(num, num_policies, *shape_HS))
    # Half of the worlds: a policy leaves the expert with probability 0.3 an entry only.
    stays = generator.random(action.shape) < 0.7 * generator.integers(2, size=(num, 1, 1, 1))
    action = np.where(stays, action[:, :1], action)
    weight = generator.dirichlet(np.full(num_policies, spike[1]), num)
    nu = generator.dirichlet(np.full(num_actions, 1.0), (num, *shape_HS))
    voted = np.argmax(_votes(weight, action, num_actions), axis=-1)
    aimed = 0.6 * np.eye(num_actions)[voted] + 0.4 * nu
    aimed = aimed * (1 - np.eye(num_actions)[action[:, 0]])
    total = aimed.sum(-1, keepdims=True)
    aims = (generator.random((num, 1, 1, 1)) < 0.5) & (total > 0)
    nu = np.where(aims, aimed / np.where(total > 0, total, 1), nu)
    rho = nu.max(axis=(1, 2, 3))
    alpha = generator.uniform(0.02, 0.999, num) / (1 + rho)
    eta = alpha * np.where(generator.random(num) < 0.5, 1.0, generator.random(num))
    return Instances(
        start_NS=start,
        transition_NHSAS=transition,
        action_NKHS=action,
        weight_NK=weight,
        eta_N=eta,
        nu_NHSA=nu,
        alpha_N=alpha,
        rho_N=rho,
    )


def _votes(weight_NK: Array, action_NKHS: Array, num_actions: int) -> Array:
    return np.einsum("nk,nkhsa->nhsa", weight_NK, np.eye(num_actions)[action_NKHS])


def potential_step(world: Instances) -> tuple[Array, Array, Array]:
    """One episode of NAILGUN, exactly: what it does to W = 1/w(expert), and how probable a mistake is.

        W' / W = sum_pi w(pi) r^(#{h: pi(s_h) = a'_h} - #{h: expert(s_h) = a'_h})

    averaged over the labels a'_h (independent given the states) and the states of the vote's rollout, backwards in h.

    Returns:
        (E[W' / W], P(the vote differs from the expert at some visited state), the largest factor of one label), each [N];
        the last over all (policy, h, s) with pi(s) != expert(s): E over a' of r^(1[pi = a'] - 1[expert = a']).
    """
    num, _, horizon, _ = world.action_NKHS.shape
    num_actions = world.nu_NHSA.shape[-1]
    plays_NKHSA = np.eye(num_actions)[world.action_NKHS]
    eta = world.eta_N[:, None, None, None]
    label_NHSA = (1 - eta) * plays_NKHSA[:, 0] + eta * world.nu_NHSA
    r = np.sqrt((1 - world.alpha_N) / (world.alpha_N * world.rho_N))[:, None, None, None, None]
    factor_NKHS = np.einsum("nhsa,nkhsa->nkhs", label_NHSA, r ** (plays_NKHSA - plays_NKHSA[:, :1]))
    differs_NKHS = world.action_NKHS != world.action_NKHS[:, :1]
    voted_NHS = np.argmax(_votes(world.weight_NK, world.action_NKHS, num_actions), axis=-1)
    agrees_NHS = voted_NHS == world.action_NKHS[:, 0]
    value_NKS, clean_NS = factor_NKHS[:, :, -1], agrees_NHS[:, -1].astype(float)
    index_N = np.arange(num)[:, None]
    for h in range(horizon - 2, -1, -1):
        states = np.arange(world.start_NS.shape[1])[None]
        kernel_NST = world.transition_NHSAS[index_N, h, states, voted_NHS[:, h]]
        value_NKS = factor_NKHS[:, :, h] * np.einsum("nst,nkt->nks", kernel_NST, value_NKS)
        clean_NS = agrees_NHS[:, h] * np.einsum("nst,nt->ns", kernel_NST, clean_NS)
    ratio_N = np.einsum("ns,nk,nks->n", world.start_NS, world.weight_NK, value_NKS)
    mistake_N = 1 - (world.start_NS * clean_NS).sum(-1)
    worst_N = np.where(differs_NKHS, factor_NKHS, 0).max(axis=(1, 2, 3))
    return ratio_N, mistake_N, worst_N


def binomials(num: int, prob: float) -> Iterator[tuple[Array, Array]]:
    """(x, P(x)) of x ~ Bin(t, prob) for t = 0..n-1, by Pascal's rule; entries below 1e-40 at either end are left out."""
    first, prob_X = 0, np.ones(1)
    for _ in range(num):
        yield first + np.arange(len(prob_X)), prob_X
        prob_X = np.append(prob_X * (1 - prob), 0) + np.append(0, prob_X * prob)
        kept = np.flatnonzero(prob_X > 1e-40)
        first, prob_X = first + int(kept[0]), prob_X[kept[0] : kept[-1] + 1]


def hidden_centre_world(
    horizon: int, num_policies: int, rho: float, generator: np.random.Generator
) -> tuple[MDP, Array, Array]:
    """Random world (MDP, pi_KHSA, nu_HSA), 4 states and actions, where all policies leave one hidden policy at one step.

    Every policy, the expert (policy 0) too, plays the hidden centre but for one step of its own, where it plays something
    else in every state. So the untrained vote is the centre, and wrong in every episode at every horizon. The noise has rho
    on one wrong action, the centre's where the expert leaves it, and nothing on the expert's.

    Raises:
        ValueError: rho outside [1/3, 1], where it would not be the largest entry.
    """
    if not 1 / 3 <= rho <= 1:
        raise ValueError(f"rho in [1/3, 1] expected, got {rho}.")
    states, actions = 4, 4
    shape_HS = (horizon, states)
    transition = generator.dirichlet(np.full(states, 0.5), (horizon - 1, states, actions))
    world = MDP(generator.dirichlet(np.ones(states)), transition)
    centre_HS = generator.integers(actions, size=shape_HS)
    leaves_KH = np.arange(horizon) == (generator.permutation(num_policies) % horizon)[:, None]
    shift_KHS = generator.integers(1, actions, size=(num_policies, *shape_HS))
    action_KHS = (centre_HS + leaves_KH[:, :, None] * shift_KHS) % actions
    wrong_HS = (action_KHS[0] + generator.integers(1, actions, size=shape_HS)) % actions
    wrong_HS = np.where(leaves_KH[0][:, None], centre_HS, wrong_HS)
    return world, np.eye(actions)[action_KHS], aimed_noise(action_KHS[0], wrong_HS, rho, actions)


def aimed_noise(expert_HS: Array, wrong_HS: Array, rho: float, num_actions: int) -> Array:
    """nu_HSA: rho on `wrong`, nothing on the expert's action, the rest evenly on the others (three actions at least)."""
    aim_HSA, own_HSA = np.eye(num_actions)[wrong_HS], np.eye(num_actions)[expert_HS]
    return rho * aim_HSA + (1 - rho) * (1 - aim_HSA - own_HSA) / (num_actions - 2)


def mistake_probability(world: MDP, expert_HSA: Array, voted_HSA: Array) -> float:
    """P(a rollout of `voted` visits a state where it differs from `expert`); both deterministic, [H, S, A]."""
    agrees_HS = (expert_HSA == voted_HSA).all(-1)
    mass_S = world.start_S * agrees_HS[0]
    for h in range(world.horizon - 1):
        mass_S = np.einsum("s,sa,sat->t", mass_S, voted_HSA[h], world.transition_HSAS[h]) * agrees_HS[h + 1]
    return float(1 - mass_S.sum())


def tight_instance(alpha: float, rho: float) -> Instances:
    """Two policies of equal weight, one step, every promise kept with equality: nu is rho on the voted wrong action."""
    others = math.ceil((1 - rho) / rho - 1e-9)
    nu = np.array([rho, 0.0, *[(1 - rho) / others] * others]) if others else np.array([1.0, 0.0])
    # Action 0 wins the tie, the expert plays 1.
    return Instances(
        start_NS=np.ones((1, 1)), transition_NHSAS=np.zeros((1, 0, 1, len(nu), 1)),
        action_NKHS=np.array([1, 0]).reshape(1, 2, 1, 1), weight_NK=np.full((1, 2), 0.5), eta_N=np.array([alpha]),
        nu_NHSA=nu.reshape(1, 1, 1, -1), alpha_N=np.array([alpha]), rho_N=np.array([rho]),
    )  # fmt: skip


def code_mistakes(num: int, right: float, wrong: float, digits: int) -> Array:
    """P(some of `digits` votes has no strict majority for the right after t - 1 labels), t = 1..n, [n].

    Each episode gives every digit a label of its own: right, wrong or nothing. A tie is a mistake.
    """
    lead = np.ones(1)
    mistake_T = np.empty(num)
    for t in range(num):
        # lead[i] = P(right - wrong = i - t)
        mistake_T[t] = 1 - (1 - lead[: t + 1].sum()) ** digits
        lead = np.convolve(lead, [wrong, 1 - right - wrong, right])
    return mistake_T


def confusing_policy(expert: Array, nu: Array, eta: float, alpha: float) -> Array:
    """The policy that under noise of rate eta looks exactly as `expert` does under rate alpha >= eta.

        pi = (1 - alpha)/(1 - eta) expert + (alpha - eta)/(1 - eta) nu,    (1 - eta) pi + eta nu = (1 - alpha) expert + alpha nu

    It is a law exactly if eta <= alpha <= 1 (for every nu), and it is the expert itself if eta = alpha.

    Raises:
        ValueError: not 0 <= eta <= alpha <= 1 with eta < 1.
    Source: arXiv:2606.30923, the example after Thm 9's assumptions.
    """
    if not 0 <= eta <= alpha <= 1 or eta == 1:
        raise ValueError(f"0 <= eta <= alpha <= 1 with eta < 1 expected, got eta {eta} and alpha {alpha}.")
    return (1 - alpha) / (1 - eta) * expert + (alpha - eta) / (1 - eta) * nu
