"""Figures and pages of the theory lab, from the records it wrote; nothing is computed here.

A record is one experiment's `theory.json`: what it asked, its rows, its panels.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from understudy.errors import DataError
from understudy.reports.drawing import FAINT, INK, SHADE, new_figure, readable_on, tidy

RECORD = "theory.json"
FIGURE = "figure.png"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#4D4D4D", "#E69F00", "#56B4E9", "#7A3E9D", "#B8A200")
DASHES = {"measured": "-", "predicted": "--", "bound": ":"}
ROUNDING = 1e-6
"""A tolerance below this share of the bound is rounding, and not shown."""
HEADERS = ("claim", "bound", "measured", "holds?")


def load_theory(folder: str | Path) -> list[dict[str, Any]]:
    """The records of a folder: its own, or those of the folders in it, in the order they were asked for.

    Raises:
        DataError: there is none, or one cannot be read.
    """
    folder = Path(folder)
    files = _files(folder)
    if not files:
        raise DataError(f"expected {RECORD} in {folder} or in the folders in it, found none.")
    records = []
    for file in files:
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            records.append({key: record[key] for key in ("order", "name", "rows", "panels")} | record)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{file} is not a record that `understudy theory` wrote ({type(error).__name__}: {error}). "
                "Run the experiment again."
            ) from None
    return sorted(records, key=lambda record: record["order"])


def holds_theory(folder: Path) -> bool:
    """Whether a folder, or a folder in it, has a record of the lab."""
    return bool(_files(folder))


def _files(folder: Path) -> list[Path]:
    return [folder / RECORD] if (folder / RECORD).is_file() else sorted(folder.glob(f"*/{RECORD}"))


# --- the table --------------------------------------------------------------------------------------------------------


def row_cells(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Claim, bound, measured (with its interval) and verdict of one row, in words."""
    measured = show(row["measured"])
    if row["low"] is not None or row["high"] is not None:
        measured += f" ({show(row['low'])} to {show(row['high'])})"
    bound = f"{row['relation']} {show(row['bound'])}"
    if row["tolerance"] > ROUNDING * max(1.0, abs(row["bound"] or 0.0)):
        bound += f" +- {show(row['tolerance'])}"
    return row["claim"], bound, measured, verdict(row)


def verdict(row: Mapping[str, Any]) -> str:
    """The claim's verdict; a claim that is known to be wrong as printed is marked."""
    if not row["is_refuted"]:
        return row["holds"]
    return "no, as shown" if row["holds"] == "no" else f"{row['holds']} (expected: no)"


def show(value: float | None) -> str:
    """Four significant digits; powers of ten where a plain number would be long."""
    if value is None:
        return "-"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"


# --- the figure -------------------------------------------------------------------------------------------------------


def theory_figure(record: Mapping[str, Any]) -> Figure:
    """All panels of one experiment: two a row from four panels on, else side by side."""
    panels = record["panels"]
    columns = len(panels) if len(panels) < 4 else 2
    rows = -(-len(panels) // columns)
    most_lines = max(-(-len(_named(panel)) // _legend_columns(panel)) for panel in panels)
    figure = new_figure(5.6 * columns, (4.2 + 0.17 * most_lines) * rows)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    for number, panel in enumerate(panels):
        _draw(figure.add_subplot(rows, columns, number + 1), panel)
    return figure


def _named(panel: Mapping[str, Any]) -> list[str]:
    """What the legend names."""
    marks = (*panel["areas"], *panel["clouds"], *panel["lines"])
    return [mark["label"] for mark in marks if mark["label"]]


def _legend_columns(panel: Mapping[str, Any]) -> int:
    return 2 if max(map(len, _named(panel)), default=0) <= 32 else 1


def _draw(axes: Axes, panel: Mapping[str, Any]) -> None:
    tidy(axes, x_label=panel["x_label"], y_label=panel["y_label"])
    title = textwrap.fill(panel["title"], 46)
    axes.set_title(title, fontsize=10.5, color=INK, loc="left", fontweight="bold", pad=10)
    if panel["heat"]:
        _draw_heat(axes, panel["heat"])
        return
    axes.set_xscale(panel["x_scale"])
    axes.set_yscale(panel["y_scale"])
    colors = _colors(panel)
    for area in panel["areas"]:
        axes.fill(area["x"], area["y"], color=SHADE, zorder=0, label=area["label"] or None)
    for cloud in panel["clouds"]:
        color = colors[cloud["group"] or cloud["label"]]
        few = len(cloud["x"]) <= 40
        axes.scatter(
            cloud["x"], cloud["y"], s=30 if few else 6, color=color, linewidths=0, alpha=1 if few else 0.35,
            label=cloud["label"] or None, zorder=3 if few else 2,
        )  # fmt: skip
    for line in panel["lines"]:
        _draw_line(axes, line, colors[line["group"] or line["label"]])
    if panel["has_equal_axes"]:
        axes.set_aspect("equal")
    if panel["x_limits"]:
        axes.set_xlim(*panel["x_limits"])
    if panel["y_limits"]:
        axes.set_ylim(*panel["y_limits"])
    _tick(axes.xaxis, panel["x_scale"], axes.get_xlim())
    _tick(axes.yaxis, panel["y_scale"], axes.get_ylim())
    if _named(panel):
        # Below the axes: inside them it would cover lines that nobody can foresee.
        axes.legend(
            fontsize=7.5, frameon=False, labelcolor=INK, handlelength=2.4, ncols=_legend_columns(panel), columnspacing=1.2,
            loc="upper left", bbox_to_anchor=(-0.02, -0.16),
        )  # fmt: skip


def _tick(axis: Axis, scale: str, limits: tuple[float, float]) -> None:
    """A logarithmic axis of less than two decades gets ticks at 1, 2, 5, in plain numbers; labels would else collide."""
    if scale != "log":
        return
    axis.set_minor_formatter(NullFormatter())
    if min(limits) > 0 and max(limits) / min(limits) < 100:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_line(axes: Axes, line: Mapping[str, Any], color: str) -> None:
    x, y = _numbers(line["x"]), _numbers(line["y"])
    is_measured = line["role"] == "measured"
    axes.plot(
        x, y, DASHES[line["role"]], color=color, linewidth=1.6 if is_measured else 1.3,
        marker="o" if is_measured and len(x) <= 40 else None, markersize=3.5, label=line["label"] or None, zorder=3,
    )  # fmt: skip
    if line["low"] is not None and line["high"] is not None:
        axes.fill_between(
            x, _numbers(line["low"]), _numbers(line["high"]), color=color, alpha=0.15, linewidth=0
        )


def _draw_heat(axes: Axes, heat: Mapping[str, Any]) -> None:
    values = [_numbers(row) for row in heat["values"]]
    known = [value for row in values for value in row if math.isfinite(value)]
    shade, scale = colormaps["viridis"], Normalize(min(known), max(known))
    image = axes.imshow(values, cmap=shade, norm=scale, aspect="auto")
    axes.set_xticks(range(len(heat["columns"])), [textwrap.fill(text, 12) for text in heat["columns"]])
    axes.set_yticks(range(len(heat["rows"])), [textwrap.fill(text, 24) for text in heat["rows"]])
    axes.grid(visible=False)
    small = 7 if len(heat["columns"]) > 8 else 8
    for r, row in enumerate(values):
        for c, value in enumerate(row):
            if math.isfinite(value):
                ink = readable_on(shade(float(scale(value))))
                axes.text(c, r, f"{value:.2g}", ha="center", va="center", fontsize=small, color=ink)
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.05, pad=0.03)
    bar.set_label(heat["label"], fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, color=FAINT)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]


def _colors(panel: Mapping[str, Any]) -> dict[str, str]:
    """One colour a group, in the order in which groups appear."""
    names = [mark["group"] or mark["label"] for mark in (*panel["lines"], *panel["clouds"])]
    return {name: COLORS[i % len(COLORS)] for i, name in enumerate(dict.fromkeys(names))}


def _numbers(values: Sequence[float | None]) -> list[float]:
    """JSON has no NaN: a missing number leaves a gap."""
    return [math.nan if value is None else float(value) for value in values]
