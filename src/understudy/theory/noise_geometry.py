"""Many small noisy-imitation problems at once: exact distances, random instances and extremal families.

N instances, H horizon, S states, A actions, K paths. "Clean" is a distance between the laws of expert
and student, "noisy" one between their noised laws; "labels" are actions drawn anew at the states that the student visits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from understudy.theory.mdp import MDP, hellinger_sq

Array = np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Instances:
    """N problems of one size."""

    start_NS: Array
    transition_NHSAS: Array
    """One step fewer than the horizon."""
    student_NHSA: Array
    expert_NHSA: Array
    nu_NHSA: Array
    eta_N: Array

    def noised(self, policy_NHSA: Array) -> Array:
        eta = self.eta_N[:, None, None, None]
        return (1 - eta) * policy_NHSA + eta * self.nu_NHSA

    def mdp(self, index: int) -> MDP:
        return MDP(self.start_NS[index], self.transition_NHSAS[index])


def joined(parts: Sequence[Instances]) -> Instances:
    """Instances of one size, one after another."""
    stacked: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in Instances.__dataclass_fields__
    }
    return Instances(**stacked)


def path_distance(start_NS: Array, transition_NHSAS: Array, p_NHSA: Array, q_NHSA: Array) -> Array:
    """D^2 between the trajectory laws of two policies, [N], exact to a relative (not only absolute) rounding error.

        d_h(s) = D^2(p_h(s), q_h(s)) + sum_a sqrt(p_h(a|s) q_h(a|s)) sum_s' P_h(s'|s, a) d_{h+1}(s')

    Sums of distances only, where 1 - affinity would cancel: worst cases often lie at distances near 0.
    """
    step_NHS = hellinger_sq(p_NHSA, q_NHSA)
    overlap_NHSA = np.sqrt(p_NHSA * q_NHSA)
    distance_NS = step_NHS[:, -1]
    for h in range(step_NHS.shape[1] - 2, -1, -1):
        later_NSA = np.einsum("nsat,nt->nsa", transition_NHSAS[:, h], distance_NS)
        distance_NS = step_NHS[:, h] + (overlap_NHSA[:, h] * later_NSA).sum(-1)
    return (start_NS * distance_NS).sum(-1)


def roll_in_kernel(inst: Instances) -> Array:
    """Transitions under the student whatever the label is: [N, H - 1, S, 1, S], to broadcast over actions."""
    num_moves = inst.transition_NHSAS.shape[1]
    return np.einsum("nhsa,nhsat->nhst", inst.student_NHSA[:, :num_moves], inst.transition_NHSAS)[
        :, :, :, None
    ]


def clean_distance(inst: Instances) -> Array:
    """D^2(P^expert, P^student)."""
    return path_distance(inst.start_NS, inst.transition_NHSAS, inst.expert_NHSA, inst.student_NHSA)


def noisy_distance(inst: Instances) -> Array:
    """D^2(P^{expert_eta}, P^{student_eta}): demonstrations, the noise rolled in."""
    expert, student = inst.noised(inst.expert_NHSA), inst.noised(inst.student_NHSA)
    return path_distance(inst.start_NS, inst.transition_NHSAS, expert, student)


def label_distance(inst: Instances) -> Array:
    """D^2(P^{student, expert}, P^{student, student}): clean labels at the student's states."""
    return path_distance(inst.start_NS, _over_actions(inst), inst.expert_NHSA, inst.student_NHSA)


def noisy_label_distance(inst: Instances) -> Array:
    """D^2(P^{student, expert_eta}, P^{student, student_eta}): noisy labels at the clean student's states."""
    expert, student = inst.noised(inst.expert_NHSA), inst.noised(inst.student_NHSA)
    return path_distance(inst.start_NS, _over_actions(inst), expert, student)


def _over_actions(inst: Instances) -> Array:
    return np.broadcast_to(roll_in_kernel(inst), inst.transition_NHSAS.shape)


def noisy_label_divergences(inst: Instances) -> tuple[Array, Array]:
    """(forward, reverse) KL in nats between the two laws of `noisy_label_distance`, by the chain rule:

    KL = sum_h E_{s_h ~ student} KL(noisy label laws at s_h)
    """
    expert, student = inst.noised(inst.expert_NHSA), inst.noised(inst.student_NHSA)
    visits_NS, kernel_NHSS = inst.start_NS, roll_in_kernel(inst)[:, :, :, 0]
    forward_N, reverse_N = np.zeros(len(visits_NS)), np.zeros(len(visits_NS))
    for h in range(expert.shape[1]):
        forward_N += _visited(visits_NS, kl(expert[:, h], student[:, h]))
        reverse_N += _visited(visits_NS, kl(student[:, h], expert[:, h]))
        if h < kernel_NHSS.shape[1]:
            visits_NS = np.einsum("ns,nst->nt", visits_NS, kernel_NHSS[:, h])
    return forward_N, reverse_N


def _visited(visits_NS: Array, value_NS: Array) -> Array:
    """The mean over visited states; an infinite value where nobody comes counts nothing."""
    return np.where(visits_NS > 0, visits_NS * np.where(visits_NS > 0, value_NS, 0), 0).sum(-1)


def kl(p: Array, q: Array) -> Array:
    """KL(p || q) in nats along the last axis: inf where p has mass and q none.

    Summed as p log(p / q) - (p - q), whose terms are all >= 0: near laws would cancel without the second part.
    """
    is_shared = (p > 0) & (q > 0)
    excess = np.where(is_shared, (p - q) / np.where(is_shared, q, 1), 0)
    is_near = np.abs(excess) < 0.5
    far = np.log(np.where(is_shared, p, 1)) - np.log(np.where(is_shared, q, 1))
    log_ratio = np.where(is_near, np.log1p(np.where(is_near, excess, 0)), far)
    term = np.where(is_shared, p * log_ratio - (p - q), np.where(p > 0, np.inf, q))
    return term.sum(-1)


def path_law(start_NS: Array, transition_NHSAS: Array, policy_NHSA: Array) -> Array:
    """The law over all K = (S A)^H paths (s_1, a_1, ..., s_H, a_H), [N, K]: for small sizes only."""
    num = len(start_NS)
    state_NKS = start_NS[:, None]
    for h in range(policy_NHSA.shape[1]):
        action_NKSA = state_NKS[..., None] * policy_NHSA[:, None, h]
        if h == policy_NHSA.shape[1] - 1:
            return action_NKSA.reshape(num, -1)
        moved = action_NKSA[..., None] * transition_NHSAS[:, None, h]
        state_NKS = moved.reshape(num, -1, moved.shape[-1])
    raise ValueError("a policy of at least one step was expected, got [N, 0, S, A].")


def total_variation(inst: Instances) -> Array:
    """TV(P^expert, P^student): the largest regret that a reward of whole trajectories in [0, 1] can cause."""
    expert_NK = path_law(inst.start_NS, inst.transition_NHSAS, inst.expert_NHSA)
    student_NK = path_law(inst.start_NS, inst.transition_NHSAS, inst.student_NHSA)
    return 0.5 * np.abs(expert_NK - student_NK).sum(-1)


def domination(p: Array, q: Array, nu: Array) -> Array:
    """The least kappa with nu(a) <= kappa (p(a) + q(a)) on supp p U supp q, along the last axis.

    Always finite, for p + q > 0 there; mass of nu outside both supports does not count.
    """
    mass = p + q
    return np.where(mass > 0, nu / np.where(mass > 0, mass, 1), 0).max(-1)


def kappa_of(inst: Instances) -> Array:
    """`domination` over all steps and states, [N]."""
    return domination(inst.expert_NHSA, inst.student_NHSA, inst.nu_NHSA).max(axis=(1, 2))


def random_laws(shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    """Laws along the last axis of three kinds, a third each: Dirichlet of any concentration from 0.01 to 10, point masses
    that leak 1e-5 to 0.3, and point masses."""
    lead, num_actions = shape[:-1], shape[-1]
    gamma = generator.gamma(np.broadcast_to(10 ** generator.uniform(-2, 1, (*lead, 1)), shape)) + 1e-280
    spread = gamma / gamma.sum(-1, keepdims=True)
    point = np.eye(num_actions)[generator.integers(num_actions, size=lead)]
    leak = 10 ** generator.uniform(-5, -0.5, (*lead, 1))
    kind = generator.integers(3, size=(*lead, 1))
    return np.where(kind == 0, spread, np.where(kind == 1, (1 - leak) * point + leak * spread, point))


def random_near(p: Array, generator: np.random.Generator) -> Array:
    """Laws near to or far from `p`: a third as `p` but for a leak, a third equal, a third independent."""
    other = random_laws(p.shape, generator)
    kind = generator.integers(3, size=(*p.shape[:-1], 1))
    leak = 10 ** generator.uniform(-5, -0.5, (*p.shape[:-1], 1))
    return np.where(kind == 0, (1 - leak) * p + leak * other, np.where(kind == 1, p, other))


def random_noise(p: Array, q: Array, generator: np.random.Generator) -> Array:
    """Noise of three kinds: any law, one that sits where the two laws differ, and a mixture of both."""
    free = random_laws(p.shape, generator)
    gap = np.abs(p - q)
    total = gap.sum(-1, keepdims=True)
    aligned = np.where(total > 0, gap / np.where(total > 0, total, 1), free)
    share = generator.choice([0, 1, 0.5], size=(*p.shape[:-1], 1))
    return share * aligned + (1 - share) * free


def random_instances(
    num: int,
    horizon: int,
    num_states: int,
    num_actions: int,
    etas: Sequence[float],
    generator: np.random.Generator,
) -> Instances:
    """Problems with sharp and flat policies, deterministic, stochastic and (in half of them) absorbing transitions."""
    if min(num, horizon, num_states, num_actions) < 1 or not etas:
        raise ValueError(
            f"sizes of at least 1 and a noise rate expected, got {num} of H {horizon}, S {num_states}, A {num_actions}."
        )
    lead = (num, horizon, num_states)
    expert = random_laws((*lead, num_actions), generator)
    student = random_near(expert, generator)
    transition = random_laws((num, horizon - 1, num_states, num_actions, num_states), generator)
    transition[: num // 2, :, -1] = np.eye(num_states)[-1]
    return Instances(
        start_NS=random_laws((num, num_states), generator),
        transition_NHSAS=transition,
        student_NHSA=student,
        expert_NHSA=expert,
        nu_NHSA=random_noise(expert, student, generator),
        eta_N=np.resize(np.asarray(etas, dtype=float), num),
    )


def lock(horizon: int, eta_N: Array, leak: float = 1.0) -> Instances:
    """The combination lock, 2 states and 3 actions: noise throws the demonstrator out of the only path that informs.

    On the path action 0 advances and the others fall to state 1 for good. Both policies play 0 before the last step; on
    it the expert plays 0 and the student plays 1 with probability `leak`. The noise is action 2 on the way, and 0 or 1
    evenly on the last step. kappa = 1/2 at leak 1.
    """
    num = len(eta_N)
    fall, stay = np.array([[1.0, 0, 0], [0, 1.0, 1.0]]).T, np.array([[0.0, 0, 0], [1.0, 1.0, 1.0]]).T
    expert_HSA = np.tile(np.eye(3)[0], (horizon, 2, 1))
    student_HSA = expert_HSA.copy()
    student_HSA[-1, 0] = [1 - leak, leak, 0]
    nu_HSA = np.tile(np.eye(3)[2], (horizon, 2, 1))
    nu_HSA[-1, 0] = [0.5, 0.5, 0]
    return _repeated(num, np.eye(2)[0], np.tile(np.stack([fall, stay]), (horizon - 1, 1, 1, 1)), student_HSA, expert_HSA,
                     nu_HSA, eta_N)  # fmt: skip


def drift(horizon: int, eta_N: Array, leak: float, noise: tuple[float, float] = (0.0, 1.0)) -> Instances:
    """One state, two actions: the expert plays 0, the student 1 with probability `leak`.

    Every step adds to the distances and none ends the episode. With noise that is always 1 this makes a factor sqrt(H)
    necessary without domination; with even noise and one step it shows what domination is for.
    """
    student_HSA = np.tile([1 - leak, leak], (horizon, 1, 1))
    expert_HSA, nu_HSA = np.tile([1.0, 0.0], (horizon, 1, 1)), np.tile(noise, (horizon, 1, 1))
    return _repeated(
        len(eta_N), np.ones(1), np.ones((horizon - 1, 1, 2, 1)), student_HSA, expert_HSA, nu_HSA, eta_N
    )


def thin_leak(kappa_N: Array, eta: float, leak: float = 1e-7) -> Instances:
    """One step whose noise is dominated with exactly kappa: the extremal problem of Lemma 2, three actions.

    The expert plays 0, the student 1 with probability `leak`; the noise is 1 with probability kappa * leak, else 2.
    """
    laws_NA = np.zeros((3, len(kappa_N), 3))
    laws_NA[:, :] = [[[1 - leak, leak, 0]], [[1, 0, 0]], [[0, 0, 1]]]
    laws_NA[2, :, 1], laws_NA[2, :, 2] = kappa_N * leak, 1 - kappa_N * leak
    student, expert, nu = laws_NA[:, :, None, None]
    num = len(kappa_N)
    return Instances(
        start_NS=np.ones((num, 1)), transition_NHSAS=np.zeros((num, 0, 1, 3, 1)), student_NHSA=student,
        expert_NHSA=expert, nu_NHSA=nu, eta_N=np.full(num, eta),
    )  # fmt: skip


def off_path(eta_N: Array) -> Instances:
    """Two steps: the policies agree where they come, and part where only the noise comes. The clean distance is 0."""
    student_HSA, expert_HSA = np.tile([1.0, 0.0], (2, 2, 2, 1))
    student_HSA[1, 1] = [0, 1]
    nu_HSA = np.tile([0.0, 1.0], (2, 2, 1))
    transition_HSAS = np.tile(np.eye(2), (1, 2, 1, 1))
    return _repeated(len(eta_N), np.eye(2)[0], transition_HSAS, student_HSA, expert_HSA, nu_HSA, eta_N)


def _repeated(
    num: int,
    start_S: Array,
    transition_HSAS: Array,
    student_HSA: Array,
    expert_HSA: Array,
    nu_HSA: Array,
    eta_N: Array,
) -> Instances:
    def copies(one: Array) -> Array:
        return np.broadcast_to(one, (num, *one.shape))

    return Instances(
        start_NS=copies(start_S),
        transition_NHSAS=copies(transition_HSAS),
        student_NHSA=copies(student_HSA),
        expert_NHSA=copies(expert_HSA),
        nu_NHSA=copies(nu_HSA),
        eta_N=eta_N,
    )


def leak_chain(angles_HX: Array, odds: float, leak: float = 1e-7) -> Instances:
    """The extremal problem of Lemma 4: a small leak into a chain on which the two policies part more and more.

    State 0 is home, state 1 the chain, and the action is the next state. On the first step the student leaks into the
    chain with probability `leak` and the expert with `odds` times it; at home they agree from then on. On the chain they
    stay with probabilities sin^2 of the two angles (student, expert) of each middle step, and on the last step they play
    different actions.

    Args:
        angles_HX: [H - 2, 2] in [0, pi/2].
    """
    horizon = len(angles_HX) + 2
    student_HSA, expert_HSA = np.tile([1.0, 0.0], (2, horizon, 2, 1))
    student_HSA[0, 0], expert_HSA[0, 0] = [1 - leak, leak], [1 - odds * leak, odds * leak]
    stay_HX = np.sin(angles_HX) ** 2
    for policy_HSA, stay_H in ((student_HSA, stay_HX[:, 0]), (expert_HSA, stay_HX[:, 1])):
        policy_HSA[1:-1, 1] = np.stack([1 - stay_H, stay_H], axis=-1)
    expert_HSA[-1, 1] = [0, 1]
    transition_HSAS = np.tile(np.eye(2), (horizon - 1, 2, 1, 1))
    no_noise = np.full((horizon, 2, 2), 0.5)
    return _repeated(1, np.eye(2)[0], transition_HSAS, student_HSA, expert_HSA, no_noise, np.zeros(1))


def deterministic_chain(horizon: int) -> Instances:
    """The chain of `leak_chain` entered at once, with an expert that always stays on it: the clean distance is 1.

    The student stays with probability 1 / (3 m), m the distance of the labels to go: m <- 1 - (2/3) / sqrt(3 m) from m = 1,
    which falls to 1/3 like 1 / H.
    """
    stay_H, to_go = [], 1.0
    for _ in range(horizon - 1):
        stay_H.append(1 / (3 * to_go))
        to_go = 1 - 2 / 3 / np.sqrt(3 * to_go)
    student_HSA, expert_HSA = np.tile([1.0, 0.0], (2, horizon, 2, 1))
    expert_HSA[:, 1] = [0, 1]
    for h, stay in enumerate(reversed(stay_H)):
        student_HSA[h, 1] = [1 - stay, stay]
    transition_HSAS = np.tile(np.eye(2), (horizon - 1, 2, 1, 1))
    no_noise = np.full((horizon, 2, 2), 0.5)
    return _repeated(1, np.eye(2)[1], transition_HSAS, student_HSA, expert_HSA, no_noise, np.zeros(1))
