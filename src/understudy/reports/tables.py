"""One row per method: the same shape for a person's table and for `--json`.

Aggregates what `folders` read and computes nothing else. In rows a number that does not exist is None.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from understudy.evaluation.statistics import Estimate, mean_interval, rate_over_seeds
from understudy.reports.folders import (
    Cell,
    CompareData,
    RunData,
    final_counter,
    load_compare,
    load_run,
    number,
)
from understudy.reports.metrics import METRICS, Metric, evaluation_sets, in_order, metric_named, of_samples

__all__ = [
    "AXES",
    "METRICS",
    "Cell",
    "CompareData",
    "Metric",
    "RunData",
    "compare_rows",
    "final_metric",
    "format_value",
    "load_compare",
    "load_run",
    "metric_named",
    "metric_names",
    "metric_of",
    "over_seeds",
    "render_compare",
    "run_rows",
    "short_number",
    "stage_rows",
    "takeaway",
]


AXES: dict[str, tuple[str, str]] = {
    "trajectories": ("trajectories", "training trajectories"),
    "expert_queries": ("expert_queries", "expert queries"),
    "steps": ("step", "optimiser steps"),
    "cpu_seconds": ("cpu_seconds", "processor seconds"),
}
"""Budget axis -> (counter in a record, what the axis is called in words, after "by")."""

HEADER_WIDTH, MIN_NAME_WIDTH = 12, 14
"""Letters of a line of a column's header, and least of the column of names."""

BUDGET = {
    "trajectories": "trajectories",
    "expert_queries": "expert_queries",
    "optimizer_steps": "step",
    "cpu_seconds": "cpu_seconds",
}


def metric_names(runs: Iterable[RunData]) -> list[str]:
    """The metrics that any evaluation of any run has, known ones first."""
    found = {name for run in runs for record in run.evals for name in (record.get("metrics") or {})}
    return in_order(found)


def compare_rows(compare: CompareData) -> list[dict[str, Any]]:
    """One row per method: the shape of `understudy compare --json`.

    `budget` is the mean over done seeds at the end of the run, shared warm start included. `metrics` are
    those of the *final* evaluation: mean, low and high over seeds, n seeds. Rates use `rate_over_seeds`, the
    rest `mean_interval`; with one seed low and high are None. A metric that no seed has is absent.
    """
    rows = []
    for label in compare.methods:
        runs = compare.done(label)
        failed = sum(cell.label == label and cell.status == "failed" for cell in compare.cells)
        rows.append(_row(label, runs, failed, _final_estimates(runs)))
    return rows


def _final_estimates(runs: Sequence[RunData]) -> dict[str, Estimate]:
    return {name: over_seeds(name, [final_metric(run, name) for run in runs]) for name in metric_names(runs)}


def run_rows(run: RunData) -> list[dict[str, Any]]:
    """The same shape for a single run, one row: intervals and n are the run's own, over its prompts."""
    return [_row(run.method, [run], 0, {name: final_metric(run, name) for name in metric_names([run])})]


def final_metric(run: RunData, name: str) -> Estimate:
    """A metric at the last evaluation, with the run's own interval over prompts; n = 0 and NaN if absent."""
    return metric_of(run.evals[-1], name) if run.evals else Estimate(math.nan, None, None, 0)


def metric_of(record: dict[str, Any], name: str) -> Estimate:
    """One metric of one evaluation record; n = 0 and NaN if it is absent, null or infinite."""
    value, low, high = (number(record, "metrics", name, key) for key in ("value", "low", "high"))
    if not math.isfinite(value):
        return Estimate(math.nan, None, None, 0)
    n = number(record, "metrics", name, "n")
    return Estimate(
        value,
        None if math.isnan(low) else low,
        None if math.isnan(high) else high,
        1 if math.isnan(n) else int(n),
    )


def over_seeds(name: str, per_seed: Sequence[Estimate]) -> Estimate:
    """Mean and interval over seeds of one metric; seeds that lack it are left out (n = 0: all do)."""
    present = [estimate for estimate in per_seed if estimate.n and math.isfinite(estimate.value)]
    if not present:
        return Estimate(math.nan, None, None, 0)
    values = [estimate.value for estimate in present]
    metric = metric_named(name)
    if metric is not None and metric.is_rate:
        return rate_over_seeds(values, min(estimate.n for estimate in present))
    return mean_interval(values, bounds=None if metric is None else metric.bounds)


def stage_rows(compare: CompareData) -> list[dict[str, Any]]:
    """One row a stage, in the shape of `compare_rows` with a key more: `stage` (`start` or `expert`).

    Its budget is its own, and its metrics are those of its own last evaluation.
    """
    return [
        {
            **_row(f"{stage.kind} {stage.label}", stage.runs, 0, _final_estimates(stage.runs)),
            "stage": stage.kind,
        }
        for stage in compare.stages
    ]


def render_compare(
    rows: Sequence[dict[str, Any]],
    console: Console,
    *,
    interval_over: str = "seeds",
    below: Sequence[dict[str, Any]] = (),
    has_budget: bool = True,
) -> None:
    """Print the rows as a table, with one line below it that says what to take from it; then what several samples a prompt
    gave, and what each further evaluation set did. Rows of `below` stand apart and are not ranked."""
    names = [name for name in METRICS if any(name in row["metrics"] for row in rows)]
    is_wide = console.width >= 110
    if not is_wide:
        narrow = ("accuracy_greedy", "accuracy_sampled", "validation_loss_nats")
        names = [name for name in names if name in narrow] or names[:3]
    budgets = {"trajectories": "trajec-\ntories", "cpu_seconds": "cpu\nseconds"}
    if is_wide:
        budgets = {"trajectories": "trajec-\ntories", "expert_queries": "expert\nqueries"}
        budgets |= {"optimizer_steps": "steps", "cpu_seconds": "cpu\nseconds"}
    columns = {"seeds": "seeds", **(budgets if has_budget else {})}
    console.print(_table(rows, below, names, columns))
    console.print(Text(takeaway(rows, interval_over=interval_over), style="italic"))
    # A column is at most as wide as a line of its header, and two between it and the next.
    room = (console.width - _name_width(rows) - 2) // (HEADER_WIDTH + 2)
    _render_further(rows, below, console, max_columns=max(1, min(room, 8)))


def _render_further(
    rows: Sequence[dict[str, Any]], below: Sequence[dict[str, Any]], console: Console, *, max_columns: int
) -> None:
    """Tables of their own, so that none gets too wide: no column of a metric is left out."""
    found = {name for row in rows for name in row["metrics"]}
    groups = {"Several samples a prompt": of_samples(found)}
    groups |= {f"On the evaluation set {of_set}": names for of_set, names in evaluation_sets(found).items()}
    for title, names in groups.items():
        for start in range(0, len(names), max_columns):
            console.print(Text(f"\n{title}{', continued' if start else ''}", style="bold"))
            shown = names[start : start + max_columns]
            console.print(_table(rows, [row for row in below if {*shown} & {*row["metrics"]}], shown, {}))


def _table(
    rows: Sequence[dict[str, Any]],
    below: Sequence[dict[str, Any]],
    names: Sequence[str],
    budgets: Mapping[str, str],
) -> Table:
    """One row a method: the columns of `budgets` (seeds, or a key of the row's budget) and those of the metrics."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("method", no_wrap=True)
    names_below = [textwrap.fill(row["method"], _name_width(rows), break_on_hyphens=False) for row in below]
    below = [{**row, "method": name} for row, name in zip(below, names_below, strict=True)]
    for header in budgets.values():
        table.add_column(header, justify="right", no_wrap=True)
    for name in names:
        metric = metric_named(name.rpartition("/")[2])
        assert metric is not None
        table.add_column(_header(metric), justify="right", no_wrap=True)
    for row in (*rows, None, *below) if below else rows:
        if row is None:
            table.add_row()
            continue
        seeds = f"{row['seeds']} of {row['seeds'] + row['failed']}" if row["failed"] else str(row["seeds"])
        numbers = [Text(seeds if key == "seeds" else short_number(row["budget"][key])) for key in budgets]
        table.add_row(Text(row["method"]), *numbers, *(_cell_text(row, name) for name in names))
    return table


def takeaway(rows: Sequence[dict[str, Any]], *, interval_over: str = "seeds") -> str:
    """One line: the best method by the first metric there is, and which intervals overlap with its own."""
    legend = f"Below a value: its 95 % interval over {interval_over}"
    names = [name for name in METRICS if any(name in row["metrics"] for row in rows)]
    scored = [row for row in rows if names and names[0] in row["metrics"]]
    ranked = [(row["method"], row["metrics"][names[0]]) for row in scored]
    if len(ranked) < 2:
        return f"{legend}."
    metric = METRICS[names[0]]
    ranked.sort(key=lambda pair: -pair[1]["mean"] if metric.is_higher_better else pair[1]["mean"])
    (best, top), others = ranked[0], ranked[1:]
    text = f"{legend}. Best {metric.title.lower()} at the end: {best} ({top['mean']:.2f})"
    if any(entry["low"] is None for _, entry in ranked):
        return text + "; with one seed a ranking cannot be told from chance."
    overlapping = [
        label for label, entry in others if entry["low"] <= top["high"] and top["low"] <= entry["high"]
    ]
    if overlapping:
        return text + f"; its interval overlaps that of {', '.join(overlapping)}."
    return text + ", clear of the rest."


def short_number(value: float | None) -> str:
    """Three significant digits with k or M: 42200 -> 42.2k; a dash for nothing."""
    if value is None or math.isnan(value):
        return "-"
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def format_value(name: str, value: float) -> str:
    """A metric's value as the reports print it: rates with two decimals, nats with three."""
    metric = metric_named(name)
    return f"{value:.2f}" if metric is not None and metric.is_rate else f"{value:.3f}"


def _cell_text(row: dict[str, Any], name: str) -> Text:
    entry = row["metrics"].get(name)
    if entry is None:
        return Text("-")
    text = Text(format_value(name, entry["mean"]))
    if entry["low"] is not None and entry["high"] is not None:
        text.append(f"\n{format_value(name, entry['low'])}-{format_value(name, entry['high'])}", style="dim")
    return text


def _header(metric: Metric) -> str:
    """The title in short lines: a header must not make its column wide."""
    words = metric.title + (f" ({metric.unit})" if metric.unit else "")
    return "\n".join(textwrap.wrap(words, HEADER_WIDTH, break_on_hyphens=True))


def _name_width(rows: Sequence[dict[str, Any]]) -> int:
    """Room for the methods' names; longer ones of other rows are broken, so that the methods' columns keep their place."""
    return max([MIN_NAME_WIDTH, *(len(row["method"]) for row in rows)])


def _row(label: str, runs: Sequence[RunData], failed: int, estimates: dict[str, Estimate]) -> dict[str, Any]:
    metrics = {}
    for name, estimate in estimates.items():
        if estimate.n:
            fields = estimate.to_json()
            metrics[name] = {"mean": fields["value"], **{key: fields[key] for key in ("low", "high", "n")}}
    budget = {key: _mean([final_counter(run, counter) for run in runs]) for key, counter in BUDGET.items()}
    return {"method": label, "seeds": len(runs), "failed": failed, "budget": budget, "metrics": metrics}


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None
