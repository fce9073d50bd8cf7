"""The pictures of the offline lower bound: its risks against data, coverage and the size of the class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from understudy.theory import bandits
from understudy.theory.bounds.bandits import PRINTED_FAMILY_CONSTANT, last_display_scale, offline_lower_bound
from understudy.theory.intervals import mean_interval
from understudy.theory.outcome import Line, Panel

Point = tuple[int, float, int]
"""Hidden bits, coverage C, data N: one member of the family."""


def simulated_line(
    label: str,
    x: Sequence[float],
    points: Sequence[Point],
    num: int,
    rng: np.random.Generator,
    group: str,
    is_online: bool = False,
) -> Line:
    """Mean risks of the learner on drawn data in the printed family, with their intervals."""
    found = [
        mean_interval(
            bandits.simulated_risks(bandits.printed_context_law(*point), *point[1:], num, rng, is_online)
        )
        for point in points
    ]
    mean, low, high = zip(*found, strict=True)
    return Line(label=label, x=x, y=mean, low=low, high=high, group=group)


def closed_line(
    label: str, x: Sequence[float], points: Sequence[Point], group: str, is_online: bool = False
) -> Line:
    """Exact risks in the printed family."""
    risk = bandits.family_online_risk if is_online else bandits.family_risk
    return Line(label=label, x=x, y=[risk(*point) for point in points], role="predicted", group=group)


def bound_line(x: Sequence[float], points: Sequence[Point], which: str = "") -> Line:
    """Theorem 1 with the constant of the printed family."""
    y = [offline_lower_bound(2.0**bits, c, n, PRINTED_FAMILY_CONSTANT) for bits, c, n in points]
    return Line(label=f"Thm 1, c = 1/(16 ln 2){which}", x=x, y=y, role="bound", group="bound")


def demos_panel(
    num_contexts: int,
    coverages: Sequence[float],
    demo_counts: Sequence[int],
    num: int,
    rng: np.random.Generator,
) -> Panel:
    """Risk against N, each N with its own worst context law."""
    lines = []
    points: list[Point] = []
    for coverage in coverages:
        points = [(num_contexts, coverage, n) for n in demo_counts]
        group = f"C{coverage:g}"
        lines += [
            simulated_line(f"offline, C = {coverage:g}", demo_counts, points, num, rng, group),
            closed_line(f"closed form, C = {coverage:g}", demo_counts, points, group),
        ]
    online = [(num_contexts, coverages[1], n) for n in demo_counts]
    lines += [
        closed_line(
            f"online, C = {coverages[1]:g} (closed form)", demo_counts, online, "online", is_online=True
        ),
        bound_line(demo_counts, points, f", C = {coverages[-1]:g}"),
    ]
    return Panel(
        title=f"Risk against data, |Pi| = 2^{num_contexts}, worst contexts for each N",
        x_label="N: demonstrations, or online prompts",
        y_label="risk 1 - V",
        x_scale="log",
        y_scale="log",
        lines=lines,
    )


def coverage_panel(
    num_contexts: int, coverages: Sequence[float], num_demos: int, num: int, rng: np.random.Generator
) -> Panel:
    """Risk against C: offline rises, online falls, the last display of the proof goes the wrong way."""
    dense = np.geomspace(1, coverages[-1], 25).tolist()
    # Beyond C of about 5 online errors are too rare for a simulation to meet them.
    few = [c for c in (1.0, 1.5, 2.0, 3.0, 4.0, 5.0) if c <= coverages[-1]]
    points, dense_points, few_points = (
        [(num_contexts, float(c), num_demos) for c in values] for values in (coverages, dense, few)
    )
    display = [PRINTED_FAMILY_CONSTANT * last_display_scale(2.0**num_contexts, c, num_demos) for c in dense]
    return Panel(
        title=f"Risk against coverage, N = {num_demos}",
        x_label="C = sup pi*/pi_e",
        y_label="risk 1 - V",
        x_scale="log",
        y_scale="log",
        lines=[
            simulated_line("offline", coverages, points, num, rng, "offline"),
            closed_line("offline, closed form", dense, dense_points, "offline"),
            simulated_line("online", few, few_points, num, rng, "online", is_online=True),
            closed_line("online, closed form", dense, dense_points, "online", is_online=True),
            bound_line(dense, dense_points),
            Line(
                label="last line of the proof, same c: c log|Pi|/(C N)",
                x=dense,
                y=display,
                role="bound",
                group="display",
            ),
        ],
        y_limits=(1e-6, 1e-1),
    )


def class_panel(
    context_counts: Sequence[int], coverage: float, num_demos: int, num: int, rng: np.random.Generator
) -> Panel:
    """Risk against log |Pi|."""
    x = [bits * math.log(2) for bits in context_counts]
    points = [(bits, coverage, num_demos) for bits in context_counts]
    return Panel(
        title=f"Risk against the size of the class, C = {coverage:g}, N = {num_demos}",
        x_label="ln |Pi|",
        y_label="risk 1 - V",
        x_scale="log",
        y_scale="log",
        lines=[
            simulated_line("offline", x, points, num, rng, "offline"),
            closed_line("offline, closed form", x, points, "offline"),
            closed_line("online, closed form", x, points, "online", is_online=True),
            bound_line(x, points),
        ],
    )


def fixed_panel(context_prob_X: np.ndarray, coverages: Sequence[float]) -> Panel:
    """One context law for all C and N: offline is the online curve moved right by a factor C."""
    numbers = np.unique(np.geomspace(10, 200_000, 40).astype(int)).tolist()
    online = [bandits.online_risk(context_prob_X, n) for n in numbers]
    lines = [Line(label="online, every C", x=numbers, y=online, role="predicted", group="online")]
    for c in coverages:
        offline = [bandits.offline_risk(context_prob_X, c, n) for n in numbers]
        lines.append(
            Line(label=f"offline, C = {c:g}", x=numbers, y=offline, role="predicted", group=f"C{c:g}")
        )
    return Panel(
        title=f"The same contexts throughout: rare ones at {context_prob_X.min():g}",
        x_label="N: demonstrations, or online prompts",
        y_label="risk 1 - V",
        x_scale="log",
        y_scale="log",
        lines=lines,
        y_limits=(1e-6, 1.0),
    )
