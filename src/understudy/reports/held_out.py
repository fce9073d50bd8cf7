"""What `understudy evaluate COMPARISON` wrote, as a figure and tables: every label on the same held-out prompts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Console

from understudy.errors import DataError
from understudy.reports.drawing import (
    FAINT,
    INK,
    SHADE,
    STAGE_COLOR,
    STAGE_DASHES,
    Dashes,
    method_style,
    new_figure,
    tidy,
)
from understudy.reports.folders import CompareData
from understudy.reports.html import embedded, value_cell
from understudy.reports.metrics import as_file_name, in_order, metric_named, of_samples, titled
from understudy.reports.tables import format_value, render_compare

EVALUATIONS = "evaluations"
"""Folder of a comparison: `<split>.json`, and one file a checkpoint in `<split>/`."""
OWN_TASK = "own task"
"""What the panel and rows of the recipe's own prompts are called, beside those of its evaluation sets."""
GONE = "its checkpoint is gone"
"""Why a finished cell is left out."""
MAX_COLUMNS, MAX_LETTERS = 4, 30
"""Panels side by side, and letters of a name in a figure."""

Record = dict[str, Any]


def load_held_out(folder: Path, split: str) -> Record | None:
    """The record of a split; None where that was not measured.

    Raises:
        DataError: the file is no such record.
    """
    file = folder / EVALUATIONS / f"{split}.json"
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        _check(found)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
        raise DataError(
            f"expected an object with rows and paired in {file}, found something else. Delete it, and evaluate again."
        ) from None
    return found


def _check(record: Any) -> None:
    """Fails on a record that the figures and tables would stumble over."""
    assert isinstance(record["split"], str)
    for row in record["rows"]:
        assert isinstance(row["label"], str) and isinstance(row["kind"], str)
        assert isinstance(row["seeds"], list)
        for entry in row["metrics"].values():
            assert isinstance(entry["mean"], int | float) and isinstance(entry["by_seed"], dict)
            assert {"low", "high"} <= set(entry)
    for pair in record["paired"]:
        assert isinstance(pair["a"], str) and isinstance(pair["b"], str)
        for found in pair["metrics"].values():
            assert {"value_a", "value_b", "difference", "p_verdict", "verdict", "by_seed"} <= set(found)
            assert {"value", "low", "high", "n"} <= set(found["difference"])
            assert isinstance(found["by_seed"], dict)


def is_outdated(record: Record, compare: CompareData) -> bool:
    """Whether other cells are done now than were measured; one whose checkpoint was gone could not be."""
    measured = {
        (row["label"], seed) for row in record["rows"] if row["kind"] == "method" for seed in row["seeds"]
    }
    done = {(cell.label, cell.seed) for cell in compare.cells if cell.status == "done"}
    left_out = record.get("left_out") or ()
    gone = {cell for cell in done if f"{cell[0]}, seed {cell[1]}: {GONE}" in left_out}
    return measured != done - gone


def table_rows(record: Record, *, methods: bool) -> list[dict[str, Any]]:
    """The rows of methods, or of starts and experts, in the shape of `tables.compare_rows`."""
    return [
        {
            "method": row["label"],
            "seeds": len(row["seeds"]),
            "failed": 0,
            "budget": {},
            "metrics": row["metrics"],
        }
        for row in record["rows"]
        if (row["kind"] == "method") == methods
    ]


def main_metrics(record: Record) -> list[str]:
    """What is drawn and compared on a page: the accuracies on every evaluation set; without a grader the losses there."""
    names = in_order(name for row in record["rows"] for name in row["metrics"])
    for wanted in (("accuracy_greedy", "accuracy_sampled"), ("validation_loss_nats",)):
        if found := [name for name in names if name.rpartition("/")[2] in wanted]:
            return found
    return names


def drawn_metrics(record: Record) -> dict[str, list[str]]:
    """Metric without its set -> its names, the own task's first; with the largest k of pass@k and majority@k."""
    names = in_order(name for row in record["rows"] for name in row["metrics"])
    at_k = {own.partition("@")[0]: own for own in of_samples(name.rpartition("/")[2] for name in names)}
    wanted = [name.rpartition("/")[2] for name in main_metrics(record)]
    wanted += [own for what, own in at_k.items() if what != "avg"]
    return {own: [name for name in names if name.rpartition("/")[2] == own] for own in dict.fromkeys(wanted)}


def difference_rows(record: Record, b: str) -> list[tuple[str, ...]]:
    """`DIFFERENCE_HEADERS` for the main metrics of every label against `b`, in words."""
    wanted = main_metrics(record)
    rows = []
    for pair in record["paired"]:
        for name in wanted if pair["b"] == b else []:
            if (found := pair["metrics"].get(name)) is None:
                continue
            low, high = found["difference"]["low"], found["difference"]["high"]
            interval = "-" if low is None or high is None else f"{low:+.3f} to {high:+.3f}"
            seeds = " ".join(f"{value:+.3f}" for value in found["by_seed"].values())
            values = (format_value(name, found["value_a"]), format_value(name, found["value_b"]))
            rows.append(
                (
                    pair["a"],
                    titled(name),
                    *values,
                    f"{found['difference']['value']:+.3f}",
                    interval,
                    str(found["difference"]["n"]),
                    f"{found['p_verdict']:.3g}",
                    found["verdict"],
                    seeds,
                )
            )
    return rows


DIFFERENCE_HEADERS = (
    "A",
    "metric",
    "A's",
    "B's",
    "A - B",
    "95 % over prompts",
    "prompts",
    "p",
    "A is",
    "A - B by seed",
)


def compared_with(record: Record) -> list[str]:
    """The labels B that others are compared with, in order."""
    return list(dict.fromkeys(pair["b"] for pair in record["paired"]))


def render_held_out(record: Record, console: Console) -> None:
    """Print the table of all labels, starts and experts below the methods."""
    rows, below = table_rows(record, methods=True), table_rows(record, methods=False)
    render_compare(rows, console, below=below, has_budget=False)


def held_out_section(record: Record, figures: Path, outdated: bool = False) -> str:
    """The page's section: figures, the table of all labels, and the differences by prompt; with a warning if outdated."""
    split = record["split"]
    parts = [f"<h2>On {escape(split)} prompts</h2>"]
    if outdated:
        parts.append(
            '<p class="warn">Other cells are finished now than were measured here. Evaluate the comparison again.</p>'
        )
    for own, names in drawn_metrics(record).items():
        words = f"{titled(own)} on {split} prompts"
        path = figures / f"{split}_{as_file_name(own)}.png"
        parts.append(embedded(held_out_figure(record, names), path, words))
    parts.append(_values_table(record))
    for b in compared_with(record):
        rows = difference_rows(record, b)
        if rows:
            parts.append(
                f"<h3>Against {escape(b)}, on the same prompts</h3>{_table(DIFFERENCE_HEADERS, rows)}"
            )
    if left_out := record.get("left_out"):
        parts.append(f'<p class="soft">Left out: {escape("; ".join(left_out))}.</p>')
    return "".join(parts)


def _values_table(record: Record) -> str:
    names = in_order(name for row in record["rows"] for name in row["metrics"])
    lines = []
    for methods in (True, False):
        for index, row in enumerate(table_rows(record, methods=methods)):
            cells = [escape(row["method"]), str(row["seeds"])]
            cells += [value_cell(row["metrics"].get(name), name) for name in names]
            start = '<tr class="divided">' if not methods and index == 0 else "<tr>"
            lines.append(start + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{escape(text)}</th>" for text in ("label", "seeds", *map(titled, names)))
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in headers)
    lines = ("".join(f"<td>{escape(text)}</td>" for text in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def held_out_figure(record: Record, names: Sequence[str]) -> Figure:
    """One metric, a panel for each evaluation set: a dot and its interval for every method, lines for starts and experts.

    Args:
        names: the metric on each set, such as `accuracy_greedy` and `ood/accuracy_greedy`.
    """
    methods = [row for row in record["rows"] if row["kind"] == "method"]
    others = [row for row in record["rows"] if row["kind"] != "method"]
    num_columns = min(MAX_COLUMNS, len(names))
    num_rows = math.ceil(len(names) / num_columns)
    figure = new_figure(1.9 + 2.6 * num_columns, 1.25 + num_rows * (0.75 + 0.27 * len(methods)))
    figure.set_layout_engine("constrained")
    panels = list(figure.subplots(num_rows, num_columns, sharey=True, squeeze=False).flat)
    own = names[0].rpartition("/")[2]
    figure.suptitle(
        f"{titled(own)} on {record['split']} prompts",
        fontsize=11.5,
        fontweight="bold",
        color=INK,
        x=0.01,
        ha="left",
    )
    lines: dict[str, tuple[str, Dashes]] = {
        row["label"]: (FAINT, "-") if row["kind"] == "start" else (STAGE_COLOR, dashes)
        for row, dashes in zip(others, _dashes(others), strict=True)
    }
    for panel, name in zip(panels, names, strict=False):
        _draw_panel(panel, name, methods, others, lines)
    for panel in panels[len(names) :]:
        panel.axis("off")
    handles = [
        Line2D([], [], color=color, linestyle=dashes, linewidth=1.4, label=_short(label))  # pyright: ignore[reportArgumentType]
        for label, (color, dashes) in lines.items()
    ]
    if handles:
        figure.legend(
            handles=handles,
            loc="outside lower left",
            ncols=min(4, len(handles)),
            fontsize=9,
            frameon=False,
            handlelength=2.6,
        )
    return figure


def _short(label: str) -> str:
    """A name that leaves room for what it names; the tables have it whole."""
    return label if len(label) <= MAX_LETTERS else f"{label[: MAX_LETTERS - 3]}..."


def _dashes(others: Sequence[Mapping[str, Any]]) -> list[Dashes]:
    experts = [row["label"] for row in others if row["kind"] == "expert"]
    return [
        STAGE_DASHES[experts.index(row["label"]) % len(STAGE_DASHES)] if row["label"] in experts else "-"
        for row in others
    ]


def _draw_panel(
    axes: Axes,
    name: str,
    methods: Sequence[Mapping[str, Any]],
    others: Sequence[Mapping[str, Any]],
    lines: Mapping[str, tuple[str, Dashes]],
) -> None:
    for row in others:
        if (entry := row["metrics"].get(name)) is not None:
            color, dashes = lines[row["label"]]
            axes.axvline(entry["mean"], color=color, linestyle=dashes, linewidth=1.4, zorder=1)
    for place, row in enumerate(methods):
        entry = row["metrics"].get(name)
        if entry is None:
            continue
        color, _ = method_style(row["label"], place)
        if entry["low"] is not None and entry["high"] is not None:
            axes.plot([entry["low"], entry["high"]], [place, place], color=color, linewidth=1.8, zorder=2)
        axes.plot(entry["mean"], place, "o", color=color, markersize=7, zorder=3)
        seeds = list(entry["by_seed"].values())
        axes.plot(
            seeds, [place] * len(seeds), "o", color="white", markeredgecolor=color, markersize=3.2, zorder=4
        )
    tidy(axes)
    axes.set_title(name.rpartition("/")[0] or OWN_TASK, fontsize=10, color=INK, loc="left", fontweight="bold")
    axes.grid(visible=False)
    axes.grid(axis="x", color=SHADE, linewidth=0.8)
    axes.set_yticks(range(len(methods)), [_short(row["label"]) for row in methods])
    axes.set_ylim(len(methods) - 0.5, -0.5)
    _set_limits(axes, name)


def _set_limits(axes: Axes, name: str) -> None:
    """What is drawn with some room; never so near that a difference of a hundredth fills a panel, nor beyond a rate's range."""
    low, high = axes.get_xlim()
    known = metric_named(name)
    if known is not None and known.is_rate:
        middle, half = (low + high) / 2, max(high - low, 0.1) / 2
        low, high = max(middle - half, -0.02), min(middle + half, 1.02)
    axes.set_xlim(low, high)
