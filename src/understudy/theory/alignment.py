"""Contextual bandits with a finite class of students and an expert's scores: when imitation online follows the reward.

X contexts, Y responses, K students. A score is f(pi_e(y|x)), what the online learner is told about a response it plays.
Everything is exact: means over the tables, and delta(eps) by going through the whole class.

Source: arXiv:2606.30445 Assumption 1 and Thm 2; entropy and the explicit instances are DERIVED.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from understudy.theory.bounds.alignment import range_bound, value_gap_bound
from understudy.theory.mdp import require_laws

Array = np.ndarray

ROUNDING = 1e-12
"""A student this near to being eps-optimal counts as it is: the set only grows, so a bound over it stays a bound."""


@dataclass(frozen=True, eq=False)
class ScoredBandit:
    """Context law [X], rewards in [0, 1] and finite scores [X, Y], students [K, X, Y].

    Raises:
        ValueError: shapes that do not fit, rows that are no laws, rewards outside [0, 1], scores that are not finite.
    """

    context_X: Array
    reward_XY: Array
    score_XY: Array
    student_KXY: Array

    def __post_init__(self) -> None:
        shape = self.reward_XY.shape
        fits = self.context_X.shape == shape[:1] and self.student_KXY.shape[1:] == shape
        if len(shape) != 2 or not fits or self.score_XY.shape != shape:
            raise ValueError(
                f"context_X [X], reward_XY and score_XY [X, Y], student_KXY [K, X, Y] expected, got "
                f"{self.context_X.shape}, {shape}, {self.score_XY.shape}, {self.student_KXY.shape}."
            )
        require_laws(self.context_X, "context_X")
        require_laws(self.student_KXY, "student_KXY")
        if self.reward_XY.min() < 0 or self.reward_XY.max() > 1 or not np.isfinite(self.score_XY).all():
            raise ValueError("rewards in [0, 1] and finite scores expected: give a log score a floor.")

    def mean(self, table_XY: Array) -> Array:
        """E_x E_{y~pi} of a table under every student, [K]."""
        return np.einsum("x,kxy,xy->k", self.context_X, self.student_KXY, table_XY)

    @property
    def value_K(self) -> Array:
        """V(pi) of every student."""
        return self.mean(self.reward_XY)

    @property
    def online_K(self) -> Array:
        """J_on(pi) of every student, without entropy."""
        return self.mean(self.score_XY)

    @property
    def entropy_K(self) -> Array:
        """E_x H(pi(.|x)) in nats of every student."""
        logs_KXY = np.log(np.where(self.student_KXY > 0, self.student_KXY, 1))
        return -np.einsum("x,kxy,kxy->k", self.context_X, self.student_KXY, logs_KXY)


def log_score(expert_XY: Array, floor: float) -> Array:
    """f = log with a floor: ln max(pi_e, floor). Without one, a response the expert never gives scores -inf.

    Raises:
        ValueError: floor outside (0, 1].
    """
    if not 0 < floor <= 1:
        raise ValueError(f"floor must be in (0, 1], got {floor}.")
    return np.log(np.maximum(expert_XY, floor))


def fit_alpha(bandit: ScoredBandit) -> float:
    """The slope of the score on the reward, with an intercept b(x) in every context, by least squares.

        alpha = sum D(x) (r - rbar_x) (f - fbar_x) / sum D(x) (r - rbar_x)^2

    Responses of a context count alike. nan if the reward never varies inside a context. At or below 0, Assumption 1 does
    not hold with this fit: the expert, as scored, prefers what is worth less.
    """
    reward_XY = bandit.reward_XY - bandit.reward_XY.mean(1, keepdims=True)
    score_XY = bandit.score_XY - bandit.score_XY.mean(1, keepdims=True)
    spread = bandit.context_X @ (reward_XY**2).sum(1)
    return float(bandit.context_X @ (reward_XY * score_XY).sum(1) / spread) if spread > 0 else float("nan")


def misfit(bandit: ScoredBandit, alpha: float) -> Array:
    """h(x, y) + b(x) = f - alpha r, [X, Y]. b(x) cancels in every difference of two students' means."""
    return bandit.score_XY - alpha * bandit.reward_XY


def eps_optimal(objective_K: Array, eps: float) -> Array:
    """Which students are within eps (>= 0) of the largest objective, bool [K].

    Raises:
        ValueError: eps < 0.
    """
    if eps < 0:
        raise ValueError(f"eps must be >= 0, got {eps}.")
    return objective_K >= objective_K.max() - eps - ROUNDING


def delta(bandit: ScoredBandit, alpha: float, eps: float, reference: int | None = None) -> float:
    """delta(eps) of Assumption 1: the largest E[E_pi h - E_{pi*} h] over the eps-optimal students for J_on.

    Args:
        alpha: any number; h is then f - alpha r.
        reference: the student in the place of pi*, by default the best in value, as the theorem needs.
    """
    return _largest_excess(bandit, bandit.online_K, bandit.mean(misfit(bandit, alpha)), eps, reference)


def entropy_delta(bandit: ScoredBandit, alpha: float, eps: float) -> float:
    """delta(eps) for J_on + entropy, which is -KL(pi || pi_e) when f = log and no floor binds. DERIVED.

        max over the eps-optimal of  E[E_pi h + H(pi)] - E[E_{pi*} h + H(pi*)]

    The entropy acts as one more part of h that depends on the student, so it must be counted with h; with it the proof
    of the theorem goes through word for word.
    """
    objective_K = bandit.online_K + bandit.entropy_K
    excess_K = bandit.mean(misfit(bandit, alpha)) + bandit.entropy_K
    return _largest_excess(bandit, objective_K, excess_K, eps, None)


def printed_entropy_delta(bandit: ScoredBandit, alpha: float, eps: float) -> float:
    """delta(eps) as printed, h alone, over the eps-optimal students for J_on + entropy. Not enough: see `entropy_delta`."""
    objective_K = bandit.online_K + bandit.entropy_K
    return _largest_excess(bandit, objective_K, bandit.mean(misfit(bandit, alpha)), eps, None)


def worst_gap(bandit: ScoredBandit, objective_K: Array, eps: float) -> float:
    """The most value an eps-optimal student for the objective loses against the best student, >= 0."""
    value_K = bandit.value_K
    return float(value_K.max() - value_K[eps_optimal(objective_K, eps)].min())


def _largest_excess(
    bandit: ScoredBandit, objective_K: Array, excess_K: Array, eps: float, reference: int | None
) -> float:
    best = int(np.argmax(bandit.value_K)) if reference is None else reference
    return float(excess_K[eps_optimal(objective_K, eps)].max() - excess_K[best])


class Audit(NamedTuple):
    """The worst gap among the eps-optimal students of one bandit, and what each bound says of it."""

    gap: float
    bound: float
    """Theorem 2."""
    ranged: float
    """From r and f alone."""
    misplaced: float
    """Theorem 2 with the J_on maximiser in the place of pi*: false."""
    entropy_gap: float
    """The same with entropy in the objective."""
    entropy_bound: float
    printed_entropy_bound: float
    """With delta of h alone: false."""


def audit(bandit: ScoredBandit, alpha: float, share: float) -> Audit:
    """Every bound at eps = share x the range of the objective over the class.

    Args:
        alpha: > 0.
        share: >= 0.
    """
    online_K = bandit.online_K
    eps = share * float(np.ptp(online_K))
    objective_K = online_K + bandit.entropy_K
    entropy_eps = share * float(np.ptp(objective_K))
    misplaced = delta(bandit, alpha, eps, reference=int(np.argmax(online_K)))
    return Audit(
        worst_gap(bandit, online_K, eps),
        value_gap_bound(alpha, eps, delta(bandit, alpha, eps)),
        range_bound(bandit.context_X, bandit.reward_XY, bandit.score_XY, eps)[0],
        value_gap_bound(alpha, eps, misplaced),
        worst_gap(bandit, objective_K, entropy_eps),
        value_gap_bound(alpha, entropy_eps, entropy_delta(bandit, alpha, entropy_eps)),
        value_gap_bound(alpha, entropy_eps, printed_entropy_delta(bandit, alpha, entropy_eps)),
    )


def random_students(num: int, num_contexts: int, num_responses: int, generator: np.random.Generator) -> Array:
    """Softmax students [K, X, Y] from almost uniform to almost deterministic; one in four is deterministic."""
    sharpness_K11 = 10 ** generator.uniform(-0.5, 2, (num, 1, 1))
    logits_KXY = sharpness_K11 * generator.standard_normal((num, num_contexts, num_responses))
    weight_KXY = np.exp(logits_KXY - logits_KXY.max(-1, keepdims=True))
    student_KXY = weight_KXY / weight_KXY.sum(-1, keepdims=True)
    is_sharp_K = generator.random(num) < 0.25
    return np.where(is_sharp_K[:, None, None], np.eye(num_responses)[logits_KXY.argmax(-1)], student_KXY)


def random_bandit(
    generator: np.random.Generator,
    correlation: float,
    score: Literal["log", "identity"],
    num_contexts: int = 3,
    num_responses: int = 5,
    num_students: int = 20,
    floor: float = 1e-4,
    zero_rate: float = 0.2,
) -> ScoredBandit:
    """A random instance whose expert's log-probabilities correlate with the reward by about `correlation`.

    The expert is a softmax of sharpness * (c r' + sqrt(1 - c^2) z), r' the reward brought to mean 0 and variance 1, z
    normal noise; with probability `zero_rate` it then never gives one response of each context.

    Raises:
        ValueError: correlation outside [-1, 1].
    """
    if not -1 <= correlation <= 1:
        raise ValueError(f"correlation must be in [-1, 1], got {correlation}.")
    shape = (num_contexts, num_responses)
    reward_XY = generator.random(shape)
    noise_XY = generator.standard_normal(shape)
    logits_XY = correlation * (reward_XY - 0.5) * np.sqrt(12) + np.sqrt(1 - correlation**2) * noise_XY
    weight_XY = np.exp(10 ** generator.uniform(-0.5, 1) * (logits_XY - logits_XY.max(1, keepdims=True)))
    if generator.random() < zero_rate:
        # The expert's favourite stays, so that a law remains.
        weight_XY[np.arange(num_contexts), weight_XY.argmin(1)] = 0
    expert_XY = weight_XY / weight_XY.sum(1, keepdims=True)
    return ScoredBandit(
        generator.dirichlet(np.ones(num_contexts)),
        reward_XY,
        log_score(expert_XY, floor) if score == "log" else expert_XY,
        random_students(num_students, num_contexts, num_responses, generator),
    )


def attained(alpha: float, excess: float) -> tuple[ScoredBandit, float]:
    """(bandit, eps) on which the bound is an equality: the bad student misses the largest J_on by exactly eps. DERIVED.

    One context; good and bad response, r = (1, 0), f = (alpha - excess, 0): h of the bad one exceeds the other's by
    `excess`, the expert's odds of good against bad are exp(alpha - excess) when f = log.

    Raises:
        ValueError: not 0 <= excess <= alpha with alpha > 0.
    """
    if not (0 <= excess <= alpha and alpha > 0):
        raise ValueError(f"0 <= excess <= alpha expected, got {excess} and {alpha}.")
    score_XY = np.array([[alpha - excess, 0.0]])
    return ScoredBandit(np.ones(1), np.array([[1.0, 0.0]]), score_XY, np.eye(2)[:, None, :]), alpha - excess


def calibrated(alpha: float, misfit_XY: Array, reward_XY: Array, student_KXY: Array) -> ScoredBandit:
    """An expert pi_e proportional to exp(alpha r + h), scored by log: the easy case alpha >> |h|."""
    logits_XY = alpha * reward_XY + misfit_XY
    peak_X1 = logits_XY.max(1, keepdims=True)
    score_XY = logits_XY - peak_X1 - np.log(np.exp(logits_XY - peak_X1).sum(1, keepdims=True))
    num_contexts = len(reward_XY)
    return ScoredBandit(np.full(num_contexts, 1 / num_contexts), reward_XY, score_XY, student_KXY)


def same_misfit(generator: np.random.Generator, alpha: float, size: float, num_students: int) -> ScoredBandit:
    """The easy case of one h for all students: h = +size on two responses, -size on two, every student half on each pair.

    h is large, and yet delta = 0 because E_pi h is the same for every student.
    """
    reward_XY = generator.random((3, 4))
    pairs_KXY2 = random_students(num_students * 2, 3, 2, generator).reshape(num_students, 2, 3, 2)
    student_KXY = 0.5 * np.concatenate([pairs_KXY2[:, 0], pairs_KXY2[:, 1]], axis=-1)
    return calibrated(alpha, np.tile([size, size, -size, -size], (3, 1)), reward_XY, student_KXY)


def misled(overlap: float, score: Literal["log", "identity"] = "log", floor: float = 1e-4) -> ScoredBandit:
    """A perfect expert, a perfect student, and online imitation that picks the worst student. DERIVED.

    Responses: the expert's own right one, another right one, a wrong one. The expert always gives the first. Student 0
    always gives the second (value 1); student 1 gives the first with probability `overlap`, else the wrong one (value
    overlap); student 2 mixes the two right ones in the amount overlap/2 and otherwise plays the second (value 1).

    Raises:
        ValueError: overlap outside (0, 1).
    """
    if not 0 < overlap < 1:
        raise ValueError(f"overlap must be in (0, 1), got {overlap}.")
    expert_XY = np.array([[1.0, 0.0, 0.0]])
    students = [[0.0, 1.0, 0.0], [overlap, 0.0, 1 - overlap], [overlap / 2, 1 - overlap / 2, 0.0]]
    score_XY = log_score(expert_XY, floor) if score == "log" else expert_XY
    return ScoredBandit(np.ones(1), np.array([[1.0, 1.0, 0.0]]), score_XY, np.array(students)[:, None, :])


def softmax_expert(alpha: float) -> ScoredBandit:
    """An expert pi_e proportional to exp(alpha r), so h = 0 exactly, and a class that has it next to the best student.

    Two responses, r = (1, 0). Student 0 always gives the good one, student 1 is the expert. -KL(pi || pi_e) is largest,
    0, at the expert, which is worth sigmoid(alpha) < 1. DERIVED.
    """
    reward_XY = np.array([[1.0, 0.0]])
    odds = np.exp(-alpha)
    students = np.array([[1.0, 0.0], [1 / (1 + odds), odds / (1 + odds)]])[:, None, :]
    return calibrated(alpha, np.zeros((1, 2)), reward_XY, students)


class EasyCases(NamedTuple):
    """The two easy cases of the theorem on random classes, and the family with equality."""

    equality_error: float
    """Largest |bound - gap| over the family."""
    calibrated_gap: list[float]
    """Largest loss of the J_on maximiser over the classes, one per alpha."""
    calibrated_bound: list[float]
    calibrated_share: float
    """Largest alpha gap / (2 sup|h|)."""
    same_delta: float
    same_ratio: float
    """Largest alpha gap / eps."""
    same_size: float


def easy_cases(
    generator: np.random.Generator, num_chosen: int, num_students: int, alphas: Sequence[float]
) -> EasyCases:
    """`num_chosen` members of each family. Calibrated experts have |h| <= 1; with one mean of h for all, |h| = 5, alpha = 1."""
    errors = []
    for alpha in np.geomspace(0.1, 10, num_chosen).tolist():
        bandit, eps = attained(alpha, alpha * generator.random())
        bound = value_gap_bound(alpha, eps, delta(bandit, alpha, eps))
        errors.append(abs(bound - worst_gap(bandit, bandit.online_K, eps)))
    classes = []
    for _ in range(num_chosen):
        student_KXY = random_students(num_students, 3, 5, generator)
        classes.append((generator.uniform(-1, 1, (3, 5)), generator.random((3, 5)), student_KXY))
    gaps, bounds = [], []
    for alpha in alphas:
        bandits = [calibrated(alpha, *parts) for parts in classes]
        gaps.append(max(worst_gap(bandit, bandit.online_K, 0) for bandit in bandits))
        bounds.append(max(value_gap_bound(alpha, 0, delta(bandit, alpha, 0)) for bandit in bandits))
    size, deltas, ratios = 5.0, [], []
    for _ in range(num_chosen):
        bandit = same_misfit(generator, 1.0, size, num_students)
        eps = 0.2 * float(np.ptp(bandit.online_K))
        deltas.append(abs(delta(bandit, 1.0, eps)))
        ratios.append(worst_gap(bandit, bandit.online_K, eps) / eps)
    share = max(alpha * gap / 2 for alpha, gap in zip(alphas, gaps, strict=True))
    return EasyCases(max(errors), gaps, bounds, share, max(deltas), max(ratios), size)
