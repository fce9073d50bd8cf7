"""The paper's grid and the moving front: learning times and fits by hand, the front's end against its flow."""

from __future__ import annotations

import itertools
import math
from copy import deepcopy

import numpy as np
import pytest
from scipy import integrate, stats

from understudy.theory import mean_field as maps
from understudy.theory import mean_field_grid as grid_file
from understudy.theory import mean_field_moving as moving
from understudy.theory.mean_field_data import GRID, load
from understudy.theory.mean_field_front import (
    advance,
    argmax_share,
    critical_spread,
    final_depth,
    final_shares,
    fit_line,
    learning_time,
)

RIGHT = 1 - 0.2 * 6 / 7


def test_learning_time_and_fits():
    assert learning_time(np.array([1.0, 0.5]), 1, 10.0) == pytest.approx(15)
    assert learning_time(np.array([1.0, 0.5]), 2, 10.0) == pytest.approx(25)
    assert learning_time(np.array([1.0, 0.0]), 1, 10.0) == math.inf
    x, y = np.array([1.0, 2.0, 4.0]), np.array([5.0, 7.0, 11.5])
    line = fit_line(x, y)
    assert [line.slope, line.intercept] == pytest.approx(np.polyfit(x, y, 1).tolist(), abs=1e-12)
    assert line.largest_residual == pytest.approx(
        np.abs(y - np.polyval(np.polyfit(x, y, 1), x)).max(), abs=1e-12
    )
    assert fit_line(x, y, through_origin=True).slope == pytest.approx((5 + 14 + 46) / 21, abs=1e-12)


def test_argmax_share_is_the_integral():
    for gap, num_actions, spread in ((0.0, 7, 0.5), (1.0, 7, 0.5), (2.0, 3, 1.3)):
        exact, _ = integrate.quad(
            lambda z, k=num_actions, g=gap / spread: stats.norm.pdf(z) * stats.norm.cdf(z + g) ** (k - 1),
            -9,
            9,
        )
        assert argmax_share(np.array([gap]), num_actions, spread)[0] == pytest.approx(exact, abs=1e-9)
    assert argmax_share(np.zeros(1), 7, 0.5)[0] == pytest.approx(1 / 7, abs=1e-9)


def test_front_moves_for_greedy_and_stalls_at_the_map():
    greedy = advance(RIGHT, 12, 7, is_greedy=True, spread=0.5, time_step=0.05, max_time=100)
    sampled = advance(RIGHT, 12, 7, is_greedy=False, spread=0.5, time_step=0.2, max_time=250)
    steps = np.diff(greedy.solved_time_T[3:])
    assert greedy.depth == 12
    assert steps.max() / steps.min() < 1.1  # one Euler step of 0.05 is 4 % of a position's time
    right = 1 / (1 + 6 * np.exp(-sampled.gap_T))
    assert right.tolist() == pytest.approx(maps.forward_walk(RIGHT, 12, 7).right_T.tolist(), abs=1e-9)
    assert sampled.depth == 3
    # Solved up to a position: all of them right, not that one alone (0.843 alone, 0.832 with those before).
    hot = advance(RIGHT, 5, 7, is_greedy=False, spread=0.5, time_step=0.2, max_time=250, solved_share=0.8375)
    alone = argmax_share(np.log(6 * right / (1 - right)), 7, 0.5)
    assert np.prod(alone[:4]) < 0.8375 < alone[3]
    assert hot.depth == 3
    # The first position by a fine integration of its own equation; the Euler error is of the order of the step.
    flow = integrate.solve_ivp(
        lambda _, z: RIGHT - 1 / (1 + 6 * np.exp(-z)), (0, 2), [0.0], rtol=1e-10, atol=1e-12
    )
    once = advance(RIGHT, 1, 7, is_greedy=True, spread=50.0, time_step=1e-4, max_time=2.0)
    assert once.gap_T[0] == pytest.approx(flow.y[0, -1], abs=1e-4)
    # Greedy prefixes: position 2 by hand after two steps, with shares of clean prefixes from the integral.
    two = advance(RIGHT, 2, 7, is_greedy=True, spread=0.5, time_step=0.5, max_time=0.75)
    first = 0.5 * (RIGHT - 1 / 7)
    clean = [1 / 7, argmax_share(np.array([first]), 7, 0.5)[0]]
    second = 0.5 * clean[0] * (RIGHT - 1 / 7)
    second += 0.5 * (clean[1] * RIGHT + (1 - clean[1]) / 7 - 1 / (1 + 6 * math.exp(-second)))
    assert two.gap_T[1] == pytest.approx(second, abs=1e-9)


def test_grid_by_hand():
    grid = load(GRID)
    times = grid_file.predicted_times(grid, "bc", 1, 0.0)
    a = 1 - 0.1 * 6 / 7
    assert times[9, 0.1] == pytest.approx(100 / 9 * sum(1 / (a**t * 0.9) for t in range(9)), abs=1e-9)
    assert times[9, 0] == pytest.approx(100, abs=1e-9)
    clean, total = 1.0, 0.0
    for _ in range(9):
        total += 1 / (clean * 0.95)
        clean *= clean * (1 - 0.05 * 6 / 7) + (1 - clean) / 7
    online = grid_file.predicted_times(grid, "opd-f", 1, 0.0)
    assert online[9, 0.05] == pytest.approx(190 / 9 * total, rel=1e-12)
    clean, total, ratio = 1.0, 0.0, math.log((0.9 + 0.1 / 7) / (0.1 / 7))
    for _ in range(9):
        p = math.exp(ratio * clean) / (math.exp(ratio * clean) + 6)
        total, clean = total + 6 / (7 * p - 1), clean * p
    reverse = grid_file.predicted_times(grid, "opd-r", 1, 1e-4)  # the initial error is for eta = 0 only
    assert reverse[9, 0.1] == pytest.approx(390 / 9 * total, rel=1e-9)
    # 1/signal^2 and 1/sqrt(signal) are both worse than 1/signal: the comparison discriminates on either side.
    assert (
        grid_file.log_error(grid, 1)
        < 0.3
        < 0.4
        < grid_file.log_error(grid, 0.5)
        < grid_file.log_error(grid, 2)
    )
    assert grid_file.separation(grid, "opd-f", online) == (65, 65)
    backwards = {cell: -time for cell, time in online.items()}
    assert grid_file.separation(grid, "opd-f", backwards)[0] == 0


def opd_time(length: int, error: float, clean_time: float) -> float:
    """1/signal at eta = 0 in plain Python: the signal is the share of clean prefixes."""
    clean, total = 1 - error, 0.0
    for _ in range(length):
        total, clean = total + 1 / clean, clean * (clean + (1 - clean) / 7)
    return clean_time * total / length


def test_initial_error_is_fitted_to_the_cells():
    grid = load(GRID)
    nine, fifteen = grid_file.fitted_error(grid, 9), grid_file.fitted_error(grid, 15)
    assert opd_time(9, nine, 190) == pytest.approx(260, rel=1e-9)
    assert opd_time(15, fifteen, 310) == pytest.approx(1000, rel=1e-9)
    low, high = grid_file.error_range(grid, 9)
    assert [opd_time(9, low, 210), opd_time(9, high, 170)] == pytest.approx([240, 280], rel=1e-9)
    who, ratio = grid_file.initial_error_rows(grid)
    assert (who.measured, who.bound, who.num) == (4, 4, 4)
    assert [opd_time(m, fifteen, t) > 3000 for m, t in ((3, 75), (9, 190), (23, 440), (31, 580))] == [
        False, False, True, True]  # fmt: skip
    assert ratio.measured == pytest.approx(nine / fifteen, rel=1e-9)
    assert (ratio.holds, round(ratio.measured, 1)) == ("no", 11.3)


def test_initial_error_rows_follow_the_cells():
    """The two claims turn with the figure's numbers: each can come out the other way."""
    grid = load(GRID)
    late = deepcopy(grid)
    late["trajectories_thousands"]["opd-f"]["9"][0] = None
    with pytest.raises(ValueError, match="expected at 9 positions, got 0 times"):
        grid_file.initial_error_rows(late)
    solved = deepcopy(grid)
    solved["trajectories_thousands"]["opd-f"]["23"][0] = 2000
    assert grid_file.initial_error_rows(solved)[0].holds == "no"
    agreeing = deepcopy(grid)
    error = grid_file.fitted_error(grid, 9)
    agreeing["trajectories_thousands"]["opd-f"]["15"][0] = opd_time(15, error, 310)
    assert grid_file.initial_error_rows(agreeing)[1].measured == pytest.approx(1, rel=1e-9)
    assert grid_file.initial_error_rows(agreeing)[1].holds == "yes"
    early = deepcopy(grid)
    early["trajectories_thousands"]["opd-f"]["15"][0] = None
    with pytest.raises(ValueError, match="expected at 15 positions"):
        grid_file.initial_error_rows(early)


@pytest.mark.parametrize("is_greedy", [True, False])
def test_the_front_ends_where_it_is_said_to(is_greedy):
    """`final_shares` against the flow, run for long; a spread at which greedy prefixes stop, too, and one where not."""
    for spread in (0.5, 1.0):
        flow = advance(
            RIGHT, 6, 7, is_greedy=is_greedy, spread=spread, time_step=0.2, max_time=200, solved_share=2.0
        )
        found = final_shares(RIGHT, 6, 7, is_greedy=is_greedy, spread=spread)
        assert found.tolist() == pytest.approx(flow.solved_share_T.tolist(), abs=1e-9)


def test_spread_decides_how_far_greedy_prefixes_get():
    depths = [
        [final_depth(RIGHT, 31, 7, is_greedy=g, spread=s) for g in (True, False)] for s in moving.SPREADS
    ]
    assert depths == [[31, 4], [31, 3], [9, 2], [1, 1]]
    found = critical_spread(RIGHT, 31, 7)
    assert final_depth(RIGHT, 31, 7, is_greedy=True, spread=found - 0.001) == 31
    assert final_depth(RIGHT, 31, 7, is_greedy=True, spread=found + 0.001) == 30
    with pytest.raises(ValueError, match=r"two positions or more expected, got 1\.0"):
        moving.move(RIGHT, 2, 7, 1.0, 0.2, 1.0, lambda _: None)


def test_front_rows_say_no_when_greedy_prefixes_stop():
    wide = moving.move(RIGHT, 8, 7, 0.85, 0.2, 1.0, lambda _: None)
    assert 2 <= wide.greedy.depth < 8
    regular, _, spread = moving.rows(moving.nail_times(load(GRID), 0.2), wide)[2:]
    assert (regular.holds, regular.measured, spread.holds) == ("no", math.inf, "no")


def test_slopes_of_the_grid():
    grid = load(GRID)
    times = moving.nail_times(grid, 0.2)
    assert times.length_N.tolist() == [9, 15, 23, 31]
    assert {loss: t.tolist() for loss, t in times.time_N.items()} == {
        "F": [260, 410, 640, 800], "R": [310, 420, 600, 770]}  # fmt: skip
    assert moving.nail_times(grid, 0.05).time_N["F"].tolist() == [220, 350, 580, 640]
    with pytest.raises(ValueError, match=r"expected, got 0\.3"):
        moving.nail_times(grid, 0.3)
    # All 2^4 corners of the readings: the slope is linear in them, so its extremes are there.
    corners = itertools.product((-20, 20), repeat=4)
    slopes = [np.polyfit(times.length_N, times.time_N["F"] + np.array(c), 1)[0] for c in corners]
    forward, reverse = moving.rows(times, moving.move(RIGHT, 3, 7, 0.5, 0.2, 1.0, lambda _: None))[:2]
    assert [forward.low, forward.high] == pytest.approx([min(slopes), max(slopes)], abs=1e-9)
    # Sums of products over sums of squares, by hand.
    assert [forward.measured, reverse.measured] == pytest.approx([6865 / 275, 5810 / 275], abs=1e-9)
    assert [forward.holds, reverse.holds] == ["yes", "no"]
