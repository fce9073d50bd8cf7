"""NAIL's moving front: the times in arXiv:2606.30923 Fig. 4, and the front model beside them.

T positions, K actions; times in thousand trajectories. "F" and "R" are NAIL with the forward and the reverse loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from understudy.theory import mean_field as maps
from understudy.theory.mean_field_front import Fit, Front, advance, critical_spread, final_depth, fit_line
from understudy.theory.outcome import Line, Panel, Progress, Row

Array = np.ndarray

SPREADS = (0.25, 0.5, 0.75, 1.0)
PRINTED_SLOPE = 26.0
"""Of our own earlier derivation, in thousand trajectories a position, for both losses."""


@dataclass(frozen=True, eq=False)
class Times:
    """NAIL's times at one noise rate, for every length whose rates the figure separates."""

    length_N: Array
    time_N: Mapping[str, Array]
    """By loss, "F" and "R"."""
    misread: float
    """What each time may be off by."""
    eta: float


def nail_times(grid: dict, eta: float) -> Times:
    """From the grid; its least length is left out, for which the figure shows one time at all rates.

    Raises:
        ValueError: a rate that the grid has not.
    """
    if eta not in grid["etas"]:
        raise ValueError(f"a rate of the grid, {grid['etas']}, expected, got {eta}.")
    index, lengths = grid["etas"].index(eta), grid["lengths"][1:]
    table = grid["trajectories_thousands"]
    times = {
        loss: np.array([float(table[f"nail-{loss.lower()}"][str(m)][index]) for m in lengths])
        for loss in ("F", "R")
    }
    return Times(np.array(lengths, dtype=float), times, grid["reading_error_thousands"], eta)


def slope_error(length_N: Array, misread: float) -> float:
    """How far a fitted slope can be off when every time is off by at most `misread`: the worst case, not a typical one.

    misread * sum |x - mean| / sum (x - mean)^2
    """
    off_N = length_N - length_N.mean()
    return misread * float(np.abs(off_N).sum() / (off_N @ off_N))


@dataclass(frozen=True, eq=False)
class Moving:
    """The front model with greedy and with sampled prefixes."""

    greedy: Front
    sampled: Front
    right: float
    num_actions: int
    spread: float


def move(
    right: float,
    length: int,
    num_actions: int,
    spread: float,
    time_step: float,
    stall_factor: float,
    progress: Progress,
) -> Moving:
    """Greedy prefixes until all positions are solved, then sampled ones for `stall_factor` times as long.

    Raises:
        ValueError: a spread so wide that greedy prefixes solve no two positions.
    """

    def flow(is_greedy: bool, max_time: float) -> Front:
        return advance(
            right,
            length,
            num_actions,
            is_greedy=is_greedy,
            spread=spread,
            time_step=time_step,
            max_time=max_time,
        )

    greedy = flow(True, 20.0 * length)
    if greedy.depth < 2:
        raise ValueError(
            f"a spread at which greedy prefixes solve two positions or more expected, got {spread}."
        )
    progress(0.4)
    return Moving(greedy, flow(False, stall_factor * greedy.end_time), right, num_actions, spread)


def rows(times: Times, moving: Moving) -> list[Row]:
    """The front in the paper's runs and in the model."""
    return [*_slope_rows(times), *_model_rows(moving), *_spread_rows(moving)]


def _slope_rows(times: Times) -> list[Row]:
    found, slip = [], slope_error(times.length_N, times.misread)
    for loss, is_refuted in (("F", False), ("R", True)):
        line = fit_line(times.length_N, times.time_N[loss])
        origin = fit_line(times.length_N, times.time_N[loss], through_origin=True)
        found.append(
            Row(
                claim=f"NAIL-{loss}'s time, eta = {times.eta}: slope {PRINTED_SLOPE:g} k trajectories a position",
                source="DERIVED; arXiv:2606.30923 Fig. 4",
                relation="=",
                bound=PRINTED_SLOPE,
                measured=line.slope,
                low=line.slope - slip,
                high=line.slope + slip,
                num=len(times.length_N),
                is_refuted=is_refuted,
                note=f"interval: every time misread by up to {times.misread:g} k; intercept {line.intercept:.0f} k, "
                f"residuals up to {line.largest_residual:.0f} k; through the origin: {origin.slope:.1f}, up to "
                f"{origin.largest_residual:.0f} k",
            )
        )
    return found


def _model_rows(moving: Moving) -> list[Row]:
    greedy, sampled, length = moving.greedy, moving.sampled, len(moving.greedy.gap_T)
    is_done = greedy.depth == length
    steps = np.diff(greedy.solved_time_T[length // 3 :]) if is_done else np.array([])
    model = _greedy_line(moving)
    end_T = 1 / (1 + (moving.num_actions - 1) * np.exp(-sampled.gap_T))
    fixed_T = maps.forward_walk(moving.right, length, moving.num_actions).right_T
    return [
        Row(
            claim="front model, greedy prefixes: slowest over fastest position, later two thirds",
            source="DERIVED",
            relation="<=",
            bound=1.1,
            measured=float(steps.max() / steps.min()) if is_done else np.inf,
            num=len(steps),
            note=f"linear: {model.slope:.2f} flow times a position, largest residual {model.largest_residual:.2f}",
        ),
        Row(
            claim=f"front model, prefixes at T = 1: positions solved of {length}, in far more time",
            source="DERIVED",
            relation="<=",
            bound=maps.solved_depth(1.67, length, moving.num_actions, -float(np.log(moving.right))),
            measured=sampled.depth,
            note="bound: depth that the paper's OPD-F reaches by its loss; it ends at the map's fixed point to "
            f"{np.abs(end_T - fixed_T).max():.1e}",
        ),
    ]


def _spread_rows(moving: Moving) -> list[Row]:
    """The spread of logits over prompts is chosen, and the contrast of the two prefixes hangs on it."""
    length = len(moving.greedy.gap_T)

    def depth(is_greedy: bool, spread: float) -> int:
        return final_depth(moving.right, length, moving.num_actions, is_greedy=is_greedy, spread=spread)

    both = ", ".join(f"{spread:g}: {depth(True, spread)}/{depth(False, spread)}" for spread in SPREADS)
    return [
        Row(
            claim="front model: its spread, a choice, is below where greedy prefixes stop short",
            source="DERIVED",
            relation="<=",
            bound=critical_spread(moving.right, length, moving.num_actions),
            measured=moving.spread,
            note=f"std of the logits over prompts; positions solved in the end of {length}, greedy/sampled, by spread: {both}",
        ),
    ]


def _greedy_line(moving: Moving) -> Fit:
    depth = moving.greedy.depth
    return fit_line(np.arange(1.0, depth + 1), moving.greedy.solved_time_T[:depth])


def panel(times: Times, moving: Moving) -> Panel:
    """Time in trajectories: one flow time is set so that the model's front has the slope fitted to NAIL-F."""
    greedy, sampled = moving.greedy, moving.sampled
    lengths, line = times.length_N, fit_line(times.length_N, times.time_N["F"])
    unit = line.slope / _greedy_line(moving).slope
    stalled = [*(sampled.solved_time_T[: sampled.depth] * unit).tolist(), sampled.end_time * unit]
    lines = []
    for loss, time_N in times.time_N.items():
        fit = fit_line(lengths, time_N)
        lines += [
            Line(
                label=f"paper, NAIL-{loss} (+-{times.misread:g} k)",
                x=time_N.tolist(),
                y=lengths.tolist(),
                group=loss,
            ),
            Line(
                label=f"line, {fit.slope:.1f} k a position",
                x=(fit.intercept + fit.slope * lengths).tolist(),
                y=lengths.tolist(),
                role="bound",
                group=loss,
            ),
        ]
    lines += [
        Line(
            label="model, greedy prefixes",
            x=(greedy.solved_time_T[: greedy.depth] * unit).tolist(),
            y=[*range(1, greedy.depth + 1)],
            role="predicted",
            group="F",
        ),
        Line(
            label="model, prefixes at T = 1",
            x=stalled,
            y=[*range(1, sampled.depth + 1), sampled.depth],
            role="predicted",
            group="opd",
        ),
    ]
    return Panel(
        title=f"NAIL's front, eta = {times.eta:g}, K = {moving.num_actions}",
        x_label="thousand trajectories (unit of the model fitted)",
        y_label="positions solved",
        lines=lines,
        x_limits=(0.0, 2 * max(float(time_N.max()) for time_N in times.time_N.values())),
    )
