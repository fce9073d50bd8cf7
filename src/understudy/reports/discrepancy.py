"""Figure, table and page of `discrepancy.json`; nothing is computed here."""

from __future__ import annotations

import json
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from understudy.errors import DataError
from understudy.reports.drawing import FAINT, INK, SHADE, new_figure, tidy
from understudy.reports.html import document, embedded, replace

RECORD, FIGURE = "discrepancy.json", "figure.png"
COLOR_A, COLOR_B, COLOR_GAP, COLOR_GRADE = "#0072B2", "#D55E00", "#4D4D4D", "#009E73"
KEYS = ("name_a", "name_b", "gaps", "by_prompt", "ngrams", "bins", "prompts", "performance", "reading")
NUM_PROMPTS_SHOWN = 12

STYLE = """
td:nth-child(1) { text-align: left; }
td.soft { color: var(--soft); }
"""
GUIDE = (
    "Every row is a lower bound on the total variation between the two laws of responses: no event can have a larger gap than "
    "that. 'Gap' is what was counted. 'By chance' is the mean gap if the labels of the two sets are dealt at random, and p the "
    "share of such deals with a gap at least as large. Rows marked 'held out' were chosen on one half of the prompts and "
    "measured on the other, so chance gives 0. Intervals are 95 %, by "
    "resampling prompts, a row at a time."
)


def write_discrepancy_report(folder: str | Path) -> Path:
    """Write `report.html` and `figure.png` beside the record; returns the page.

    Raises:
        DataError: there is no record, or it cannot be read.
    """
    folder = Path(folder)
    record = load_discrepancy(folder)
    title = f"Discrepancy: {shown(record['name_a'])} and {shown(record['name_b'])}"
    with warnings.catch_warnings():
        # Words in a script that the font lacks are drawn as boxes, which is no reason to complain.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        image = embedded(discrepancy_figure(record), folder / FIGURE, title)
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(sizes(record))}</p>",
        *(f"<p>{escape(shown(sentence))}</p>" for sentence in [*record["reading"], *record["notes"]]),
        image,
        f'<p class="guide">How to read this. {escape(GUIDE)}</p>',
        _table("Lower bounds", headers(record), [gap_cells(row) for row in record["gaps"]]),
        _table(
            "Prompt by prompt, averaged", headers(record), [gap_cells(row) for row in record["by_prompt"]]
        ),
        _table(
            "N-grams, chosen on one half and measured on the other",
            headers(record),
            [gap_cells(row) for row in record["ngrams"]],
        ),
        _prompts(record),
        _facts(record),
    ]
    page = folder / "report.html"
    replace(page, document(title, body, style=STYLE).encode("utf-8"))
    return page


def load_discrepancy(folder: Path) -> dict[str, Any]:
    """The record of a folder.

    Raises:
        DataError: there is none, or it is not one that `understudy discrepancy` wrote.
    """
    file = folder / RECORD
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return {key: record[key] for key in KEYS} | record
    except OSError:
        raise DataError(f"expected {RECORD} in {folder}, found none.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} is not a record that `understudy discrepancy` wrote ({type(error).__name__}: {error}). Compare again."
        ) from None


# --- the table --------------------------------------------------------------------------------------------------------


def headers(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the columns of `gap_cells`."""
    return (
        "what differs", "how", shown(record["name_a"]), shown(record["name_b"]), "gap", "by chance", "p", "at least",
    )  # fmt: skip


def gap_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One row in words: the event, how it was found, shares, gap, chance and the bound with its interval."""
    p_value = row["p_value"]
    return (
        shown(row["name"]), row["kind"], _percent(row["share_a"]), _percent(row["share_b"]), _percent(row["gap"]),
        _percent(row["chance"]), "-" if p_value is None else f"{p_value:.3f}", with_interval(row["bound"]),
    )  # fmt: skip


def sizes(record: Mapping[str, Any]) -> str:
    """How much stands behind the numbers."""
    (num_a, num_b), (prompts_a, prompts_b) = record["num_responses"], record["num_prompts"]
    a, b = shown(record["name_a"]), shown(record["name_b"])
    to = (
        f"the same {prompts_a:,} prompts"
        if record["is_paired"]
        else f"{prompts_a:,} and {prompts_b:,} prompts"
    )
    names = dict.fromkeys(of["grade"] for of in record["fields"] if record["performance"] and of["grade"])
    graded = f"; grades from {' and '.join(names)}" if names else ""
    return f"{num_a:,} responses of {a}, {num_b:,} of {b}, to {to}; lengths in {record['unit']}{graded}."


def with_interval(estimate: Mapping[str, Any]) -> str:
    """'8.1 % (4.0 to 12.2)'."""
    if estimate["low"] is None or estimate["high"] is None:
        return f"{_percent(estimate['value'])} (no interval)"
    return f"{_percent(estimate['value'])} ({100 * estimate['low']:.1f} to {100 * estimate['high']:.1f})"


def shown(text: str) -> str:
    """Text from a file, safe to show: what does not print is a box (a terminal would obey it)."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in text)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


# --- the figure -------------------------------------------------------------------------------------------------------


def discrepancy_figure(record: Mapping[str, Any]) -> Figure:
    """Lengths of both sets, the gaps with their bounds, and, for paired sets, the lengths prompt by prompt."""
    num_panels = 3 if record["prompts"] else 2
    figure = new_figure(5.4 * num_panels, max(4.4, 0.42 * len(record["gaps"]) + 1.8))
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    _draw_lengths(figure.add_subplot(1, num_panels, 1), record)
    _draw_gaps(figure.add_subplot(1, num_panels, 2), record)
    if record["prompts"]:
        _draw_prompts(figure.add_subplot(1, num_panels, 3), record)
    return figure


def _draw_lengths(axes: Axes, record: Mapping[str, Any]) -> None:
    size, bins = record["bin_size"], record["bins"]
    edges = [start for start, *_ in bins] + [bins[-1][0] + size]
    for place, name, color in ((1, "name_a", COLOR_A), (2, "name_b", COLOR_B)):
        values = [100 * row[place] for row in bins]
        axes.stairs(values, edges, color=color, linewidth=1.8, label=_plain(record[name], 30))
        axes.stairs(values, edges, color=color, alpha=0.12, fill=True)
    tidy(
        axes, x_label=f"length ({record['unit']}, bins of {size})", y_label="% of responses", title="Lengths"
    )
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False, labelcolor=INK)


def _draw_gaps(axes: Axes, record: Mapping[str, Any]) -> None:
    rows = record["gaps"]
    for y, row in enumerate(rows):
        axes.barh(y, 100 * max(row["gap"], 0), height=0.62, color=SHADE, zorder=1)
        if row["chance"] is not None:
            axes.plot([100 * row["chance"]] * 2, [y - 0.31, y + 0.31], color=FAINT, linewidth=2, zorder=2)
        bound = row["bound"]
        if bound["low"] is not None:
            axes.plot(
                [100 * bound["low"], 100 * bound["high"]], [y, y], color=COLOR_GAP, linewidth=1.6, zorder=3
            )
        axes.plot(100 * bound["value"], y, "o", color=COLOR_GAP, markersize=5, zorder=4)
    performance = record["performance"]
    if performance is not None and performance["is_rate"]:
        size = 100 * abs(performance["difference"]["value"])
        axes.axvline(size, color=COLOR_GRADE, linewidth=1.6, linestyle="--", zorder=2)
        axes.annotate(
            f"performance gap {size:.1f} %", (size, 1.005), xycoords=("data", "axes fraction"), fontsize=8,
            color=COLOR_GRADE, ha="center", va="bottom",
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [textwrap.fill(_plain(row["name"], 64), 32) for row in rows])
    axes.invert_yaxis()
    tidy(axes, x_label="% (bar: counted; tick: by chance; dot: bound, 95 %)")
    axes.set_title(
        "Lower bounds on total variation", fontsize=11.5, color=INK, loc="left", fontweight="bold", pad=20
    )
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=SHADE, linewidth=0.8)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlim(left=0)


def _draw_prompts(axes: Axes, record: Mapping[str, Any]) -> None:
    x, y = ([prompt[key] for prompt in record["prompts"]] for key in ("length_a", "length_b"))
    most = max(*x, *y, 1) * 1.05
    axes.plot([0, most], [0, most], color=FAINT, linewidth=1, linestyle=":")
    axes.scatter(x, y, s=12, color=COLOR_GAP, alpha=0.4, linewidths=0, zorder=3)
    tidy(
        axes,
        x_label=f"{_plain(record['name_a'], 30)} ({record['unit']})",
        y_label=f"{_plain(record['name_b'], 30)} ({record['unit']})",
        title="Mean length, prompt by prompt",
    )
    axes.set_xlim(0, most)
    axes.set_ylim(0, most)
    axes.set_aspect("equal")


def _plain(text: str, most: int) -> str:
    """Short, printable, and no formula: a dollar sign would start one."""
    text = shown(text)
    text = text if len(text) <= most else text[: most - 3] + "..."
    return text.replace("$", r"\$")


# --- the page ---------------------------------------------------------------------------------------------------------


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<h2>{escape(title)}</h2><div class="scroll"><table><tr>{head}</tr>{lines}</table></div>'


def _prompts(record: Mapping[str, Any]) -> str:
    """The prompts that differ most: by grade, then by length."""

    def size(prompt: Mapping[str, Any]) -> tuple[float, float]:
        grade = abs((prompt["grade_a"] or 0.0) - (prompt["grade_b"] or 0.0))
        return -grade, -abs(prompt["length_a"] - prompt["length_b"])

    def row(prompt: Mapping[str, Any]) -> list[str]:
        grades = ["-" if prompt[key] is None else f"{prompt[key]:.3g}" for key in ("grade_a", "grade_b")]
        lengths = [f"{prompt[key]:.1f}" for key in ("length_a", "length_b")]
        return [shown(prompt["prompt"]), f"{prompt['num_a']}, {prompt['num_b']}", *grades, *lengths]

    a, b = shown(record["name_a"]), shown(record["name_b"])
    heads = ("prompt", "responses", f"grade, {a}", f"grade, {b}", f"length, {a}", f"length, {b}")
    most = sorted(record["prompts"], key=size)[:NUM_PROMPTS_SHOWN]
    return _table("The prompts that differ most", heads, [row(prompt) for prompt in most])


def _facts(record: Mapping[str, Any]) -> str:
    facts = {name: record.get(name) for name in ("files", "fields", "tokenizer", "settings", "versions")}
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(shown(json.dumps(value)))}</td></tr>"
        for name, value in facts.items()
    )
    return f'<h2>What was compared</h2><div class="scroll"><table class="facts">{rows}</table></div>'
