"""A made-up outcome with every kind of row, mark and panel."""

from __future__ import annotations

import math

from understudy.theory.outcome import Area, Cloud, Heat, Line, Outcome, Panel, Row

ROWS = (
    Row(claim="enumerated", source="arXiv:1 Thm 1", relation="<=", bound=0.5, measured=0.25, num=1000),
    Row(claim="simulated", source="DERIVED", relation=">=", bound=0.1, measured=0.2, low=0.15, high=0.25),
    Row(claim="open", source="DERIVED", relation="<=", bound=0.2, measured=0.2, low=0.15, high=0.25),
    Row(
        claim="as printed <b>", source="arXiv:1 eq. 3", relation="=", bound=1.0, measured=2.0,
        is_refuted=True, note="the sign is wrong & it shows",
    ),
)  # fmt: skip
PANELS = (
    Panel(
        title="lines", x_label="N", y_label="risk", x_scale="log", y_scale="log", y_limits=(0.01, 1.0),
        lines=(
            Line(label="run", x=[1, 10, 100], y=[0.5, math.nan, 0.05], low=[0.4, 0.1, 0.04], high=[0.6, 0.3, 0.06], group="a"),
            Line(label="closed form", x=[1, 10, 100], y=[0.5, 0.2, 0.05], role="predicted", group="a"),
            Line(label="bound", x=[1, 100], y=[1.0, 0.1], role="bound"),
        ),
    ),
    Panel(
        title="plane", x_label="x", y_label="y", has_equal_axes=True,
        areas=(Area(label="reward", x=[0, 1, 1, 0], y=[0, 0, 1, 1]),),
        clouds=(Cloud(label="instances", x=[0.1, 0.2], y=[0.3, 0.4]),),
    ),
    Panel(
        title="heat", x_label="m", y_label="eta",
        heat=Heat(columns=["3", "9"], rows=["0", "0.2"], values=[[1.0, 0.5], [0.25, math.nan]], label="rate"),
    ),
)  # fmt: skip


def sample(rows: tuple[Row, ...] = ROWS) -> Outcome:
    return Outcome(rows=rows, panels=PANELS, reading=("It <holds>.", "Mostly."), settings={"n": 3})
