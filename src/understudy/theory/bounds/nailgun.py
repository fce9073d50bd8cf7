"""What arXiv:2606.30923 says about NAILGUN (Thm 9, Thm 15, Prop 3): deterministic experts under noise that is not known."""

from __future__ import annotations

import math


def _require(alpha: float, rho: float) -> None:
    if not (0 < alpha < 1 and 0 < rho <= 1):
        raise ValueError(f"alpha in (0, 1) and rho in (0, 1] expected, got alpha {alpha} and rho {rho}.")


def margin(alpha: float, rho: float) -> float:
    """1 - alpha (1 + rho): Thm 9 assumes it to be positive.

    It is the least gap between the expert's action (1 - alpha at least) and any other (alpha rho at most).
    """
    _require(alpha, rho)
    return 1 - alpha * (1 + rho)


def gap(alpha: float, rho: float) -> float:
    """(sqrt(1 - alpha) - sqrt(alpha rho))^2, in (0, 1) if the margin is positive.

    Raises:
        ValueError: a margin that is not positive, where the theorem says nothing.
    """
    if margin(alpha, rho) <= 0:
        raise ValueError(
            f"alpha (1 + rho) < 1 expected, got {alpha * (1 + rho):g}: Thm 9 says nothing there."
        )
    return (math.sqrt(1 - alpha) - math.sqrt(alpha * rho)) ** 2


def label_factor(alpha: float, rho: float) -> float:
    """1 - gap: one label multiplies W by this much at most, in expectation, for a policy that is wrong there.

    DERIVED from the label's law: with p = P(expert's action) >= 1 - alpha and q = P(its own action) <= alpha rho,
    1 + (r - 1) q - (1 - 1/r) p, r = sqrt((1 - alpha)/(alpha rho)); equal where both hold with equality.
    """
    return 1 - gap(alpha, rho)


def potential_factor(alpha: float, rho: float, mistake: float) -> float:
    """Thm 9's proof: E[W_{t+1} | w_t] <= W_t (1 - gap/2 P(mistake)), W = 1/w(expert).

    A mistake: an episode in which the vote differs from the expert at some visited state. The half is the least weight of
    the policies that are wrong where the vote is.
    """
    return 1 - gap(alpha, rho) / 2 * mistake


def mistakes(alpha: float, rho: float, num_policies: int) -> float:
    """Thm 9's proof: sum over all t of P(mistake_t) <= 2 log|Pi| / gap, whatever the horizon."""
    return 2 * math.log(num_policies) / gap(alpha, rho)


def hellinger_sq(alpha: float, rho: float, num_policies: int, num_episodes: int) -> float:
    """Thm 9 / 15 as printed: E D_H^2(P^expert, P^mubar_T) <= 4 log|Pi| / (n gap).

    Assumes deterministic policies, the expert among them, eta <= alpha, nu <= rho, alpha (1 + rho) < 1.
    """
    return 4 * math.log(num_policies) / (num_episodes * gap(alpha, rho))


def hellinger_sq_by_margin(alpha: float, rho: float, num_policies: int, num_episodes: int) -> float:
    """Thm 9's second form, log|Pi| / (margin^2 n), printed up to a constant; here the constant is 1."""
    return math.log(num_policies) / (margin(alpha, rho) ** 2 * num_episodes)


def episodes_lower(alpha: float, rho: float, epsilon: float) -> float:
    """Prop 3 / 23: n >= c alpha rho / (epsilon margin^2) for every learner, c universal and not given; here c = 1.

    For H = 2 and |Pi| <= 1 + 1/rho.
    """
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon must be in (0, 1), got {epsilon}.")
    return alpha * rho / (epsilon * margin(alpha, rho) ** 2)
