"""Gaussian policies in the plane: which member of a class imitation picks, and what it is worth.

D = 2: actions (x, y), reward 1 where y >= 0. Students are N(mean, I) with the mean on a line through the origin; the
expert is N(expert_mean, expert_cov), in the paper N((-2, 2), I).

Source: arXiv:2606.30445 Fig. 4. Experts with another covariance are DERIVED.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from scipy import optimize, stats

Array = np.ndarray
Direction = Literal["forward", "reverse"]
"""forward = KL(expert || student), reverse = KL(student || expert)."""

IDENTITY = np.eye(2)


def gaussian_kl(mean_D: Array, cov_DD: Array, other_mean_D: Array, other_cov_DD: Array) -> float:
    """KL(N(mean, cov) || N(other_mean, other_cov)) in nats, >= 0:

        1/2 [ tr(other_cov^-1 cov) + d' other_cov^-1 d - D + ln det other_cov - ln det cov ],  d = mean - other_mean

    Raises:
        ValueError: a covariance that is not symmetric and positive definite.
    """
    _require_covariance(cov_DD)
    _require_covariance(other_cov_DD)
    difference_D = np.asarray(mean_D) - np.asarray(other_mean_D)
    quadratic = difference_D @ np.linalg.solve(other_cov_DD, difference_D)
    trace = np.trace(np.linalg.solve(other_cov_DD, cov_DD))
    log_det = np.linalg.slogdet(other_cov_DD)[1] - np.linalg.slogdet(cov_DD)[1]
    return float(0.5 * (trace + quadratic - len(difference_D) + log_det))


def line_direction(angle_degrees: float) -> Array:
    """Unit vector [D] of the line through the origin at this angle to the x axis."""
    angle = math.radians(angle_degrees)
    return np.array([math.cos(angle), math.sin(angle)])


def student_kl(position: float, along_D: Array, mean_D: Array, cov_DD: Array, direction: Direction) -> float:
    """KL between the student N(position * along, I) and the expert N(mean, cov), in nats."""
    student_mean_D = position * np.asarray(along_D)
    if direction == "reverse":
        return gaussian_kl(student_mean_D, IDENTITY, mean_D, cov_DD)
    if direction == "forward":
        return gaussian_kl(mean_D, cov_DD, student_mean_D, IDENTITY)
    raise ValueError(f"direction must be 'forward' or 'reverse', got {direction!r}.")


def numerical_projection(along_D: Array, mean_D: Array, cov_DD: Array, direction: Direction) -> Array:
    """Mean [D] of the student on the line with the least KL: the zero of its slope, found by bisection and secants.

    The slope is a symmetric difference of the KL itself: exact up to rounding, because the KL is a quadratic of the
    position. Knows nothing of the closed form.
    """

    def slope(position: float) -> float:
        ahead, behind = position + 1, position - 1
        return 0.5 * (
            student_kl(ahead, along_D, mean_D, cov_DD, direction)
            - student_kl(behind, along_D, mean_D, cov_DD, direction)
        )

    # The least KL is no farther out than a few expert distances in the expert's own metric.
    eigenvalues = np.linalg.eigvalsh(cov_DD)
    reach = 1 + float(np.linalg.norm(mean_D)) * float(eigenvalues[-1] / eigenvalues[0])
    found = optimize.root_scalar(slope, bracket=(-reach, reach), method="brentq", xtol=1e-14)
    return found.root * np.asarray(along_D)


def closed_form_projection(along_D: Array, mean_D: Array, cov_DD: Array, direction: Direction) -> Array:
    """Mean [D] of the student on the line with the least KL, for a unit vector `along`:

        forward:  (m . u) u                              the nearest point, whatever the expert's covariance
        reverse:  (m' S^-1 u) / (u' S^-1 u) u            the nearest point in the expert's own metric

    Equal for S proportional to I. Source: arXiv:2606.30445 Fig. 4 for S = I; DERIVED otherwise.
    """
    _require_covariance(cov_DD)
    if direction not in ("forward", "reverse"):
        raise ValueError(f"direction must be 'forward' or 'reverse', got {direction!r}.")
    along_D = np.asarray(along_D)
    weighted_D = np.linalg.solve(cov_DD, along_D) if direction == "reverse" else along_D
    return float(np.asarray(mean_D) @ weighted_D / (along_D @ weighted_D)) * along_D


def value(mean_D: Array, cov_DD: Array = IDENTITY) -> float:
    """V = P(y >= 0) = Phi(mean_y / sqrt(cov_yy)), in [0, 1]."""
    return float(stats.norm.cdf(np.asarray(mean_D)[1] / math.sqrt(cov_DD[1, 1])))


def level_curve(
    centre_D: Array, cov_DD: Array, through_D: Array, num: int = 121
) -> tuple[list[float], list[float]]:
    """Points of the ellipse {z : (z - centre)' cov^-1 (z - centre) = constant} through a point, closed."""
    offset_D = np.asarray(through_D) - np.asarray(centre_D)
    radius = math.sqrt(offset_D @ np.linalg.solve(cov_DD, offset_D))
    angle_N = np.linspace(0, 2 * np.pi, num)
    circle_DN = np.stack([np.cos(angle_N), np.sin(angle_N)])
    curve_DN = np.asarray(centre_D)[:, None] + radius * np.linalg.cholesky(cov_DD) @ circle_DN
    return curve_DN[0].tolist(), curve_DN[1].tolist()


def _require_covariance(cov_DD: Array) -> None:
    if not np.allclose(cov_DD, cov_DD.T, rtol=0, atol=1e-12) or np.linalg.eigvalsh(cov_DD)[0] <= 0:
        raise ValueError(f"a symmetric positive definite covariance expected, got {cov_DD.tolist()}.")
