"""Learning curves: a metric against what was spent, methods beside each other and beside the experts they imitated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from understudy.errors import DataError
from understudy.reports.drawing import FAINT, INK, SHADE, count_axis, label_ends, new_figure, tidy
from understudy.reports.folders import number
from understudy.reports.metrics import metric_named, title_and_unit
from understudy.reports.series import (
    Group,
    Source,
    curves_of,
    expert_groups,
    groups_of,
    mean_curve,
    step_scale,
    warm_end,
)
from understudy.reports.tables import AXES, final_metric, format_value, metric_of, over_seeds

MAX_LABELS = 14
"""With more methods than this a figure uses a legend: labels at line ends would be too crowded."""

ROOM_LETTERS, LETTER_INCHES = 20, 0.08
"""Of a name beside a line's end: how many letters there is room for, and what one more takes."""

ALIGNED_STEPS = "aligned_steps"
"""Steps, those of some labels divided as the comparison's `step_scale` says."""


EXPERT_ROOM = 3.0
"""An expert's line ends at so many times what the students spent: longer training must not press them against the axis."""

AT_ITS_END = " at its end"
"""Said of the number beside a line that was cut off."""


def learning_curves(source: Source, metric: str, axis: str = "trajectories") -> Figure:
    """A metric against a budget: thin lines seeds, thick line mean, band 95 % t interval (three seeds up).

    Experts that were trained before are thin dashed lines, each by its own budget; one that spent much more is cut off.
    """
    experts = expert_groups(source)
    # Names beside the lines' ends: an expert's, which has its method in it, may need more room.
    longest = max((len(_labelled(group, metric) + AT_ITS_END) for group in experts), default=0)
    width = 8.0 + LETTER_INCHES * max(0, longest - ROOM_LETTERS)
    figure = new_figure(width, 4.3)
    axes = figure.add_axes((0.68 / width, 0.125, 5.52 / width, 0.755))
    draw_curves(axes, source, metric, axis, experts=experts)
    return figure


def draw_curves(axes: Axes, source: Source, metric: str, axis: str, *, experts: Sequence[Group] = ()) -> None:
    """`learning_curves` on axes that are there already."""
    if axis not in (*AXES, ALIGNED_STEPS):
        raise DataError(f"expected an axis out of {', '.join((*AXES, ALIGNED_STEPS))}, got {axis!r}.")
    counter, axis_words = AXES["steps" if axis == ALIGNED_STEPS else axis]
    scale = step_scale(source) if axis == ALIGNED_STEPS else {}
    groups = groups_of(source)
    drawn = [
        (group, [(x / scale.get(group.label, 1.0), y) for x, y in curves])
        for group in groups
        if (curves := curves_of(group, metric, counter))
    ]
    if not drawn:
        raise DataError(f"expected evaluations with {metric!r} and {counter!r}, no run here has any.")
    ends: list[tuple[str, str, float, float]] = []
    students_right = max(float(x[-1]) for _, curves in drawn for x, _ in curves)
    # The published alignment sets steps of students beside rounds of the expert, each of which may be several steps.
    spent = "round" if axis == ALIGNED_STEPS else counter
    imitated = [
        (group, [_cut(curve, EXPERT_ROOM * students_right) for curve in curves])
        for group in experts
        if (curves := _moving(group, metric, spent))
    ]
    for group, curves in imitated:
        x, mean, _, _ = mean_curve(curves, metric)
        is_cut = any(
            a[-1] < b[-1] for (a, _), (b, _) in zip(curves, _moving(group, metric, spent), strict=True)
        )
        text = _labelled(group, metric) + (AT_ITS_END if is_cut else "")
        axes.plot(x, mean, linestyle=group.dashes, color=group.color, linewidth=1.2, label=text)
        ends.append((text, group.color, float(x[-1]), float(mean[-1])))
    for group, curves in drawn:
        x, mean, low, high = mean_curve(curves, metric)
        if low is not None and high is not None:
            axes.fill_between(x, low, high, color=group.color, alpha=0.10, linewidth=0)
        for curve in curves if len(curves) > 1 else []:
            axes.plot(*curve, color=group.color, linewidth=0.7, alpha=0.45)
        marker = "o" if len(x) == 1 else None
        text = _labelled(group, metric)
        axes.plot(
            x, mean, linestyle=group.dashes, color=group.color, linewidth=2.0, marker=marker, label=text
        )
        ends.append((text, group.color, float(x[-1]), float(mean[-1])))
    name, unit = title_and_unit(metric)
    shown = [curve for _, curves in (*drawn, *imitated) for curve in curves]
    right = max(float(x[-1]) for x, _ in shown)
    if axis == ALIGNED_STEPS:  # a warm start that several share has no divisor of its own
        axes.set_xlim(0, 1.02 * right if right > 0 else None)
        has_warm_start = any(warm_end(run, warm, counter) > 0 for group in groups for run, warm in group.runs)
    else:
        has_warm_start = _shade_warm_start(axes, groups, metric, counter, right)
    x_label = f"{axis_words} after the warm start" if has_warm_start else axis_words
    if scale:
        rounds = "; experts: rounds" if imitated else ""
        x_label += f" ({_divided(scale, [group.label for group, _ in drawn])}{rounds})"
    title = f"{name} by {'aligned steps' if axis == ALIGNED_STEPS else axis_words}"
    tidy(axes, x_label=x_label, y_label=unit, title=title)
    count_axis(axes)
    known = metric_named(metric)
    if known is not None and known.is_rate:
        axes.set_ylim(-0.03, 1.03)
    elif known is not None:
        axes.set_ylim(0, 1.06 * max(float(np.max(y)) for _, y in shown) + 1e-9)
    if len(ends) <= MAX_LABELS:
        label_ends(axes, ends)
    else:
        axes.legend(
            loc="upper left", bbox_to_anchor=(1.01, 1.03), fontsize=8, frameon=False, handlelength=1.6
        )


def _divided(scale: Mapping[str, float], labels: Sequence[str]) -> str:
    """Which labels' steps were divided by what; one divisor for all of them takes one word."""
    if len(labels) > 1 and len({scale.get(label, 1.0) for label in labels}) == 1:
        return f"of every method divided by {scale[labels[0]]:g}"
    by_divisor = {divisor: [k for k, v in scale.items() if v == divisor] for divisor in scale.values()}
    return ", ".join(f"{' and '.join(names)} divided by {divisor:g}" for divisor, names in by_divisor.items())


def _labelled(group: Group, metric: str) -> str:
    """A line's name with the mean of the seeds' last evaluations."""
    final = over_seeds(metric, [final_metric(run, metric) for run, _ in group.runs])
    return f"{group.label}  {format_value(metric, final.value)}" if final.n else group.label


def _cut(curve: tuple[np.ndarray, np.ndarray], right: float) -> tuple[np.ndarray, np.ndarray]:
    """A curve up to x = right, where it ends in between its points."""
    x, y = curve
    if right <= x[0] or x[-1] <= right:
        return curve
    is_kept = x < right
    return np.append(x[is_kept], right), np.append(y[is_kept], np.interp(right, x, y))


def _moving(group: Group, metric: str, counter: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """The curves of an expert; none where it spent nothing of what is counted, as one that learned from rewards no queries."""
    curves = curves_of(group, metric, counter)
    return curves if any(x[-1] > x[0] for x, _ in curves) else []


WARM_SHARE = 0.45
"""Most of the part right of it that the warm start may take up: it is shown for context, its beginning may be cut off."""


def _shade_warm_start(axes: Axes, groups: Sequence[Group], metric: str, counter: str, right: float) -> bool:
    """Grey left of zero, where the warm start ran, with its own evaluations as thin grey lines; sets the limits of x.

    Returns whether there was any warm start.
    """
    lengths = [warm_end(run, warm, counter) for group in groups for run, warm in group.runs]
    left = min(max(lengths, default=0.0), WARM_SHARE * right if right > 0 else math.inf)
    axes.set_xlim(-left, 1.02 * right if right > 0 else None)
    if left <= 0:
        return False
    shared = {warm.folder: warm for group in groups for _, warm in group.runs if warm is not None}
    axes.axvspan(-left, 0, color=SHADE, zorder=0, linewidth=0)
    for warm in shared.values():
        end = max((number(record, counter) for record in warm.evals), default=0.0)
        x = [number(record, counter) - end for record in warm.evals]
        axes.plot(x, [metric_of(record, metric).value for record in warm.evals], color=FAINT, linewidth=1.0)
    known = metric_named(metric)
    is_rising = known is None or known.is_higher_better
    axes.text(
        -left / 2,
        0.97 if is_rising else 0.03,
        "shared\nwarm start" if shared else "warm start",
        transform=axes.get_xaxis_transform(),
        ha="center",
        va="top" if is_rising else "bottom",
        fontsize=9,
        color=INK,
    )
    return True
