"""The pessimistic learner from base-model samples, its rival from demonstrations, and worlds where their losses are exact.

X contexts, Y responses, K students, R repetitions. A log of N samples enters through its counts [R, X, Y] alone. Where
several students tie, the learner takes each with the same probability: choices are laws [R, K], and a loss is the mean.

Source: arXiv:2606.30445 Thm 5 (learner); worlds and exact losses are DERIVED.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from understudy.theory.bounds.pessimism import explicit_bound, printed_bound, theory_beta
from understudy.theory.mdp import require_laws

Array = np.ndarray
Penalty = Literal["printed", "second moment"]

ROUNDING = 1e-12
"""Objectives this near, relative to the largest, tie."""

LARGE = 1e4
"""The V_max at which scale is checked."""


@dataclass(frozen=True, eq=False)
class LoggedBandit:
    """Context law [X], base model and scores f [X, Y], students [K, X, Y].

    Raises:
        ValueError: shapes that do not fit, rows that are no laws, or a student outside the base model's support.
    """

    context_X: Array
    base_XY: Array
    score_XY: Array
    student_KXY: Array

    def __post_init__(self) -> None:
        shape = self.base_XY.shape
        if (self.context_X.shape, self.score_XY.shape, self.student_KXY.shape[1:]) != (
            shape[:1],
            shape,
            shape,
        ):
            raise ValueError(
                f"context_X [X], base_XY and score_XY [X, Y], student_KXY [K, X, Y] expected, got "
                f"{self.context_X.shape}, {shape}, {self.score_XY.shape}, {self.student_KXY.shape}."
            )
        for prob, name in (
            (self.context_X, "context_X"),
            (self.base_XY, "base_XY"),
            (self.student_KXY, "student_KXY"),
        ):
            require_laws(prob, name)
        if (self.student_KXY[:, self.base_XY == 0] > 0).any():
            raise ValueError(
                "a student gives a response that the base model never gives: coverage is infinite."
            )

    @property
    def ratio_KXY(self) -> Array:
        """pi / pi_base, 0 where the base model gives nothing."""
        base_XY = np.where(self.base_XY > 0, self.base_XY, 1)
        return self.student_KXY / base_XY

    @property
    def online_K(self) -> Array:
        """J_on(pi) = E_x E_{y~pi} f."""
        return np.einsum("x,kxy,xy->k", self.context_X, self.student_KXY, self.score_XY)

    @property
    def coverage_K(self) -> Array:
        """sup pi / pi_base of every student."""
        return self.ratio_KXY.max(axis=(1, 2))

    @property
    def v_max(self) -> float:
        return float(np.abs(self.score_XY).max())

    def penalty_KX(self, kind: Penalty) -> Array:
        """One context's penalty: sum_y pi/pi_base as printed, or sum_y pi^2/pi_base, which is at most the coverage."""
        if kind not in ("printed", "second moment"):
            raise ValueError(f"penalty must be 'printed' or 'second moment', got {kind!r}.")
        power_KXY = self.ratio_KXY if kind == "printed" else self.ratio_KXY * self.student_KXY
        return power_KXY.sum(-1)


def draw_counts(
    context_X: Array, policy_XY: Array, num: int, num_reps: int, generator: np.random.Generator
) -> Array:
    """How often each (x, y) occurs in each of `num_reps` independent logs of `num` samples, integers [R, X, Y]."""
    joint_XY = context_X[:, None] * policy_XY
    return generator.multinomial(num, joint_XY.ravel() / joint_XY.sum(), num_reps).reshape(
        num_reps, *joint_XY.shape
    )


def every_log(context_X: Array, policy_XY: Array, num: int) -> tuple[Array, Array]:
    """(counts [R, X, Y], probabilities [R]) of all (X Y)^num sequences of samples. For tiny `num`."""
    joint = (context_X[:, None] * policy_XY).ravel()
    sequence_RN = np.array(list(product(range(joint.size), repeat=num)))
    counts_RC = (sequence_RN[:, :, None] == np.arange(joint.size)).sum(1)
    return counts_RC.reshape(-1, *policy_XY.shape), joint[sequence_RN].prod(1)


def ipw_estimate(world: LoggedBandit, counts_RXY: Array) -> Array:
    """J_ipw(pi) = 1/N sum_i pi(y_i|x_i) / pi_base(y_i|x_i) f_i, [R, K]. Unbiased for J_on(pi).

    Not invariant under f -> f + c at a finite N: with f < 0 a student whose responses were never sampled scores 0, the
    best there is; with f > 0 the same student scores 0, the worst.
    """
    num_R1 = counts_RXY.sum(axis=(1, 2))[:, None]
    return np.einsum("rxy,kxy,xy->rk", counts_RXY, world.ratio_KXY, world.score_XY, optimize=True) / num_R1


def penalty_estimate(world: LoggedBandit, counts_RXY: Array, kind: Penalty = "printed") -> Array:
    """PL(pi) = 1/N sum_i sum_y pi(y|x_i) / pi_base(y|x_i), [R, K]; it sees the contexts of the log, not the responses."""
    num_RX = counts_RXY.sum(-1)
    return num_RX @ world.penalty_KX(kind).T / num_RX.sum(1, keepdims=True)


def pessimistic_choice(
    world: LoggedBandit, counts_RXY: Array, beta: float, kind: Penalty = "printed"
) -> Array:
    """The law [R, K] of the pessimistic learner's choice; ties are broken evenly.

    Raises:
        ValueError: beta < 0 or not finite.
    """
    if not 0 <= beta < np.inf:
        raise ValueError(f"beta must be >= 0 and finite, got {beta}.")
    # 1, 2: N samples (x_i, y_i) of the base model and their scores f_i: the caller's counts, and world.score_XY.
    ipw_RK = ipw_estimate(world, counts_RXY)  # 3
    penalty_RK = penalty_estimate(world, counts_RXY, kind)  # 4
    return even_argmax(ipw_RK - beta * penalty_RK)  # 5


def imitation_choice(student_KXY: Array, counts_RXY: Array, floor: float = 1e-6) -> Array:
    """The law [R, K] of log-loss imitation's choice from demonstrations: argmax sum_i ln max(pi(y_i|x_i), floor).

    The floor keeps students that cannot give a demonstrated response comparable; ties are broken evenly.
    """
    return even_argmax(
        np.einsum("rxy,kxy->rk", counts_RXY, np.log(np.maximum(student_KXY, floor)), optimize=True)
    )


def even_argmax(objective_RK: Array) -> Array:
    """The uniform law over the maximisers of each row."""
    best_R1 = objective_RK.max(1, keepdims=True)
    is_best_RK = objective_RK >= best_R1 - ROUNDING * np.maximum(1, np.abs(best_R1))
    return is_best_RK / is_best_RK.sum(1, keepdims=True)


def shortfall(world: LoggedBandit, choice_RK: Array) -> Array:
    """J_on(pi*) - E J_on(pi_hat) in each repetition, [R]."""
    return world.online_K.max() - choice_RK @ world.online_K


def two_student_miss(coverage: float, gap_G: Array, num: int, beta: float, v_max: float = 1.0) -> Array:
    """P(the worse student is chosen) for each gap, exactly, [G].

    One context; the better response has base probability 1/coverage and f = V (1 + gap)/2, the other f = V (1 - gap)/2;
    one deterministic student each. The loss is V gap with this probability. The count of the better one is binomial.

    Raises:
        ValueError: coverage <= 1, or gaps outside (0, 1].
    """
    if coverage <= 1 or gap_G.min() <= 0 or gap_G.max() > 1:
        raise ValueError(f"coverage > 1 and gaps in (0, 1] expected, got {coverage} and {gap_G}.")
    count_N = np.arange(num + 1)
    other = coverage / (coverage - 1)
    good_GN = v_max * (1 + gap_G[:, None]) / 2 * coverage * count_N / num - beta * coverage
    bad_GN = v_max * (1 - gap_G[:, None]) / 2 * other * (num - count_N) / num - beta * other
    return _miss(good_GN, bad_GN) @ stats.binom.pmf(count_N, num, 1 / coverage)


def rare_context_miss(coverage: float, context_prob: float, num: int, beta: float) -> float:
    """P(the worse response is chosen at a rare context), exactly.

    The context has probability `context_prob`; there the bad response has base probability 1/coverage and f = 1/2, the
    good one the rest and f = 1. Students are all maps from l such contexts to the two responses, and the objective is a
    sum over contexts, so the loss is l context_prob / 2 times this. Visits are binomial, and the bad ones among them.

    Raises:
        ValueError: coverage <= 2 or context_prob outside (0, 1].
    """
    if coverage <= 2 or not 0 < context_prob <= 1:
        raise ValueError(
            f"coverage > 2 and context_prob in (0, 1] expected, got {coverage} and {context_prob}."
        )
    most = int(stats.binom.isf(1e-15, num, context_prob))
    visits_V1, bad_B = np.arange(most + 1)[:, None], np.arange(most + 1)
    prob_VB = stats.binom.pmf(visits_V1, num, context_prob) * stats.binom.pmf(bad_B, visits_V1, 1 / coverage)
    other = coverage / (coverage - 1)
    good_VB = other * ((visits_V1 - bad_B) - beta * visits_V1)
    bad_VB = coverage * (0.5 * bad_B - beta * visits_V1)
    return float((prob_VB * _miss(good_VB, bad_VB)).sum())


def rare_limit(coverage: float) -> float:
    """The limit of `rare_context_miss` as N grows with context_prob = coverage / N and beta -> 0 from above. DERIVED.

    Good and bad counts become independent, Poisson(C - 1) and Poisson(1); the bad response wins where C/2 times its count
    exceeds C/(C - 1) times the other's, ties go to the smaller penalty, and a context never visited is a coin flip.
    """
    good_G1, bad_B = np.arange(int(coverage + 20 * np.sqrt(coverage)) + 40)[:, None], np.arange(60)
    is_missed_GB = bad_B * (coverage - 1) > 2 * good_G1
    prob_GB = stats.poisson.pmf(good_G1, coverage - 1) * stats.poisson.pmf(bad_B, 1)
    return float((prob_GB * is_missed_GB).sum() + 0.5 * prob_GB[0, 0])


def _miss(good: Array, bad: Array) -> Array:
    """1 where the bad one is ahead, 1/2 where they tie."""
    slack = ROUNDING * np.maximum(1, np.maximum(np.abs(good), np.abs(bad)))
    return np.where(np.abs(good - bad) <= slack, 0.5, (bad > good).astype(float))


def tail_world(num_tail: int) -> LoggedBandit:
    """The best student is the base model itself (coverage 1), and yet its printed penalty is num_tail + 1.

    One context; the head response has base probability 1/2 and f = 0, the tail responses share the other half, f = 1.
    Student 0 is the base model, J_on = 1/2; student 1 always gives the head, J_on = 0, penalty 2.
    """
    base_XY = np.full((1, num_tail + 1), 0.5 / num_tail)
    base_XY[0, 0] = 0.5
    head_XY = (np.arange(num_tail + 1) == 0).astype(float)[None, :]
    return LoggedBandit(np.ones(1), base_XY, 1 - head_XY, np.stack([base_XY, head_XY]))


def tail_loss(num_tail: int, num: int, beta: float, kind: Penalty) -> float:
    """The expected loss on `tail_world`, exactly: its best student's estimate is the share of tail samples, binomial."""
    penalty_K = tail_world(num_tail).penalty_KX(kind)[:, 0]
    share_N = np.arange(num + 1) / num
    miss_N = _miss(share_N - beta * penalty_K[0], np.full(num + 1, -beta * penalty_K[1]))
    return float(0.5 * miss_N @ stats.binom.pmf(np.arange(num + 1), num, 0.5))


def lucky_world(num_rare: int, rare_prob: float, scores: tuple[float, float, float]) -> LoggedBandit:
    """A good response, a safe one and `num_rare` rare ones, one deterministic student each.

    Base probabilities: 0.6 safe, `rare_prob` for each rare one, the rest good. `scores` are f of good, safe, rare.
    """
    num_responses = num_rare + 2
    base_XY = np.full((1, num_responses), rare_prob)
    base_XY[0, :2] = 0.4 - num_rare * rare_prob, 0.6
    score_XY = np.full((1, num_responses), scores[2])
    score_XY[0, :2] = scores[:2]
    return LoggedBandit(np.ones(1), base_XY, score_XY, np.eye(num_responses)[:, None, :])


@dataclass(frozen=True, eq=False)
class Rivals:
    """One world seen by both learners: base-model samples with scores f = pi_e, and the expert's demonstrations."""

    logged: LoggedBandit
    expert_XY: Array
    reward_XY: Array

    def value_loss(self, choice_RK: Array) -> Array:
        """V(pi*) - E V(pi_hat), [R]."""
        value_K = np.einsum("x,kxy,xy->k", self.logged.context_X, self.logged.student_KXY, self.reward_XY)
        return value_K.max() - choice_RK @ value_K


def rivals(num_contexts: int, context_prob: float, expert_coverage: float, base_coverage: float) -> Rivals:
    """The family of the offline lower bound with a base model: both see the secret response of a context now and then.

    Responses y1, y2, y3; students are all 2^X maps into {y2, y3}; the secret is y2 (learners treat y2 and y3 alike). The
    expert gives the secret with probability 1/C_e and y1 otherwise; the base model y2 and y3 with 1/C_b each. X - 1
    contexts have probability `context_prob`, the last one the rest. Reward 1 for y1 and the secret.

    Raises:
        ValueError: C_e < 1, C_b < 2, or contexts that do not fit.
    """
    if (
        expert_coverage < 1
        or base_coverage < 2
        or num_contexts < 1
        or not 0 <= (num_contexts - 1) * context_prob <= 1
    ):
        raise ValueError(
            "C_e >= 1, C_b >= 2 and (num_contexts - 1) context_prob <= 1 expected, got "
            f"{expert_coverage}, {base_coverage}, {num_contexts}, {context_prob}."
        )
    context_X = np.full(num_contexts, context_prob)
    context_X[-1] = 1 - (num_contexts - 1) * context_prob
    expert_XY = np.tile([1 - 1 / expert_coverage, 1 / expert_coverage, 0.0], (num_contexts, 1))
    base_XY = np.tile([1 - 2 / base_coverage, 1 / base_coverage, 1 / base_coverage], (num_contexts, 1))
    choice_KX = np.array(list(product((1, 2), repeat=num_contexts)))
    logged = LoggedBandit(context_X, base_XY, expert_XY, np.eye(3)[choice_KX])
    return Rivals(logged, expert_XY, np.tile([1.0, 1.0, 0.0], (num_contexts, 1)))


def unseen_risk(context_X: Array, coverage: float, num: int) -> float:
    """1/2 sum_x D(x) (1 - D(x)/C)^N: a coin flip wherever none of N samples shows the secret.

    Exact for both learners on `rivals`: C = C_e for demonstrations, C = C_b for the pessimistic learner at any beta (both
    candidates have the same penalty, and a wrong response scores 0, like an unseen one).
    """
    return float(0.5 * context_X @ (1 - context_X / coverage) ** num)


class Families(NamedTuple):
    """Two students at the worst gap: losses in units of V_max, [C, N], and their bounds."""

    worst_CN: Array
    """Largest expected loss over gaps with the theory's beta, exact."""
    agnostic_CN: Array
    """With beta at the scale of C_base* = 1."""
    normal_CN: Array
    """The limit of `worst_CN` as N grows with gap sqrt(N) fixed."""
    explicit_CN: Array
    printed_CN: Array
    """With constant 1 and V_max = 1."""
    worst_failure: float
    """Largest probability of a loss above the explicit bound."""
    num_breakable: int
    """Cells [C, N] with a gap above the explicit bound: in the others no learner can exceed it."""
    scale_error: float
    """|loss at V_max = LARGE, divided by it, - loss at 1|, largest over gaps at the first N."""


def families(coverages: Sequence[float], nums: Sequence[int], failure: float) -> Families:
    """`two_student_miss` on a grid; the gaps run through 0.05 to 8 times beta C, or to 1, the largest possible.

    The worst gap is near beta C. The explicit bound is 4 beta C and a term of order 1/N: gaps above it show whether it holds.
    The coverages must be >= 2, so that pi* is the student covered worst.
    """
    tables = np.empty((5, len(coverages), len(nums)))
    failures, scale_error, num_breakable = [], 0.0, 0
    for i, coverage in enumerate(coverages):
        for j, num in enumerate(nums):
            beta, loose_beta = (theory_beta(at, 1.0, 2, num, failure) for at in (coverage, 1.0))
            gap_G, loose_gap_G = (
                np.minimum(np.linspace(0.05, 8, 160) * b * coverage, 1) for b in (beta, loose_beta)
            )
            miss_G = two_student_miss(coverage, gap_G, num, beta)
            explicit = explicit_bound(beta, coverage, coverage, 1.0, 2, num, failure, is_one_context=True)
            tables[:, i, j] = (
                (gap_G * miss_G).max(),
                (loose_gap_G * two_student_miss(coverage, loose_gap_G, num, loose_beta)).max(),
                (gap_G * normal_miss(coverage, gap_G, num, beta)).max(),
                explicit,
                printed_bound(coverage, coverage, 1.0, 2, num),
            )
            failures.append(float(np.where(gap_G > explicit, miss_G, 0).max()))
            num_breakable += bool(gap_G.max() > explicit)
            if j == 0:
                large_miss_G = two_student_miss(coverage, gap_G, num, LARGE * beta, LARGE)
                scale_error = max(scale_error, float(np.abs(gap_G * (large_miss_G - miss_G)).max()))
    worst_CN, agnostic_CN, normal_CN, explicit_CN, printed_CN = tables
    return Families(
        worst_CN, agnostic_CN, normal_CN, explicit_CN, printed_CN, max(failures), num_breakable, scale_error
    )


def normal_miss(coverage: float, gap_G: Array, num: int, beta: float) -> Array:
    """The limit of `two_student_miss` (V_max = 1) for gaps and beta of order N^-1/2. DERIVED.

    Phi((beta (C - C/(C-1)) - gap) / sd),    sd^2 = C^2 / (4 (C - 1) N)
    """
    deviation = coverage / (2 * np.sqrt((coverage - 1) * num))
    return stats.norm.cdf((beta * (coverage - coverage / (coverage - 1)) - gap_G) / deviation)
