"""Where each method ends if training is perfect: the optimum of its own objective, with every prefix enumerated.

P prompts, H positions, V vocabulary, t a position (0-based), N = V ** t prefixes of that length (first token most
significant), R independent problems, n the laws that one problem mixes. An *offset* is a token relative to the expert's clean
one, modulo V: offset 0 is right.

A policy is a tuple of H arrays [P, N, V]. Two classes: `full history` (every prefix has a row of its own) and `tied` (one row
a position in offsets: such a student sees what a right next token would be, but not whether the prefix still is right).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from understudy.theory.simplex_optima import FLOOR, Loss, RowProblem, row_optimum

Array = np.ndarray
Policy = tuple[Array, ...]
Writer = Literal["expert", "student", "greedy", "sequences", "tokens"]


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """Running sums behind noise: the clean token is (last token + digit) mod V, the first one the first digit.

    While the prefix is right, the expert's law is (1 - rate) [v = clean] + rate / V; with `is_absorbing` it is uniform for
    good after a wrong token, otherwise the expert goes on from the sum that stands there.

    Raises:
        ValueError: digits outside the vocabulary, or an eta that leaves nothing of the clean token.
    """

    digits_PH: Array
    num_tokens: int
    eta: float
    error: Literal["uniform", "other"] = "uniform"
    """What a token becomes with probability eta: any token, or one of the others."""
    is_absorbing: bool = True

    def __post_init__(self) -> None:
        if self.digits_PH.ndim != 2 or not ((self.digits_PH >= 0) & (self.digits_PH < self.num_tokens)).all():
            raise ValueError(f"digits_PH must be [P, H] with digits in 0..{self.num_tokens - 1}.")
        if not 0 <= self.eta < 1:
            raise ValueError(f"eta must be in [0, 1), got {self.eta}: at 1 nothing of the expert is left.")

    @property
    def num_prompts(self) -> int:
        return self.digits_PH.shape[0]

    @property
    def horizon(self) -> int:
        return self.digits_PH.shape[1]

    @property
    def rate(self) -> float:
        """Of the channel p -> (1 - rate) p + rate / V, which both kinds of error are (at 1 or above: not of a channel)."""
        return self.eta if self.error == "uniform" else self.eta * self.num_tokens / (self.num_tokens - 1)

    @property
    def noisy_V(self) -> Array:
        """The expert's law of offsets while the prefix is right."""
        law_V = np.full(self.num_tokens, self.rate / self.num_tokens)
        law_V[0] += 1 - self.rate
        return law_V

    @property
    def clean_V(self) -> Array:
        return np.eye(self.num_tokens)[0]

    def clean_token(self, t: int) -> Array:
        """The clean expert's next token after every prefix, [P, N]."""
        last_N = np.arange(self.num_tokens**t) % self.num_tokens if t else np.zeros(1, dtype=int)
        return (last_N + self.digits_PH[:, t, None]) % self.num_tokens

    def is_right(self, t: int) -> Array:
        """Whether a prefix is the clean expert's own, [P, N] bool."""
        right = np.ones((self.num_prompts, 1), dtype=bool)
        for s in range(t):
            is_clean_PNV = np.arange(self.num_tokens) == self.clean_token(s)[..., None]
            right = (right[..., None] & is_clean_PNV).reshape(self.num_prompts, -1)
        return right

    def expert_law(self, t: int) -> Array:
        """The noisy expert's law of the next token after every prefix, [P, N, V]."""
        law_PNV = from_offsets(self.noisy_V, self.clean_token(t))
        if self.is_absorbing:
            law_PNV = np.where(self.is_right(t)[..., None], law_PNV, 1 / self.num_tokens)
        return law_PNV


def from_offsets(offset_law: Array, clean_PN: Array) -> Array:
    """Laws of tokens [P, N, V] from laws of offsets [V] or [P, N, V]."""
    num_tokens = offset_law.shape[-1]
    offset_PNV = (np.arange(num_tokens) - clean_PN[..., None]) % num_tokens
    return np.take_along_axis(np.broadcast_to(offset_law, offset_PNV.shape), offset_PNV, -1)


def to_offsets(law_PNV: Array, clean_PN: Array) -> Array:
    """Laws of offsets [P, N, V] from laws of tokens."""
    num_tokens = law_PNV.shape[-1]
    return np.take_along_axis(law_PNV, (np.arange(num_tokens) + clean_PN[..., None]) % num_tokens, -1)


def extend(weight_PN: Array, law_PNV: Array) -> Array:
    """The law of prefixes one token longer, [P, N V], each row of a prompt summing to what it did."""
    return (weight_PN[..., None] * law_PNV).reshape(len(weight_PN), -1)


def greedy(law_PNV: Array) -> Array:
    """All mass on the most probable token; of several the lowest."""
    return np.eye(law_PNV.shape[-1])[law_PNV.argmax(-1)]


# --- methods ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A method as its objective: who writes the prefixes, and what is compared there."""

    writer: Writer
    loss: Loss
    beta: float = 0.5
    """Of `mixed`: share of the reverse KL. Of `jsd`: weight of the expert in the mixture."""
    student_share: float = 0.5
    """Of `sequences`: probability that a sequence is the student's."""
    decay: float = 0.5
    """Of `tokens`: in round r the expert writes a token with probability decay ** r."""
    rounds: int = 16
    """Of `tokens`: rounds written, each by the optimum on all before; the result is the optimum on all of them."""
    known_rate: float | None = None
    """Of `known`: the rate that the student believes; None: the true one."""
    slip: float = 0.0
    """Of what a student writes: probability that a token of a rollout is replaced by a uniform one, which no loss knows."""


CHOICES: dict[str, Choice] = {
    "sft": Choice(writer="expert", loss="forward"),
    "sft-known": Choice(writer="expert", loss="known"),
    "kd": Choice(writer="expert", loss="forward"),
    "dagger": Choice(writer="tokens", loss="forward"),
    "gkd": Choice(writer="sequences", loss="jsd"),
    "opd-f": Choice(writer="student", loss="forward"),
    "opd-r": Choice(writer="student", loss="reverse"),
    "opd-pg": Choice(writer="student", loss="reverse"),
    "opd-known": Choice(writer="student", loss="known"),
    "nail-f": Choice(writer="greedy", loss="forward"),
    "nail-r": Choice(writer="greedy", loss="reverse"),
    "nail-mix": Choice(writer="greedy", loss="mixed"),
    "nail-known": Choice(writer="greedy", loss="known"),
}
"""A sampled token gives the same mean loss, up to a constant, as the law it was drawn from: sft is kd, opd-pg is opd-r."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Optimum:
    """The policy that a method's own objective is lowest at, given the prefixes which that policy brings about."""

    policy: Policy
    tied_HV: Array | None
    """The rows in offsets; None for a full history."""
    weights: tuple[Array, ...]
    """Probability of each prefix given its prompt, [P, N] a position. A full history is undetermined (here: uniform)
    where it is 0."""
    kkt_residual: float
    """Greatest violation of the conditions of optimality over all rows."""


def solve(world: World, choice: Choice, *, is_tied: bool) -> Optimum:
    """The optimum of a method's objective, a fixed point where the student writes its own prefixes.

    The prefixes of a position are written with the rows before it, and take no gradient; so the rows are solved first to last:
        row t = argmin over rows of  sum over prefixes of length t of  w_t(prefix) * D(expert's law, row),
        w_{t+1}(prefix, v) = w_t(prefix) * writer's law of v.
    Other fixed points do not exist wherever a row's optimum is unique.

    Raises:
        ValueError: a loss with a known channel where the noise leaves no trace of the clean token (rate >= 1).
    """
    if choice.loss == "known" and (world.rate if choice.known_rate is None else choice.known_rate) >= 1:
        raise ValueError(f"known noise must have a rate below 1, got {world.rate:g}: choose a lower eta.")
    if choice.writer == "tokens":
        return _solve_rounds(world, choice, is_tied)
    by_expert = by_student = np.ones((world.num_prompts, 1))
    share = {"expert": 0.0, "sequences": choice.student_share}.get(choice.writer, 1.0)
    steps = []
    for t in range(world.horizon):
        weight_PN = share * by_student + (1 - share) * by_expert
        step = _best_row(world, choice, t, weight_PN, is_tied)
        by_student = extend(by_student, _written(choice, step.law_PNV))
        by_expert = extend(by_expert, world.expert_law(t))
        steps.append(step)
    return _gathered(steps)


def _written(choice: Choice, law_PNV: Array) -> Array:
    meant_PNV = greedy(law_PNV) if choice.writer == "greedy" else law_PNV
    return (1 - choice.slip) * meant_PNV + choice.slip / law_PNV.shape[-1]


def _solve_rounds(world: World, choice: Choice, is_tied: bool) -> Optimum:
    if choice.rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {choice.rounds}.")
    pooled = [np.zeros((world.num_prompts, world.num_tokens**t)) for t in range(world.horizon)]
    policy: Policy = tuple(world.expert_law(t) for t in range(world.horizon))
    optimum = None
    for r in range(choice.rounds):
        for t, weight_PN in enumerate(prefix_weights(world, choice, policy, round=r)):
            pooled[t] = pooled[t] + weight_PN
        mean = [weight_PN / (r + 1) for weight_PN in pooled]
        optimum = _gathered([_best_row(world, choice, t, w, is_tied) for t, w in enumerate(mean)])
        policy = optimum.policy
    assert optimum is not None
    return optimum


def prefix_weights(world: World, choice: Choice, policy: Policy, *, round: int = 0) -> tuple[Array, ...]:
    """Probability of each prefix given its prompt, [P, N] a position, when this student (and the expert) write them."""
    student_share = {"expert": 0.0, "sequences": choice.student_share, "tokens": 1 - choice.decay**round}.get(
        choice.writer, 1.0
    )
    is_sequence = choice.writer == "sequences"
    by_student = by_expert = both = np.ones((world.num_prompts, 1))
    weights = []
    for t, law_PNV in enumerate(policy):
        weights.append(student_share * by_student + (1 - student_share) * by_expert if is_sequence else both)
        written, expert_PNV = _written(choice, law_PNV), world.expert_law(t)
        both = extend(both, student_share * written + (1 - student_share) * expert_PNV)
        by_student, by_expert = extend(by_student, written), extend(by_expert, expert_PNV)
    return tuple(weights)


@dataclass(frozen=True, eq=False)
class _Step:
    """The optimal rows of one position."""

    law_PNV: Array
    offset_V: Array | None
    weight_PN: Array
    kkt_residual: float


def _best_row(world: World, choice: Choice, t: int, weight_PN: Array, is_tied: bool) -> _Step:
    """The rows of position t that are best for a given law of prefixes."""
    clean_PN, expert_PNV = world.clean_token(t), world.expert_law(t)
    num_tokens = world.num_tokens
    if is_tied:
        weight_Rn, law_RnV = (
            weight_PN.reshape(1, -1),
            to_offsets(expert_PNV, clean_PN).reshape(1, -1, num_tokens),
        )
    else:
        weight_Rn, law_RnV = np.ones((weight_PN.size, 1)), expert_PNV.reshape(-1, 1, num_tokens)
    problem = RowProblem(
        loss=choice.loss,
        weight_Rn=weight_Rn,
        law_RnV=law_RnV,
        beta=choice.beta,
        rate=world.rate if choice.known_rate is None else choice.known_rate,
    )
    row_RV, residual_R = row_optimum(problem)
    if is_tied:
        return _Step(from_offsets(row_RV[0], clean_PN), row_RV[0], weight_PN, float(residual_R.max()))
    is_trained_PN = weight_PN > 0
    law_PNV = np.where(is_trained_PN[..., None], row_RV.reshape(expert_PNV.shape), 1 / num_tokens)
    return _Step(law_PNV, None, weight_PN, float(residual_R[is_trained_PN.ravel()].max()))


def _gathered(steps: list[_Step]) -> Optimum:
    offsets = [step.offset_V for step in steps if step.offset_V is not None]
    return Optimum(
        policy=tuple(step.law_PNV for step in steps),
        tied_HV=np.stack(offsets) if offsets else None,
        weights=tuple(step.weight_PN for step in steps),
        kkt_residual=max(step.kkt_residual for step in steps),
    )


# --- closed forms of the tied class under absorbing noise --------------------------------------------------------------


def tied_forward_map(right_prob: float, num_tokens: int, horizon: int) -> Array:
    """P(clean token) by position of a tied student of forward KL on its own prefixes, [H].

        p_t = c_t a + (1 - c_t) / V,    c_1 = 1,    c_{t+1} = c_t p_t

    c_t is the share of right prefixes, a the expert's probability of the clean token there (1 with known noise). Near
    c = 1, a = 1 an error d = 1 - c grows to (2 - 1 / V) d in one position.
    Source: DERIVED, for the collapse of on-policy distillation in arXiv:2606.30923 Fig. 4.
    """
    right_H, clean_share = np.empty(horizon), 1.0
    for t in range(horizon):
        right_H[t] = clean_share * right_prob + (1 - clean_share) / num_tokens
        clean_share *= right_H[t]
    return right_H


def tied_reverse_map(right_prob: float, num_tokens: int, horizon: int) -> Array:
    """The same for reverse KL, [H]:  p_t = e^{g c_t} / (e^{g c_t} + V - 1),  g = log(a / b),  b = (1 - a) / (V - 1) floored.

    Source: DERIVED; the normalised geometric mean of the expert's law and the uniform one, weights c_t and 1 - c_t.
    """
    wrong_prob = max((1 - right_prob) / (num_tokens - 1), FLOOR)
    gap_nats = np.log(right_prob / wrong_prob)
    right_H, clean_share = np.empty(horizon), 1.0
    for t in range(horizon):
        right_H[t] = 1 / (1 + (num_tokens - 1) * np.exp(-gap_nats * clean_share))
        clean_share *= right_H[t]
    return right_H


def tied_offline(right_prob: float, num_tokens: int, horizon: int, clean_share_each: float) -> Array:
    """The same on the expert's own prefixes, [H]:  p_t = c_t a + (1 - c_t) / V,  c_t = s^(t - 1).

    s is the noisy expert's probability of a clean token; a what the student is fitted to while the prefix is right.
    """
    clean_share_H = clean_share_each ** np.arange(horizon)
    return clean_share_H * right_prob + (1 - clean_share_H) / num_tokens


# --- what an optimum is worth -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Quality:
    """What a policy does in a world, exactly."""

    right_H: Array
    """P(clean token | right prefix) at temperature 1, mean over prompts."""
    chain_H: Array
    """P(all tokens up to here are clean) at temperature 1, mean over prompts."""
    margin_H: Array
    """p(clean) minus the largest other probability at the right prefix, least over prompts: < 0 is a greedy error."""
    greedy_accuracy: float
    """Share of prompts whose greedy response is the clean one."""
    noisy_kl_nats: float
    """KL(noisy expert || student), mean over positions and prompts, at right prefixes."""

    @property
    def success(self) -> float:
        """P(the whole response is clean) at temperature 1."""
        return float(self.chain_H[-1])


def quality(world: World, policy: Policy) -> Quality:
    """Measure a policy along the clean path, on which alone a chain can be right."""
    along = [
        to_offsets(policy[t], world.clean_token(t))[world.is_right(t)].reshape(world.num_prompts, -1)
        for t in range(world.horizon)
    ]
    offset_PHV = np.stack(along, axis=1)
    right_PH, margin_PH = offset_PHV[..., 0], offset_PHV[..., 0] - offset_PHV[..., 1:].max(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        noisy_V = world.noisy_V
        terms_PHV = np.where(noisy_V > 0, noisy_V * (np.log(noisy_V) - np.log(offset_PHV)), 0.0)
    return Quality(
        right_H=right_PH.mean(0),
        chain_H=np.cumprod(right_PH, axis=1).mean(0),
        margin_H=margin_PH.min(0),
        greedy_accuracy=float(_is_greedy_right(world, policy).mean()),
        noisy_kl_nats=float(terms_PHV.sum(-1).mean()),
    )


def _is_greedy_right(world: World, policy: Policy) -> Array:
    reached_PN = np.ones((world.num_prompts, 1))
    for law_PNV in policy:
        reached_PN = extend(reached_PN, greedy(law_PNV))
    return (reached_PN * world.is_right(world.horizon)).sum(-1)


def distance(
    world: World, optimum: Optimum, to: Literal["noisy", "clean"], *, where: Literal["trained", "right"]
) -> float:
    """Greatest total variation distance to the expert, noisy or clean, over prefixes of positive weight or right prefixes."""
    greatest = 0.0
    for t, law_PNV in enumerate(optimum.policy):
        expert_PNV = (
            world.expert_law(t) if to == "noisy" else from_offsets(world.clean_V, world.clean_token(t))
        )
        tv_PN = 0.5 * np.abs(law_PNV - expert_PNV).sum(-1)
        counts_PN = optimum.weights[t] > 0 if where == "trained" else world.is_right(t)
        greatest = max(greatest, float(tv_PN[counts_PN].max(initial=0.0)))
    return greatest


def untrained_share(world: World, optimum: Optimum) -> float:
    """Probability that the student itself, at temperature 1, comes to a last position that it was never trained at."""
    weight_PN = np.ones((world.num_prompts, 1))
    for law_PNV in optimum.policy[:-1]:
        weight_PN = extend(weight_PN, law_PNV)
    return float((weight_PN * (optimum.weights[-1] == 0)).sum(-1).mean())
