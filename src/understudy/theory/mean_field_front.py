"""How long learning takes when a position's signal is weak, and a front that moves through the positions.

T positions, K actions. A model of the time course, where `mean_field` has the fixed points. DERIVED throughout: what is
assumed beyond the maps is said at each function.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import root_scalar
from scipy.special import ndtr

Array = np.ndarray

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(61)


def learning_time(signal_T: Array, exponent: float, clean_time: float) -> float:
    """Trajectories until all positions are learnt, one after the other, each in a time proportional to signal^-exponent:

        time = clean_time / T * sum_t s_t^-exponent

    Exponent 1: a gradient flow moves a logit at a rate proportional to its signal. Exponent 2: sampled labels, of which
    1 / s^2 are needed to see a margin s through their noise.

    Args:
        signal_T: in (0, 1]; 1 is the signal of a clean expert on clean prefixes.
        clean_time: time at signal 1 everywhere, taken from a run.
    Returns:
        The time, in the unit of `clean_time`; inf where a signal has vanished.
    Raises:
        ValueError: a negative signal.
    """
    if np.min(signal_T) < 0:
        raise ValueError(f"signals must be >= 0, got {np.min(signal_T):g}.")
    with np.errstate(divide="ignore"):
        return float(clean_time * np.mean(signal_T ** float(-exponent)))


@dataclass(frozen=True, eq=False)
class Fit:
    """A straight line by least squares, with what it leaves over."""

    slope: float
    intercept: float
    residual_T: Array

    @property
    def largest_residual(self) -> float:
        return float(np.abs(self.residual_T).max())


def fit_line(x: Array, y: Array, through_origin: bool = False) -> Fit:
    """Least squares y = intercept + slope x, or with intercept 0."""
    if through_origin:
        slope, intercept = float(x @ y / (x @ x)), 0.0
    else:
        slope = float((x - x.mean()) @ (y - y.mean()) / ((x - x.mean()) @ (x - x.mean())))
        intercept = float(y.mean() - slope * x.mean())
    return Fit(slope, intercept, y - intercept - slope * x)


def argmax_share(gap_T: Array, num_actions: int, spread: float) -> Array:
    """Share of prompts whose argmax is right, when logits are mean + independent normal noise of std `spread`:

        G = E[ Phi(z + gap / spread)^(K - 1) ],  z normal

    where `gap` is the right action's mean logit minus a wrong one's. Gauss-Hermite quadrature, 61 nodes.

    Raises:
        ValueError: a spread that is not positive.
    """
    if not spread > 0:
        raise ValueError(f"spread must be > 0, got {spread}.")
    beat_TN = ndtr(_NODES + np.asarray(gap_T, dtype=float)[..., None] / spread) ** (num_actions - 1)
    return beat_TN @ _WEIGHTS / _WEIGHTS.sum()


@dataclass(frozen=True, eq=False)
class Front:
    """A run of `advance`: when each position was solved (inf: never), and the state at the end."""

    solved_time_T: Array
    """First time at which `solved_share` of the prompts had every greedy token right up to this position."""
    gap_T: Array
    solved_share_T: Array
    """Share of prompts that are right, greedily, up to each position, at the end."""
    end_time: float

    @property
    def depth(self) -> int:
        return int(np.isfinite(self.solved_time_T).sum())


def advance(
    right: float,
    length: int,
    num_actions: int,
    *,
    is_greedy: bool,
    spread: float,
    time_step: float,
    max_time: float,
    solved_share: float = 0.95,
) -> Front:
    """Gradient flow of the forward KL on every position's logit gap, with prefixes from the student itself.

        d gap_t / d time = c_t a + (1 - c_t)/K - p(gap_t),    p(gap) = e^gap / (e^gap + K - 1),    gap_t(0) = 0
        c_{t+1} = c_t G(gap_t) greedy,  c_t p(gap_t) at temperature 1;  c_0 = 1

    G is `argmax_share`: prompts differ, so that an argmax is not right everywhere the moment its mean is. Assumed: the
    positions share nothing (a real network reuses at t + 1 what it learnt at t), and spread does not shrink. Explicit
    Euler steps; stops when all positions are solved or at `max_time`. The unit of time is that of the flow.
    """
    gap_T, solved_T = np.zeros(length), np.full(length, np.inf)
    time, correct_T = 0.0, np.zeros(length)
    while time < max_time and not np.isfinite(solved_T[-1]):
        right_T = 1 / (1 + (num_actions - 1) * np.exp(-gap_T))
        share_T = argmax_share(gap_T, num_actions, spread)
        clean_T = np.concatenate([[1.0], np.cumprod(share_T if is_greedy else right_T)[:-1]])
        correct_T = np.cumprod(share_T)
        solved_T = np.where(np.isinf(solved_T) & (correct_T >= solved_share), time, solved_T)
        gap_T = gap_T + time_step * (clean_T * right + (1 - clean_T) / num_actions - right_T)
        time += time_step
    return Front(solved_T, gap_T, correct_T, time)


def final_shares(right: float, length: int, num_actions: int, *, is_greedy: bool, spread: float) -> Array:
    """Where `advance` ends if it is given for ever: share of prompts that are right, greedily, up to each position.

    Every gap is at the optimum of its own share of clean prefixes, p(gap_t) = c_t a + (1 - c_t)/K.
    """
    clean, correct_T = 1.0, np.ones(length)
    for t in range(length):
        p = clean * right + (1 - clean) / num_actions
        gap = np.log(p * (num_actions - 1) / (1 - p))
        share = float(argmax_share(gap, num_actions, spread))
        correct_T[t] = share * (correct_T[t - 1] if t else 1.0)
        clean *= share if is_greedy else p
    return correct_T


def final_depth(
    right: float, length: int, num_actions: int, *, is_greedy: bool, spread: float, solved_share: float = 0.95
) -> int:
    """Positions solved in the end."""
    shares = final_shares(right, length, num_actions, is_greedy=is_greedy, spread=spread)
    return int((shares >= solved_share).sum())


def critical_spread(right: float, length: int, num_actions: int, solved_share: float = 0.95) -> float:
    """The spread above which greedy prefixes, too, stop short of the last position."""

    def excess(spread: float) -> float:
        return final_shares(right, length, num_actions, is_greedy=True, spread=spread)[-1] - solved_share

    return float(root_scalar(excess, bracket=(0.05, 5.0), method="brentq", xtol=1e-12).root)
