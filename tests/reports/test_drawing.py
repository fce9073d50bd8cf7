"""Colours that stay, and labels that keep their distance."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.reports.drawing import SPARE, STYLES, method_style, new_figure, readable_on, spread, to_png


def test_spread_by_hand():
    assert spread([], 0.1) == []
    assert spread([0.2, 0.8], 0.1) == [0.2, 0.8]
    # two at 0.5, 0.1 apart: centred on 0.5
    assert [round(p, 9) for p in spread([0.5, 0.5], 0.1)] == [0.45, 0.55]
    # three at the top: pushed down from 1
    assert [round(p, 9) for p in spread([1.0, 1.0, 1.0], 0.1)] == [0.8, 0.9, 1.0]
    # too many for the gap: evenly from edge to edge
    assert [round(p, 9) for p in spread([0.0] * 5, 0.5)] == [0.0, 0.25, 0.5, 0.75, 1.0]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=14))
def test_spread_keeps_gap_order_and_range(targets):
    gap = 0.07
    placed = spread(targets, gap)
    pairs = sorted(zip(targets, placed, strict=True))
    assert all(0 - 1e-9 <= place <= 1 + 1e-9 for place in placed)
    in_order = sorted(placed)
    assert all(b - a >= gap - 1e-9 for a, b in itertools.pairwise(in_order))
    for (t1, p1), (t2, p2) in itertools.pairwise(pairs):
        assert p1 < p2 or t1 == t2


def test_a_method_keeps_its_colour_whatever_is_beside_it():
    assert method_style("nail-f", 0) == method_style("nail-f", 7) == STYLES["nail-f"]
    assert method_style("nail-f-t025", 3) == (STYLES["nail-f"][0], "-.")
    assert method_style("nail-known-eta01", 3)[0] == STYLES["nail-known"][0]
    assert method_style("mine", 1) == SPARE[1]
    assert len(set(STYLES.values())) >= len(STYLES) - 1  # sft-known and its long name are one method


def test_ink_is_readable():
    assert readable_on("#00385C") == "white"
    assert readable_on("#F4F6F8") != "white"


def test_png_bytes_are_reproducible():
    def png():
        figure = new_figure(2, 1)
        figure.add_subplot().plot([0, 1], [0, 1])
        return to_png(figure)

    first = png()
    assert first.startswith(b"\x89PNG\r\n")
    assert first == png()
