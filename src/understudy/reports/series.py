"""Runs as methods, and methods as series over training: what a figure draws, before it is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from understudy.evaluation.statistics import mean_interval
from understudy.reports.drawing import STAGE_COLOR, STAGE_DASHES, Dashes, method_style
from understudy.reports.folders import CompareData, RunData, final_counter, number
from understudy.reports.metrics import metric_named
from understudy.reports.tables import metric_of

Source = CompareData | RunData | Sequence[RunData]
"""What every figure takes: a comparison, one run, or runs that are grouped by their method."""


@dataclass(frozen=True)
class Group:
    """The runs of one method, each with the warm start it continued from (None: its own, or none)."""

    label: str
    color: str
    dashes: Dashes
    runs: tuple[tuple[RunData, RunData | None], ...]

    def evals(self, index: int) -> list[dict[str, Any]]:
        """Evaluations of one run, after those of its warm start."""
        run, warm = self.runs[index]
        first = min((number(record, "step") for record in run.evals), default=math.inf)
        before = [record for record in (warm.evals if warm else ()) if number(record, "step") < first]
        return [*before, *run.evals]


def groups_of(source: Source) -> list[Group]:
    """The source as methods with their runs; methods without a finished run are left out."""
    by_label: dict[str, list[tuple[RunData, RunData | None]]] = {}
    if isinstance(source, CompareData):
        for label in source.methods:
            cells = [cell for cell in source.cells if cell.label == label]
            by_label[label] = [(cell.run, cell.warm_start) for cell in cells if cell.run is not None]
    else:
        for run in [source] if isinstance(source, RunData) else source:
            by_label.setdefault(run.method, []).append((run, run.warm_start))
    styled = [
        (label, runs, *method_style(label, index)) for index, (label, runs) in enumerate(by_label.items())
    ]
    return [Group(label, color, dashes, tuple(runs)) for label, runs, color, dashes in styled if runs]


def expert_groups(source: Source) -> list[Group]:
    """The experts that a comparison's cells imitated and that are runs of ours, in grey, told apart by their dashes."""
    stages = source.stages if isinstance(source, CompareData) else ()
    experts = [stage for stage in stages if stage.kind == "expert"]
    return [
        Group(
            stage.label,
            STAGE_COLOR,
            STAGE_DASHES[index % len(STAGE_DASHES)],
            tuple((run, run.warm_start) for run in stage.runs),
        )
        for index, stage in enumerate(experts)
    ]


def step_scale(source: Source) -> dict[str, float]:
    """Label -> what its steps are divided by on the axis of aligned steps; empty where nothing is."""
    found = source.header.get("step_scale") if isinstance(source, CompareData) else None
    return {label: float(divisor) for label, divisor in (found or {}).items() if float(divisor) != 1}


def curves_of(group: Group, metric: str, counter: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """One (x, y) per seed, sorted; it begins where its warm start ended, and x counts from there.

    Warm starts that end on a measured condition end at another budget for every seed: counted from zero, the seeds of
    one method would have no x in common to be averaged at.
    """
    curves: list[tuple[np.ndarray, np.ndarray]] = []
    for run, warm in group.runs:
        begin = warm_end(run, warm, counter)
        points = [(number(record, counter), metric_of(record, metric).value) for record in run.evals]
        if warm is not None and warm.evals and points:
            start = (number(warm.evals[-1], counter), metric_of(warm.evals[-1], metric).value)
            points = [start, *points] if start[0] < points[0][0] else points
        points = sorted(point for point in points if math.isfinite(point[0] + point[1]))
        if points:
            curves.append((np.array([x for x, _ in points]) - begin, np.array([y for _, y in points])))
    return curves


def mean_curve(
    curves: Sequence[tuple[np.ndarray, np.ndarray]], metric: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Mean over seeds on the part of x that all seeds cover, and from three seeds up its t interval."""
    left, right = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    x = np.unique(np.concatenate([x for x, _ in curves]))
    x = x[(x >= left) & (x <= right)] if left <= right else x[:1]
    values = np.array([np.interp(x, *curve) for curve in curves])
    if len(curves) < 3:
        return x, values.mean(axis=0), None, None
    known = metric_named(metric)
    bounds = None if known is None else known.bounds
    estimates = [mean_interval(column.tolist(), bounds=bounds) for column in values.T]
    low, high = (np.array([getattr(estimate, side) for estimate in estimates]) for side in ("low", "high"))
    return x, values.mean(axis=0), low, high


def warm_end(run: RunData, warm: RunData | None, counter: str) -> float:
    """Where the warm start of a run ends on a counter; 0 without one."""
    if warm is not None:
        end = final_counter(warm, counter)
        return 0.0 if math.isnan(end) else end
    own = [number(r, counter) for r in (*run.train, *run.evals) if r.get("stage") == "warm_start"]
    return max((value for value in own if not math.isnan(value)), default=0.0)


def position_table(group: Group, name: str) -> dict[int, np.ndarray]:
    """Step -> values by position (from position 1), averaged over the seeds that were evaluated at that step.

    Steps count from the end of the warm start; before it they are negative. NaN where no seed has a value: positions
    that no response reached.
    """
    by_step: dict[int, list[list[float]]] = {}
    for index, (run, warm) in enumerate(group.runs):
        begin = warm_end(run, warm, "step")
        for record in group.evals(index):
            row = (record.get("by_position") or {}).get(name)
            step = number(record, "step") - begin
            if row and not math.isnan(step):
                values = [
                    float(v) if isinstance(v, int | float) and math.isfinite(v) else math.nan for v in row
                ]
                by_step.setdefault(int(step), []).append(values)
    table = {step: _mean_by_position(rows) for step, rows in sorted(by_step.items())}
    return {step: row for step, row in table.items() if not np.isnan(row).all()}


def phase_seconds(group: Group) -> dict[str, float]:
    """Seconds per phase at the end of the run, mean over the seeds that recorded any."""
    ends: list[dict[str, float]] = []
    for run, _ in group.runs:
        records = [r["seconds"] for r in (*run.train, *run.evals) if isinstance(r.get("seconds"), dict)]
        names = {name for record in records for name in record}
        if names:
            values = {name: [v for r in records if not math.isnan(v := number(r, name))] for name in names}
            ends.append({name: max(value, default=0.0) for name, value in values.items()})
    names = sorted({name for end in ends for name in end})
    return {name: math.fsum(end.get(name, 0.0) for end in ends) / len(ends) for name in names}


def _mean_by_position(rows: Sequence[Sequence[float]]) -> np.ndarray:
    grid = np.full((len(rows), max(map(len, rows))), np.nan)
    for index, row in enumerate(rows):
        grid[index, : len(row)] = row
    counts = (~np.isnan(grid)).sum(axis=0)
    sums = np.where(np.isnan(grid), 0.0, grid).sum(axis=0)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
