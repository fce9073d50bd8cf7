"""What imitation that is good online guarantees in value when no student is the expert."""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


def value_gap_bound(alpha: float, eps: float, delta: float) -> float:
    """Largest value an eps-optimal online imitator can lose against the best student:

        V(pi*) - V(pi) <= (eps + delta) / alpha

    Theorem (as printed): if f(pi_e(y|x)) = alpha r(x, y) + h(x, y) + b(x) with alpha > 0, and every eps-optimal pi for
    J_on(pi) = E_x E_{y~pi} f(pi_e(y|x)) has E[E_pi h - E_{pi*} h] <= delta, then every eps-optimal pi obeys the above.
    pi* is the best student in value, not the maximiser of J_on: with the latter in its place the statement is false.
    DERIVED: alpha (V(pi*) - V(pi)) = [J_on(pi*) - J_on(pi)] + E[E_pi h - E_{pi*} h], and the first bracket is <= eps
    because pi* cannot beat the maximum of J_on. Equality needs pi* to attain that maximum and pi to miss it by all of eps.

    With `delta` from `alignment.entropy_delta` it covers J_on + entropy, where the printed delta does not.

    Args:
        alpha: > 0, units of f per unit of reward.
        eps: >= 0, units of f.
        delta: units of f; at least -eps, since pi* loses no value against itself.
    Returns:
        the bound, in units of reward.
    Raises:
        ValueError: alpha <= 0 or eps < 0.
    Source: arXiv:2606.30445 Assumption 1 and Thm 2. Constants as printed.
    """
    if not alpha > 0 or eps < 0:
        raise ValueError(f"alpha > 0 and eps >= 0 expected, got {alpha} and {eps}.")
    return (eps + delta) / alpha


def range_bound(context_X: Array, reward_XY: Array, score_XY: Array, eps: float) -> tuple[float, float]:
    """(bound, alpha): the best bound on the value gap from the reward and f alone, and the alpha that gives it. DERIVED.

        min over t >= 0 of   t eps + E_x [max_y (t f - r) - min_y (t f - r)],      t = 1 / alpha

    For every alpha > 0, delta <= E_x[range of h(x, .)] with h = f - alpha r, whatever the students are, so each t bounds
    the gap. The sum is convex and piecewise linear in t, hence least where two responses of a context cross, or at t = 0:
    there it is E_x[range of r], which says nothing (alpha = inf). Unlike the printed bound it is not an identity in the
    limit of large alpha, so it is the one that can be computed before any student is seen.

    Args:
        context_X: law of contexts.
        reward_XY, score_XY: r and f(pi_e), finite.
        eps: >= 0.
    Raises:
        ValueError: shapes that differ, or eps < 0.
    """
    if reward_XY.shape != score_XY.shape or context_X.shape != reward_XY.shape[:1] or eps < 0:
        raise ValueError(
            f"context_X [X], reward_XY and score_XY [X, Y] and eps >= 0 expected, got {context_X.shape}, "
            f"{reward_XY.shape}, {score_XY.shape} and {eps}."
        )
    first, second = np.triu_indices(reward_XY.shape[1], 1)
    score_step = (score_XY[:, first] - score_XY[:, second]).ravel()
    reward_step = (reward_XY[:, first] - reward_XY[:, second]).ravel()
    is_step = score_step != 0
    crossing_T = reward_step[is_step] / score_step[is_step]
    # Crossings of nearly equal scores overflow the units of everything else and are never where the minimum is useful.
    t_T = np.concatenate([[0.0], crossing_T[(crossing_T > 0) & (crossing_T < 1e12)]])
    misfit_TXY = t_T[:, None, None] * score_XY - reward_XY
    bound_T = t_T * eps + np.ptp(misfit_TXY, axis=-1) @ context_X
    best = int(np.argmin(bound_T))
    return float(bound_T[best]), math.inf if t_T[best] == 0 else float(1 / t_T[best])
