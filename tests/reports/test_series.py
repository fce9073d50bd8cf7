"""The numbers behind the figures, by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from understudy.reports.folders import RunData, load_compare
from understudy.reports.series import (
    curves_of,
    groups_of,
    mean_curve,
    phase_seconds,
    position_table,
    warm_end,
)

T95_2DF = 4.302652729911275


def fabricated_run(method, evals, train=()):
    return RunData(
        folder=Path("nowhere"),
        name="fabricated",
        method=method,
        seed=0,
        recipe={},
        versions={},
        train=tuple(train),
        evals=tuple(evals),
        end=None,
        samples=(),
        warnings=(),
    )


def record(step, value, position=None, stage="main"):
    metrics = {"accuracy_greedy": {"value": value, "low": None, "high": None, "n": 4}}
    by_position = {} if position is None else {"accuracy_greedy": position}
    counters = {"step": step, "trajectories": 10 * step}
    return {"kind": "eval", "stage": stage, **counters, "metrics": metrics, "by_position": by_position}


def test_mean_curve_over_the_part_that_all_seeds_cover():
    short = (np.array([0.0, 2.0, 4.0]), np.array([0.0, 0.2, 0.4]))
    long = (np.array([0.0, 4.0, 8.0]), np.array([0.0, 0.8, 0.8]))
    other = (np.array([0.0, 4.0]), np.array([0.0, 0.6]))
    x, mean, low, high = mean_curve([short, long], "accuracy_greedy")
    assert x.tolist() == [0, 2, 4]
    assert mean.tolist() == pytest.approx([0.0, 0.3, 0.6])  # 0.2 and, between 0 and 0.8, 0.4
    assert (low, high) == (None, None)
    x, mean, low, high = mean_curve([short, long, other], "accuracy_greedy")
    assert mean.tolist() == pytest.approx([0.0, 0.3, 0.6])
    half = T95_2DF * 0.1 / math.sqrt(3)  # 0.2, 0.4, 0.3
    assert low[1] == pytest.approx(0.3 - half, abs=1e-9)
    assert high[1] == pytest.approx(0.3 + half, abs=1e-9)
    assert low.min() >= 0


def test_curves_begin_where_the_warm_start_ended(compare_folder):
    compare = load_compare(compare_folder)
    (opd, *_) = groups_of(compare)
    for x, y in curves_of(opd, "accuracy_greedy", "trajectories"):
        assert x[:2].tolist() == [0, 25 * 128]  # counted from the end of the warm start
        assert np.isfinite(y).all()
    assert warm_end(*opd.runs[0], "step") == 200


def test_own_warm_start_ends_at_its_last_record():
    run = fabricated_run(
        "sft", [record(5, 0.0, stage="warm_start"), record(9, 0.1, stage="warm_start"), record(12, 0.2)]
    )
    assert warm_end(run, None, "trajectories") == 90
    assert warm_end(fabricated_run("sft", [record(5, 0.0)]), None, "step") == 0


def test_points_without_a_value_are_left_out():
    run = fabricated_run("sft", [record(1, 0.1), record(2, None), record(3, 0.3), record(4, math.inf)])
    ((x, y),) = curves_of(groups_of(run)[0], "accuracy_greedy", "step")
    assert (x.tolist(), y.tolist()) == ([1, 3], [0.1, 0.3])


def test_position_table_averages_what_is_there():
    first = fabricated_run("sft", [record(1, 0.5, [1.0, 0.5, None]), record(2, 0.5, [None, math.inf])])
    second = fabricated_run("sft", [record(1, 0.5, [0.5, None, None, 0.25])])
    table = position_table(groups_of([first, second])[0], "accuracy_greedy")
    assert list(table) == [1]  # at step 2 nobody has a value
    assert table[1][[0, 1, 3]].tolist() == [0.75, 0.5, 0.25]
    assert math.isnan(table[1][2])


def test_phase_seconds_are_the_last_cumulative_ones_averaged_over_seeds():
    def timed(step, collect, train):
        return {"step": step, "seconds": {"collect": collect, "train": train}}

    first = fabricated_run("sft", [], [timed(1, 1.0, 2.0), timed(2, 3.0, 5.0)])
    second = fabricated_run("sft", [], [timed(1, 5.0, 1.0)])
    assert phase_seconds(groups_of([first, second])[0]) == {"collect": 4.0, "train": 3.0}
    assert phase_seconds(groups_of(fabricated_run("sft", []))[0]) == {}
