"""What all figures share: colours, bare axes, labels that do not overlap, and pixels without global state."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.typing import ColorType

from understudy.reports.tables import short_number

INK, FAINT, SHADE = "#222222", "#8A8A8A", "#ECECEC"
DPI = 120

# One hue per family (Okabe and Ito, safe for colour-blind readers), told apart within it by lightness and
# dashes: offline data grey, the student's own samples vermilion, its greedy prefixes blue, mixtures green.
STYLES: dict[str, tuple[str, str]] = {
    "sft": ("#4D4D4D", "-"),
    "kd": ("#8C8C8C", "-"),
    "sft-known": ("#8C8C8C", "--"),
    "sft-noise-aware": ("#8C8C8C", "--"),
    "opd-f": ("#D55E00", "-"),
    "opd-r": ("#E69F00", "-"),
    "opd-known": ("#8F3F00", "--"),
    "opd-pg": ("#E69F00", ":"),
    "nail-f": ("#0072B2", "-"),
    "nail-r": ("#56B4E9", "-"),
    "nail-mix": ("#56B4E9", ":"),
    "nail-known": ("#00385C", "--"),
    "dagger": ("#009E73", "-"),
    "gkd": ("#009E73", "--"),
}
SPARE = (("#CC79A7", "-"), ("#7A3E9D", "-"), ("#B8A200", "-"), ("#CC79A7", "--"), ("#7A3E9D", "--"))

Dashes = str | tuple[float, tuple[float, ...]]
"""As matplotlib names or measures them."""
STAGE_COLOR = "#3A3A3A"
STAGE_DASHES: tuple[Dashes, ...] = (
    (0, (5, 2)),
    (0, (1.5, 1.5)),
    (0, (7, 2, 1.5, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
)
"""What was not trained by a comparison but before it, such as its experts."""

PHASE_COLORS = {
    "collect": "#56B4E9",
    "label": "#E69F00",
    "train": "#0072B2",
    "evaluate": "#009E73",
    "checkpoint": "#CC79A7",
}


def method_style(label: str, index: int) -> tuple[str, str]:
    """Colour and dashes: fixed for a known method or a variant of it (`nail-f-t025`), else by its index."""
    if label in STYLES:
        return STYLES[label]
    parents = [name for name in STYLES if label.startswith((name + "-", name + "_", name + " "))]
    if parents:
        return STYLES[max(parents, key=len)][0], "-."
    return SPARE[index % len(SPARE)]


def new_figure(width: float, height: float) -> Figure:
    """A figure of its own on the Agg canvas; pyplot's global state is never touched."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as PNG bytes; the same figure gives the same bytes (no date, no version inside)."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def tidy(axes: Axes, *, x_label: str = "", y_label: str = "", title: str = "") -> None:
    """Bare axes: no box, faint horizontal grid, short tick labels, the title at the left."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9, color=FAINT)
    axes.grid(axis="y", color=SHADE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(x_label, fontsize=10, color=INK)
    axes.set_ylabel(y_label, fontsize=10, color=INK)
    if title:
        axes.set_title(title, fontsize=11.5, color=INK, loc="left", fontweight="bold", pad=12)


def count_axis(axes: Axes, *, num_ticks: int = 6) -> None:
    """Ticks of a counter on x: few, and written 10k instead of 10000."""
    axes.xaxis.set_major_locator(MaxNLocator(num_ticks, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def spread(targets: Sequence[float], gap: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Positions as near to the targets as `gap` allows, in their order; crowded ones centred on their mean.

    If they cannot all fit between low and high, the gap shrinks to what fits.
    """
    if not targets:
        return []
    gap = min(gap, (high - low) / max(1, len(targets) - 1))
    order = sorted(range(len(targets)), key=lambda i: targets[i])
    blocks: list[list[float]] = []  # [sum of (target - offset within the block), members]
    for i in order:
        blocks.append([targets[i], 1])
        while len(blocks) > 1 and _start(blocks[-2], gap, low, high) + blocks[-2][1] * gap > _start(
            blocks[-1], gap, low, high
        ):
            total, count = blocks.pop()
            blocks[-1][0] += total - blocks[-1][1] * count * gap
            blocks[-1][1] += count
    placed = [0.0] * len(targets)
    members = iter(order)
    for block in blocks:
        start = _start(block, gap, low, high)
        for k in range(int(block[1])):
            placed[next(members)] = start + k * gap
    return placed


def _start(block: Sequence[float], gap: float, low: float, high: float) -> float:
    total, count = block
    return min(max(total / count, low), high - (count - 1) * gap)


def label_ends(axes: Axes, ends: Sequence[tuple[str, str, float, float]]) -> None:
    """Write each line's name right of the axes, level with its end: (text, colour, x, y) in data units.

    A dotted line leads from where the line ends to the edge of the axes. Call it after the limits are set.
    """
    low, high = axes.get_ylim()
    right = axes.get_xlim()[1]
    height_points = axes.get_window_extent().height / DPI * 72
    places = spread([(y - low) / (high - low) for *_, y in ends], 12.5 / height_points, -0.03, 1.03)
    for (text, color, x, y), place in zip(ends, places, strict=True):
        axes.plot([x, right], [y, y], linestyle=":", color=color, linewidth=0.9, alpha=0.7, zorder=1.5)
        axes.annotate(
            text,
            xy=(1.0, (y - low) / (high - low)),
            xycoords="axes fraction",
            xytext=(1.045, place),
            textcoords="axes fraction",
            fontsize=9,
            color=color,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "lw": 0.8,
                "alpha": 0.7,
                "shrinkA": 1,
                "shrinkB": 0,
            },
        )
    axes.set_xlim(right=right)


def readable_on(color: ColorType) -> str:
    """Dark or white ink, whichever has more contrast on a colour (relative luminance of WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if luminance < 0.2 else INK
