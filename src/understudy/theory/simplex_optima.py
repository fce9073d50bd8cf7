"""The one row that is best for several expert laws at once: convex problems over the probability simplex.

R independent problems, n the laws that one problem mixes, V vocabulary; p the student's row, q an expert law, w its weight.

    minimise over p:  sum over n of w_n D(q_n, p),    w normalised to sum 1

Every loss here is a sum over tokens of convex functions of p_v alone, so that one multiplier of "sum p = 1" settles it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Array = np.ndarray
Loss = Literal["forward", "reverse", "mixed", "jsd", "known"]

FLOOR = 1e-10
"""Least probability of an expert's token in a reverse KL, as in the published code of arXiv:2606.30923."""

_NEWTON_STEPS = 300
_RESIDUAL = 1e-10


@dataclass(frozen=True, kw_only=True, eq=False)
class RowProblem:
    """R problems of one loss.

        forward  KL(q || p)                       mixed  (1 - beta) forward + beta reverse
        reverse  KL(p || max(q, FLOOR))           jsd    beta KL(q || m) + (1 - beta) KL(p || m), m = beta q + (1 - beta) p
        known    KL(q || (1 - rate) p + rate / V)

    Raises:
        ValueError: weights that are not positive in sum, beta outside (0, 1), or a rate outside [0, 1).
    """

    loss: Loss
    weight_Rn: Array
    law_RnV: Array
    beta: float = 0.5
    rate: float = 0.0

    def __post_init__(self) -> None:
        if self.weight_Rn.min() < 0 or not (self.weight_Rn.sum(-1) > 0).all():
            raise ValueError("every problem needs weights >= 0 of which one is positive.")
        if self.loss in ("mixed", "jsd") and not 0 < self.beta < 1:
            raise ValueError(f"beta must be in (0, 1), got {self.beta}.")
        if self.loss == "known" and not 0 <= self.rate < 1:
            raise ValueError(f"rate must be in [0, 1), got {self.rate}.")

    @property
    def share_Rn1(self) -> Array:
        return (self.weight_Rn / self.weight_Rn.sum(-1, keepdims=True))[..., None]

    @property
    def mean_RV(self) -> Array:
        """The arithmetic mean of the laws."""
        return (self.share_Rn1 * self.law_RnV).sum(1)

    @property
    def log_geometric_RV(self) -> Array:
        """The mean log-law, floored; not normalised."""
        return (self.share_Rn1 * np.log(np.maximum(self.law_RnV, FLOOR))).sum(1)


def row_optimum(problem: RowProblem) -> tuple[Array, Array]:
    """The optimal rows p_RV and, for each, the greatest violation of the conditions of optimality.

    forward  p = arithmetic mean of the laws
    reverse  p = geometric mean of the floored laws, normalised
    known    p_v = max(0, mean_v / mu - rate / (V (1 - rate))), mu such that the row sums to 1
    mixed, jsd   by Newton's method on the simplex
    """
    if problem.loss == "forward":
        row_RV = problem.mean_RV
    elif problem.loss == "reverse":
        log_RV = problem.log_geometric_RV
        mass_RV = np.exp(log_RV - log_RV.max(-1, keepdims=True))
        row_RV = mass_RV / mass_RV.sum(-1, keepdims=True)
    elif problem.loss == "known":
        row_RV = _water_filled(problem.mean_RV, problem.rate / problem.law_RnV.shape[-1] / (1 - problem.rate))
    else:
        row_RV = _newton(problem)
    return row_RV, kkt_residual(problem, row_RV)


def objective(problem: RowProblem, row_RV: Array) -> Array:
    """The value of the loss at given rows, [R], in nats."""
    p, q = row_RV[:, None], problem.law_RnV
    if problem.loss == "forward":
        value = _kl(q, p)
    elif problem.loss == "reverse":
        value = _kl(p, np.maximum(q, FLOOR))
    elif problem.loss == "mixed":
        value = (1 - problem.beta) * _kl(q, p) + problem.beta * _kl(p, np.maximum(q, FLOOR))
    elif problem.loss == "jsd":
        m = problem.beta * q + (1 - problem.beta) * p
        value = problem.beta * _kl(q, m) + (1 - problem.beta) * _kl(p, m)
    else:
        value = _kl(q, (1 - problem.rate) * p + problem.rate / q.shape[-1])
    return (problem.share_Rn1[..., 0] * value).sum(-1)


def _kl(a: Array, b: Array) -> Array:
    a, b = np.broadcast_arrays(a, b)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(a > 0, a * (np.log(a) - np.log(b)), 0.0).sum(-1)


def derivative(problem: RowProblem, row_RV: Array) -> Array:
    """d loss / d p_v on its own, [R, V]; what a multiplier may add to all v is not in it."""
    beta, mean_RV = problem.beta, problem.mean_RV
    with np.errstate(divide="ignore", invalid="ignore"):
        if problem.loss == "forward":
            return np.where(mean_RV > 0, -mean_RV / row_RV, 0.0)
        if problem.loss == "known":
            noised_RV = (1 - problem.rate) * row_RV + problem.rate / row_RV.shape[-1]
            return np.where(mean_RV > 0, -(1 - problem.rate) * mean_RV / noised_RV, 0.0)
        if problem.loss == "jsd":
            mixture_RnV = beta * problem.law_RnV + (1 - beta) * row_RV[:, None]
            # A token that nobody emits: the limit from inside.
            ratio_RnV = np.where(mixture_RnV > 0, row_RV[:, None] / mixture_RnV, 1 / (1 - beta))
            return (1 - beta) * (problem.share_Rn1 * np.log(ratio_RnV)).sum(1)
        reverse_RV = np.log(row_RV) + 1 - problem.log_geometric_RV
        if problem.loss == "reverse":
            return reverse_RV
        return beta * reverse_RV - (1 - beta) * np.where(mean_RV > 0, mean_RV / row_RV, 0.0)


def kkt_residual(problem: RowProblem, row_RV: Array) -> Array:
    """How far rows are from optimal, [R]: derivatives must agree where p > 0 and may only be larger where p = 0.

    In units of the derivative, each token weighted by nothing: rare tokens count as much as common ones.
    """
    slope_RV = derivative(problem, row_RV)
    inside_RV = row_RV > 0
    multiplier_R1 = np.where(inside_RV, row_RV * np.where(inside_RV, slope_RV, 0.0), 0.0).sum(
        -1, keepdims=True
    )
    gap_RV = np.where(inside_RV, np.abs(slope_RV - multiplier_R1), np.maximum(multiplier_R1 - slope_RV, 0.0))
    return np.maximum(gap_RV.max(-1), np.abs(row_RV.sum(-1) - 1))


def _water_filled(mean_RV: Array, level: float) -> Array:
    """argmax over p of sum_v mean_v log(p_v + level): probability goes where the noise alone explains too little."""
    num_tokens = mean_RV.shape[-1]
    sorted_RV = -np.sort(-mean_RV, axis=-1)
    count_V = np.arange(1, num_tokens + 1)
    price_RV = np.cumsum(sorted_RV, axis=-1) / (1 + level * count_V)
    # The largest set whose least member still gets something at the price of that set.
    size_R = num_tokens - (sorted_RV > level * price_RV)[:, ::-1].argmax(-1)
    price_R1 = np.take_along_axis(price_RV, size_R[:, None] - 1, -1)
    row_RV = np.maximum(mean_RV / price_R1 - level, 0.0)
    # A point mass must be one: what rounding leaves behind would count as a way to be written.
    row_RV[row_RV < 1e-14] = 0.0
    return row_RV / row_RV.sum(-1, keepdims=True)


def _newton(problem: RowProblem) -> Array:
    """Newton's method on the simplex; the Hessian is diagonal, so a step costs one pass over the tokens."""
    beta, mean_RV = problem.beta, problem.mean_RV
    # Under the JSD a token that no expert emits is worth nothing; the reverse part of `mixed` gives it its floor.
    used_RV = mean_RV > 0 if problem.loss == "jsd" else np.ones_like(mean_RV, dtype=bool)
    row_RV = used_RV / used_RV.sum(-1, keepdims=True)
    for _ in range(_NEWTON_STEPS):
        slope_RV = np.where(used_RV, derivative(problem, row_RV), 0.0)
        safe_RV = np.where(used_RV, row_RV, 1.0)
        if problem.loss == "mixed":
            curvature_RV = (1 - beta) * mean_RV / safe_RV**2 + beta / safe_RV
        else:
            mixture_RnV = beta * problem.law_RnV + (1 - beta) * safe_RV[:, None]
            curvature_RV = (
                (1 - beta) * beta * (problem.share_Rn1 * problem.law_RnV / mixture_RnV).sum(1) / safe_RV
            )
        inverse_RV = np.where(used_RV, 1 / np.where(used_RV, curvature_RV, 1.0), 0.0)
        multiplier_R1 = (inverse_RV * slope_RV).sum(-1, keepdims=True) / inverse_RV.sum(-1, keepdims=True)
        step_RV = -(slope_RV - multiplier_R1) * inverse_RV
        # At most nine tenths of the way to the nearest face: the optimum is inside.
        reach_R1 = (-step_RV / safe_RV).max(-1, keepdims=True)
        row_RV = row_RV + np.minimum(1.0, 0.9 / np.maximum(reach_R1, 1e-300)) * step_RV
        row_RV = row_RV / row_RV.sum(-1, keepdims=True)
        if kkt_residual(problem, row_RV).max() < _RESIDUAL / 100:
            break
    assert kkt_residual(problem, row_RV).max() < _RESIDUAL, "Newton's method did not reach the optimum"
    return row_RV
