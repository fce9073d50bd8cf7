"""Tables, figures and page of `forks.json` and `correction.json`; nothing is computed here."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from understudy.errors import DataError
from understudy.reports.drawing import FAINT, INK, new_figure, tidy
from understudy.reports.html import document, embedded, replace

PROBE, CORRECTION, PAGE = "forks.json", "correction.json", "forks.html"
COLORS = {"high": "#D55E00", "random": "#8A8A8A", "low": "#0072B2"}
ARM_COLORS = {
    "before": "#8A8A8A",
    "opd": "#E69F00",
    "near-future": "#0072B2",
    "window-only": "#56B4E9",
    "sft": "#4D4D4D",
    "opd-expert-window": "#8F3F00",
}
PAPER = "arXiv:2606.00305"
PAPER_SHARE = 0.29
PAPER_MEDIANS = {"high": 0.566, "random": 0.361, "low": 0.315}
PAPER_CORRECTED = {"before": 0.538, "opd": 0.350, "near-future": 0.204}
_KEYS: dict[str, tuple[str, ...]] = {
    PROBE: ("name", "groups", "probe", "low_upper", "seconds", "shown", "tokens", "settings"),
    CORRECTION: ("name", "rates", "arms", "seeds", "seconds_per_prefix", "examples", "correcting"),
}

CELL = 11
"""Pixels of a cell of a transport plan."""
STYLE = f"""
td.text, th.text {{ text-align: left; }}
.fork {{ border-top: 2px solid var(--line); margin-top: 1.4rem; padding-top: .6rem; }}
.pair {{ display: grid; grid-template-columns: 1fr 1fr; gap: .6rem; }}
.pair > div {{ min-width: 0; }}
.pair pre {{ margin: 0; }}
.bad {{ color: var(--bad); font-weight: 600; }}
.tok {{ border-bottom: 1px solid var(--line); }}
svg text {{ font: {CELL - 3}px ui-monospace, monospace; fill: var(--ink); }}
svg .frame {{ fill: var(--card); stroke: var(--line); }}
svg .cell {{ stroke: none; }}
"""
GUIDE = (
    "A window is what a model says from before a token. The distance is the cost of the cheapest way to carry one window's "
    "tokens onto the other's: 0 where they say the same words in any order, up to 2. A high-loss token is a false alarm if its "
    "windows are nearer than the upper quartile of the low-loss tokens'. Intervals are 95 %, by resampling prompts."
)
PLAN_GUIDE = (
    "Rows of a plan are the student's tokens, columns the expert's. The fuller a cell, the more of its mass is there; blue where "
    "the two are close in the embedding, orange where they are far."
)
CORRECTION_GUIDE = (
    "For every prefix the expert's window is written once. Every arm begins with the student's own weights, takes its steps on "
    "this one prefix, and the student then writes its window anew. Means are over prefixes, intervals (95 %) take the prompt as "
    "the unit. No learning rate is chosen: every one that was asked for has its table."
)


def write_forks_report(folder: str | Path) -> Path:
    """Write `forks.html` and the figures beside the records; returns the page.

    Raises:
        DataError: there is no record, or it cannot be read.
    """
    folder = Path(folder)
    records = {name: load_forks(folder, name) for name in (PROBE, CORRECTION) if (folder / name).is_file()}
    if not records:
        raise DataError(f"expected {PROBE} or {CORRECTION} in {folder}, found neither.")
    title = f"Forks: {shown(next(iter(records.values()))['name'])}"
    figures = folder / "figures"
    body = [f"<h1>{escape(title)}</h1>"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        if PROBE in records:
            body += _probe_section(records[PROBE], figures)
        if CORRECTION in records:
            body += _correction_section(records[CORRECTION], figures)
    body += [_facts(record) for record in records.values()]
    page = folder / PAGE
    replace(page, document(title, body, style=STYLE).encode("utf-8"))
    return page


def load_forks(folder: Path, name: str) -> dict[str, Any]:
    """A record of a folder.

    Raises:
        DataError: it is not one that `understudy forks` wrote.
    """
    file = folder / name
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return {key: record[key] for key in _KEYS[name]} | record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} is not a record that `understudy forks` wrote ({type(error).__name__}: {error}). Delete it, and probe again."
        ) from None


# --- words and tables -------------------------------------------------------------------------------------------------

GROUP_HEADERS = ("tokens", "n", "loss, nats", "distance", "median", "paper", "same windows")


def group_cells(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row a group: how many, quartiles of losses and distances, the median with its interval, identical windows."""
    medians = {row["group"]: row["median"] for row in record["probe"]["quartiles"]}
    return [
        (
            group["group"],
            f"{group['num_tokens']:,}",
            _quartiles(group["losses"]),
            _quartiles(group["distances"]),
            with_interval(medians[group["group"]]),
            f"{PAPER_MEDIANS[group['group']]:.3f}",
            _percent(group["identical_share"]),
        )
        for group in record["groups"]
    ]


def probe_reading(record: Mapping[str, Any]) -> list[str]:
    """What the probe says, in sentences."""
    probe = record["probe"]
    gap = {
        "higher": "farther apart after high-loss tokens than after low-loss ones",
        "lower": "nearer after high-loss tokens than after low-loss ones",
        "cannot tell": "not measurably farther apart after high-loss tokens than after low-loss ones",
    }[probe["verdict"]]
    return [
        f"False alarms: {with_interval(probe['false_alarm_share'], percent=True)} of the high-loss tokens have windows nearer "
        f"than {_number(record['low_upper'])}, the upper quartile of low-loss ones (paper: {100 * PAPER_SHARE:.0f} %).",
        f"Futures are {gap}: medians differ by {with_interval(probe['median_gap'])}.",
        f"Loss and distance correlate by {with_interval(probe['pearson'])} (Pearson) and "
        f"{with_interval(probe['spearman'])} (ranks) over all probed tokens, by {with_interval(probe['pearson_random'])} and "
        f"{with_interval(probe['spearman_random'])} over the random ones (paper: 0.126 and 0.143).",
    ]


def probe_sizes(record: Mapping[str, Any]) -> str:
    """How much stands behind the numbers."""
    settings = record["settings"]
    looking = settings["looking"]
    how = "greedily" if looking["temperature"] == 0 else f"at temperature {looking['temperature']:g}"
    student, expert = shown(str(record["student"] or "a new student")), shown(str(record["expert"]))
    return (
        f"{record['num_responses']:,} responses of {student} to {record['num_prompts']:,} {settings['split']} prompts, "
        f"{record['num_tokens']:,} tokens; expert {expert}. Windows of {looking['window_tokens']} tokens, {how}; words compared "
        f"by the embedding `{looking['embedding']}`."
    )


def probe_seconds(record: Mapping[str, Any]) -> str:
    """Where the time went."""
    return "Seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in record["seconds"].items()) + "."


CORRECTION_HEADERS = ("arm", "distance", "quartiles", "change", "against opd", "over seeds", "paper")


def correction_cells(table: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row for the student as it was, one for each way of correcting it."""
    rows: list[tuple[str, ...]] = [
        (
            "before",
            with_interval(table["before"]),
            _three(table["quartiles"]),
            "-",
            "-",
            "-",
            _paper("before"),
        )
    ]
    for arm in table["arms"]:
        rows.append(
            (
                arm["arm"],
                with_interval(arm["after"]),
                _three(arm["quartiles"]),
                with_interval(arm["change"]),
                "-" if arm["arm"] == "opd" else with_interval(arm["against_opd"]),
                with_interval(arm["over_seeds"]),
                _paper(arm["arm"]),
            )
        )
    return rows


def correction_reading(record: Mapping[str, Any]) -> list[str]:
    """For each rate, whether the order of the paper holds: before > opd > near-future."""
    return [f"Rate {table['rate']:g}: {_order(table)}" for table in record["rates"]]


def correction_sizes(record: Mapping[str, Any]) -> str:
    """How much stands behind the numbers, and what it cost."""
    first, seeds = record["rates"][0], record["seeds"]
    seconds = record["seconds_per_prefix"]
    cost = ", ".join(f"{name} {value:.2f}" for name, value in seconds.items())
    told = "seed" if len(seeds) == 1 else "seeds"
    return (
        f"{first['num_prefixes']:,} prefixes from before high-loss tokens, of {first['num_prompts']:,} prompts, {told} "
        f"{', '.join(map(str, seeds))}; {record['correcting']['steps']} steps each. Seconds a prefix: {cost}."
    )


def _order(table: Mapping[str, Any]) -> str:
    arms = {arm["arm"]: arm for arm in table["arms"]}
    opd, near_future = arms["opd"], arms["near-future"]
    found = (
        ("opd below before", opd["verdict"], opd["change"]),
        ("near-future below opd", near_future["verdict_against_opd"], near_future["against_opd"]),
    )
    said = {"lower": "yes", "higher": "no, above", "cannot tell": "cannot tell"}
    return "; ".join(f"{what}: {said[verdict]} ({with_interval(by)})" for what, verdict, by in found) + "."


def with_interval(estimate: Mapping[str, Any], *, percent: bool = False) -> str:
    """'0.412 (0.390 to 0.433)', or in percent."""
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    show = _percent if percent else _number
    if low is None or high is None:
        return f"{show(value)} (no interval)"
    if percent:
        return f"{_percent(value)} ({100 * low:.1f} to {100 * high:.1f})"
    return f"{_number(value)} ({low:.3f} to {high:.3f})"


def shown(text: str) -> str:
    """Text of a model or a file, safe to show: line ends are marked, what does not print is a box."""
    marked = text.replace("\n", "\u23ce")
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in marked)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _quartiles(of: Mapping[str, float]) -> str:
    return _three([of["lower"], of["median"], of["upper"]])


def _three(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.3f}" for value in values)


def _paper(name: str) -> str:
    return f"{PAPER_CORRECTED[name]:.3f}" if name in PAPER_CORRECTED else "-"


# --- figures ----------------------------------------------------------------------------------------------------------


def distances_figure(record: Mapping[str, Any]) -> Figure:
    """Distances of the three groups: every token, its quartiles, and the limit of false alarms."""
    figure = new_figure(6.4, 4.4)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    groups = [group["group"] for group in record["groups"]]
    values = [[t["distance"] for t in record["tokens"] if t["group"] == group] for group in groups]
    _boxes(axes, values, groups, [COLORS[group] for group in groups])
    axes.axhline(record["low_upper"], color=INK, linewidth=1, linestyle="--")
    axes.annotate(
        "below: false alarms", (0.005, record["low_upper"]), xycoords=("axes fraction", "data"), fontsize=8, color=INK,
        ha="left", va="bottom",
    )  # fmt: skip
    axes.set_ylim(bottom=0)
    tidy(axes, y_label="transport distance", title="How far apart the next tokens are")
    return figure


def losses_figure(record: Mapping[str, Any]) -> Figure:
    """Loss against distance, token by token."""
    figure = new_figure(6.4, 4.4)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    for group in ("random", "low", "high"):
        rows = [t for t in record["tokens"] if t["group"] == group]
        x, y = [max(t["loss_nats"], 1e-6) for t in rows], [t["distance"] for t in rows]
        axes.scatter(x, y, s=12, color=COLORS[group], alpha=0.5, linewidths=0, label=group)
    axes.set_xscale("log")
    tidy(axes, x_label="loss (nats, at least 1e-6)", y_label="transport distance", title="Loss and distance")
    axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    return figure


def correction_figure(record: Mapping[str, Any]) -> Figure:
    """Distances before and after every arm, a panel for each rate."""
    tables = record["rates"]
    figure = new_figure(6.4 * len(tables), 4.4)
    figure.set_layout_engine("constrained")
    top = None
    for number, table in enumerate(tables, start=1):
        axes = figure.add_subplot(1, len(tables), number, sharey=top)
        top = top or axes
        names = list(table["distances"])
        _boxes(
            axes,
            [table["distances"][name] for name in names],
            [
                name.replace("opd-expert-window", "opd,\nexpert's\nwindow").replace("-", "-\n")
                for name in names
            ],
            [ARM_COLORS[name] for name in names],
        )
        for place, name in enumerate(names, start=1):
            if name in PAPER_CORRECTED:
                axes.plot(
                    [place - 0.4, place + 0.4],
                    [PAPER_CORRECTED[name]] * 2,
                    color=INK,
                    linestyle=":",
                    zorder=4,
                )
        axes.set_ylim(bottom=0)
        tidy(axes, y_label="transport distance", title=f"Rate {table['rate']:g} (dotted: the paper's means)")
    return figure


def _boxes(
    axes: Axes, values: Sequence[Sequence[float]], names: Sequence[str], colors: Sequence[str]
) -> None:
    for place, (row, color) in enumerate(zip(values, colors, strict=True), start=1):
        # Side by side by their number, not at random: the same record gives the same figure.
        x = place + 0.5 * ((np.arange(len(row)) * 0.618) % 1 - 0.5)
        axes.scatter(x, row, s=7, color=color, alpha=0.35, linewidths=0, zorder=2)
        axes.plot(place, float(np.mean(row)), "D", color=INK, markersize=4, zorder=5)
    axes.boxplot(
        [list(row) for row in values], widths=0.62, showfliers=False, zorder=3,
        medianprops={"color": INK, "linewidth": 1.8}, boxprops={"color": FAINT}, whiskerprops={"color": FAINT},
        capprops={"color": FAINT},
    )  # fmt: skip
    axes.set_xticks(range(1, len(names) + 1), list(names))


# --- the page ---------------------------------------------------------------------------------------------------------


def _probe_section(record: Mapping[str, Any], figures: Path) -> list[str]:
    seconds = f"<p>{escape(probe_seconds(record))}</p>"
    return [
        f"<p>{escape(probe_sizes(record))}</p>",
        *(f"<p>{escape(sentence)}</p>" for sentence in probe_reading(record)),
        embedded(distances_figure(record), figures / "distances.png", "Distances of high-loss, random and low-loss tokens"),
        embedded(losses_figure(record), figures / "losses.png", "Loss against transport distance"),
        f'<p class="guide">How to read this. {escape(GUIDE)}</p>',
        _table("Groups", GROUP_HEADERS, group_cells(record)),
        '<p class="guide">Losses and distances: lower quartile / median / upper quartile. Same windows: student and expert say '
        "exactly the same.</p>",
        seconds,
        "<h2>Forks side by side</h2>",
        '<p class="guide">High-loss tokens, evenly over their distances, farthest first. '
        f"{escape(PLAN_GUIDE)}</p>",
        *map(_fork, record["shown"]),
    ]  # fmt: skip


def _fork(fork: Mapping[str, Any]) -> str:
    what = "false alarm" if fork["is_false_alarm"] else '<span class="bad">real</span>'
    before = ("... " if fork["is_prefix_cut"] else "") + shown(fork["prefix"])
    head = (
        f'<div class="fork"><h3>{what}: distance {fork["distance"]:.3f}, loss {fork["loss_nats"]:.3f} nats</h3>'
        f'<p class="soft">{escape(shown(str(fork["prompt"])))}, sample {fork["sample"]}, before token {fork["position"]}, '
        f"where the student had said <code>{escape(shown(fork['said']))}</code></p>"
        f"<pre>{escape(before)}</pre>"
    )
    sides = "".join(
        f"<div><b>{who}</b><pre>{_words(fork[key])}</pre></div>"
        for who, key in (("student", "student"), ("expert", "expert"))
    )
    return f'{head}<div class="pair">{sides}</div>{_plan(fork)}</div>'


def _words(tokens: Sequence[str]) -> str:
    """Tokens told apart, on lines that may break between them."""
    return "\u200b".join(f'<span class="tok">{escape(shown(token))}</span>' for token in tokens)


def _plan(fork: Mapping[str, Any]) -> str:
    """The plan as cells: how full tells the mass, the colour tells what the match costs."""
    student, expert = fork["student"], fork["expert"]
    if not fork["plan"]:
        return ""
    left, top = 58, 58
    width, height = left + CELL * len(expert), top + CELL * len(student)
    full = max(mass for _, _, mass, _ in fork["plan"])
    parts = [
        f'<rect class="frame" x="{left}" y="{top}" width="{CELL * len(expert)}" height="{CELL * len(student)}"/>'
    ]
    for i, token in enumerate(student):
        y = top + CELL * i + CELL - 3
        parts.append(f'<text x="{left - 4}" y="{y}" text-anchor="end">{_label(token)}</text>')
    for j, token in enumerate(expert):
        x = left + CELL * j + CELL - 3
        parts.append(f'<text transform="translate({x} {top - 4}) rotate(-90)">{_label(token)}</text>')
    for i, j, mass, cost in fork["plan"]:
        told = f"{shown(student[i])} -> {shown(expert[j])}: mass {mass:.4f}, cost {cost:.3f}"
        parts.append(
            f'<rect class="cell" x="{left + CELL * j}" y="{top + CELL * i}" width="{CELL}" height="{CELL}" '
            f'fill="{_cost_color(cost)}" fill-opacity="{mass / full:.2f}"><title>{escape(told)}</title></rect>'
        )
    return (
        "<details open><summary>Transport plan</summary>"
        f'<div class="scroll"><svg width="{width + 2}" height="{height + 2}" role="img" '
        f'aria-label="transport plan">{"".join(parts)}</svg></div></details>'
    )


def _label(token: str) -> str:
    text = shown(token)
    return escape(text if len(text) <= 8 else text[:7] + "\u2026")


def _cost_color(cost: float) -> str:
    """From blue at 0 to orange at 1 and beyond."""
    share = min(max(cost, 0.0), 1.0)
    near, far = (0, 114, 178), (213, 94, 0)
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(near, far, strict=True))


def _correction_section(record: Mapping[str, Any], figures: Path) -> list[str]:
    image = embedded(
        correction_figure(record), figures / "correction.png", "Distances before and after correction"
    )
    tables = [
        _table(f"Rate {table['rate']:g}", CORRECTION_HEADERS, correction_cells(table))
        for table in record["rates"]
    ]
    arms = "; ".join(f"{name}: {summary}" for name, summary in record["arms"].items())
    return [
        "<h2>Local correction</h2>",
        f"<p>{escape(correction_sizes(record))}</p>",
        *(f"<p>{escape(sentence)}</p>" for sentence in correction_reading(record)),
        image,
        f'<p class="guide">How to read this. {escape(CORRECTION_GUIDE)} Arms: {escape(arms)}.</p>',
        *tables,
        "<h2>Corrected windows</h2>",
        *map(_example, record["examples"]),
    ]


def _example(row: Mapping[str, Any]) -> str:
    lines = [("expert", row["expert"], None), ("before", row["student"], row["before"])]
    lines += [(name, text, row["after"][name]) for name, text in row["corrected"].items()]
    cells = "".join(
        f"<tr><td>{escape(name)}</td><td>{'-' if distance is None else f'{distance:.3f}'}</td>"
        f'<td class="text"><code>{escape(shown(text))}</code></td></tr>'
        for name, text, distance in lines
    )
    return (
        f'<div class="fork"><p class="soft">{escape(shown(str(row["prompt"])))}, rate {row["rate"]:g}</p>'
        f"<pre>{escape(shown(row['prefix']))}</pre>"
        '<div class="scroll"><table><tr><th>arm</th><th>distance</th><th class="text">window</th></tr>'
        f"{cells}</table></div></div>"
    )


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<h2>{escape(title)}</h2><div class="scroll"><table><tr>{head}</tr>{lines}</table></div>'


def _facts(record: Mapping[str, Any]) -> str:
    names = (
        "place",
        "student",
        "expert",
        "seed",
        "seeds",
        "num_prompts",
        "samples_per_prompt",
        "settings",
        "correcting",
    )
    facts = {name: record[name] for name in names if name in record}
    # The changes of the source tree are in the record; here they would drown the rest.
    facts["versions"] = {name: text for name, text in record.get("versions", {}).items() if name != "diff"}
    what = "What was corrected" if "rates" in record else "What was probed"
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(shown(json.dumps(value)))}</td></tr>"
        for name, value in facts.items()
    )
    return f'<h2>{what}</h2><div class="scroll"><table class="facts">{rows}</table></div>'
