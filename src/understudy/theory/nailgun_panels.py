"""What NAILGUN's mistakes look like, as panels. Data only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from understudy.theory.bounds import nailgun as bounds
from understudy.theory.nailgun_worlds import WorldRuns, aimed_error, uniform_error
from understudy.theory.outcome import Cloud, Line, Panel


def potential(least_N: np.ndarray, drop_N: np.ndarray) -> Panel:
    """One exact step of the potential in random worlds, the first 1500 of them."""
    return Panel(
        title="One exact step of the potential", x_label="gap x P(mistake)", y_label="1 - E[W'/W]",
        clouds=(Cloud(label="a random world", x=least_N[:1500].tolist(), y=drop_N[:1500].tolist()),),
        lines=(Line(label="printed: half of it", x=[0.0, 1.0], y=[0.0, 0.5], role="bound"),),
        x_limits=(0.0, 1.0),
    )  # fmt: skip


def worlds(horizons: Sequence[int], runs: Sequence[WorldRuns], bound: float) -> Panel:
    """Mistakes of real runs by horizon."""
    mean, low, high = zip(*(run.mistakes for run in runs), strict=True)
    return Panel(
        title="Random worlds: a bound without the horizon", x_label="horizon H", x_scale="log",
        y_label="mistaken episodes", y_scale="log",
        lines=(Line(label="mistaken episodes in all", x=horizons, y=mean, low=low, high=high),
               Line(label="2 log|Pi| / gap", x=horizons, y=[bound] * len(horizons), role="bound")),
    )  # fmt: skip


def codes(
    num_digits: int,
    eta: float,
    alpha: float,
    rho: float,
    simulated: dict[int, np.ndarray],
    exact_T: np.ndarray,
) -> Panel:
    """Mistakes so far on the code lock, at every simulated horizon."""
    episodes = list(range(1, len(exact_T) + 1))
    bound = bounds.mistakes(alpha, rho, 2**num_digits)
    return Panel(
        title=f"{2**num_digits} codes, eta = {eta:g}, alpha = {alpha:g}",
        x_label="episodes n", y_label="mistaken episodes so far", y_scale="log", x_scale="log",
        lines=(*(Line(label=f"real runs, H = {horizon}", x=episodes, y=mean_T.tolist(), group=f"H{horizon}")
                 for horizon, mean_T in simulated.items()),
               Line(label="binomial sums, any H", x=episodes, y=np.cumsum(exact_T).tolist(), role="predicted", group="m"),
               Line(label="2 log|Pi| / gap", x=episodes, y=[bound] * len(episodes), role="bound", group="b")),
    )  # fmt: skip


def margin(num: int, rho: float) -> Panel:
    """The vote of two policies by the rate of the noise, aimed and uniform."""
    etas = [round(0.02 * i, 2) for i in range(10, 50)]
    lines = []
    for aim in (1.0, rho):
        edge = 1 / (1 + aim)
        lines += [
            Line(label=f"aimed noise, rho = {aim:g} (margin at {edge:.3g})", x=etas,
                 y=[aimed_error(num, eta, aim) for eta in etas], group=f"{aim}"),
            Line(label=f"eta = 1/(1 + {aim:g})", x=[edge] * 2, y=[0.0, 1.0], role="bound", group=f"{aim}"),
        ]  # fmt: skip
    lines.append(Line(label="uniform noise, 4 actions (margin at 0.8)", x=etas, group="u",
                      y=[uniform_error(num, eta, 4) for eta in etas]))  # fmt: skip
    return Panel(title=f"Vote of two policies after {num} labels", x_label="noise rate eta",
                 y_label="P(wrong policy)", lines=lines, y_limits=(-0.02, 1.02))  # fmt: skip
