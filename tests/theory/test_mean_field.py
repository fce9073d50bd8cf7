"""The mean-field maps against brute force: explicit minimisation, explicit prefix trees, explicit residue walks."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from understudy.theory import mean_field as maps
from understudy.theory import mean_field_demo as demo
from understudy.theory import mean_field_grid as grid_file
from understudy.theory.experiments import mean_field as experiment
from understudy.theory.mean_field_data import GRID, METRICS, SHIPPED_DEMO, SHIPPED_LONG, load, read_demo
from understudy.theory.mean_field_front import advance, argmax_share, fit_line, learning_time

RIGHT = 1 - 0.2 * 6 / 7
RATIO = math.log(RIGHT / (0.2 / 7))


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def law(right: float, num_actions: int) -> list[float]:
    return [right] + [(1 - right) / (num_actions - 1)] * (num_actions - 1)


@pytest.mark.parametrize(
    ("error", "expected"),
    [("uniform", [0.8 + 0.2 / 7, 1.0]), ("other", [0.8, 1.0])],
    ids=["uniform", "other"],
)
def test_right_rate_by_hand(error, expected):
    assert [maps.right_rate(eta, 7, error) for eta in (0.2, 0)] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("num_actions", [2, 3, 7])
@pytest.mark.parametrize("clean", [0.0, 0.17, 0.6, 1.0])
def test_optima_minimise_their_losses(num_actions, clean):
    """The closed forms against a minimiser that knows only the two divergences."""
    right, uniform = 0.77, law(1 / num_actions, num_actions)

    def forward(p: float) -> float:
        return clean * kl(law(right, num_actions), law(p, num_actions)) + (1 - clean) * kl(
            uniform, law(p, num_actions)
        )

    def reverse(p: float) -> float:
        return clean * kl(law(p, num_actions), law(right, num_actions)) + (1 - clean) * kl(
            law(p, num_actions), uniform
        )

    for loss, found in (
        (forward, maps.forward_optimum(clean, right, num_actions)),
        (reverse, maps.reverse_optimum(clean, maps.log_ratio(right, num_actions), num_actions)),
    ):
        best = optimize.minimize_scalar(
            loss, bounds=(1e-6, 1 - 1e-6), method="bounded", options={"xatol": 1e-11}
        )
        assert loss(found) <= best.fun + 1e-14
        assert found == pytest.approx(best.x, abs=2e-7)  # a minimiser sees x to the root of machine precision
    assert maps.blind_kl_floor(clean, right, num_actions) == pytest.approx(
        forward(maps.forward_optimum(clean, right, num_actions)), abs=1e-13
    )


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
def test_walk_is_the_prefix_tree(temperature):
    """All K^T roll-outs written out: the student's law per position, the share of prefixes without an error."""
    num_actions, length, right = 3, 5, 0.8
    path = maps.forward_walk(right, length, num_actions, temperature=temperature)
    students = []
    for t in range(length):
        # Position by position: roll out the positions before with what was found for them.
        clean = 0.0
        for tokens in itertools.product(range(num_actions), repeat=t):
            prob = 1.0
            for token, roll_out in zip(tokens, students, strict=True):
                prob *= roll_out[token]
            clean += prob if all(token == 0 for token in tokens) else 0.0
        target = [
            clean * q + (1 - clean) / num_actions for q in law(right, num_actions)
        ]  # mixture of labels seen
        assert path.clean_T[t] == pytest.approx(clean, abs=1e-12)
        assert path.right_T[t] == pytest.approx(target[0], abs=1e-12)
        if temperature == 0:
            students.append([1.0, 0.0, 0.0])
        else:
            powered = [p ** (1 / temperature) for p in target]
            students.append([p / sum(powered) for p in powered])


def test_offline_and_greedy_shares():
    offline = maps.offline_walk(0.8, 3, 3)
    assert offline.clean_T.tolist() == pytest.approx([1, 0.8, 0.64, 0.512], abs=1e-15)
    assert offline.right_T.tolist() == pytest.approx([0.8, 0.64 + 0.2 / 3, 0.512 + 0.36 / 3], abs=1e-15)
    assert maps.forward_walk(0.8, 50, 3, temperature=0).right_T.tolist() == pytest.approx(
        [0.8] * 50, abs=1e-15
    )


@pytest.mark.parametrize("num_actions", [2, 3, 7, 50])
def test_error_growth(num_actions):
    path = maps.forward_walk(1.0, 1, num_actions, initial_error=0.3)
    assert 1 - path.clean_T[1] == pytest.approx(maps.next_error(0.3, num_actions), abs=1e-15)
    growth = maps.next_error(1e-9, num_actions) / 1e-9
    assert growth == pytest.approx((2 * num_actions - 1) / num_actions, abs=1e-8)
    # Sharp: the growth is nearly reached, and with 1 + 1/K or half of it the inequality d' <= growth d fails.
    assert maps.next_error(1e-6, num_actions) <= growth * 1e-6
    assert maps.next_error(1e-6, num_actions) > 0.99999 * growth * 1e-6


def test_growth_of_the_reverse_map_is_its_derivative():
    def next_clean(clean: float, ratio: float) -> float:
        return clean * math.exp(ratio * clean) / (math.exp(ratio * clean) + 6)

    for ratio in (2.0, RATIO, 8.0, 23.0):
        slope = (next_clean(1 + 1e-6, ratio) - next_clean(1 - 1e-6, ratio)) / 2e-6
        assert maps.reverse_growth(ratio, 7) == pytest.approx(slope, abs=1e-9)


def test_printed_positions():
    assert maps.forward_walk(RIGHT, 5, 7).right_T.round(2).tolist() == [0.83, 0.71, 0.55, 0.36, 0.22]
    assert maps.reverse_walk(RATIO, 5, 7).right_T.round(2).tolist() == [0.83, 0.73, 0.56, 0.34, 0.20]
    assert maps.log_ratio(1.0, 7) == pytest.approx(-math.log(1e-10), abs=1e-12)


def test_tempered():
    p, wrong = 0.6, 0.2
    assert maps.tempered(p, 3, 0.5) == pytest.approx(p**2 / (p**2 + 2 * wrong**2), abs=1e-15)
    assert [maps.tempered(p, 2, 0) for p in (0.51, 0.49, 0.5)] == [1, 0, 0.5]
    assert maps.tempered(0.1, 3, 1e-4) == 0.0
    assert [maps.tempered(p, 3, 0.7) for p in (0.0, 1.0)] == [0.0, 1.0]


def test_critical_temperature_is_where_half_is_left():
    def left(temperature: float) -> float:
        clean = 1.0
        for _ in range(31):
            p = clean * RIGHT + (1 - clean) / 7
            clean *= 1 / (1 + 6 * ((1 - p) / 6 / p) ** (1 / temperature))
        return clean

    found = maps.critical_temperature(experiment._forward, 31, 7)
    assert left(found) == pytest.approx(0.5, abs=1e-9)
    assert left(found - 0.01) > 0.55 > 0.45 > left(found + 0.01)
    ratio = maps.critical_log_ratio(31, 7)
    assert maps.reverse_walk(ratio, 31, 7).clean_T[-1] == pytest.approx(0.5, abs=1e-9)
    with pytest.raises(ValueError, match="at temperature 1"):
        maps.critical_temperature(lambda clean: 1.0, 5, 7)


def test_signal_and_margin():
    path = maps.forward_walk(RIGHT, 8, 7)
    by_hand = [p - (1 - p) / 6 for p in path.right_T]
    assert maps.margin(path.right_T, 7).tolist() == pytest.approx(by_hand, abs=1e-14)
    assert maps.signal(path, RIGHT, 7).tolist() == pytest.approx(by_hand, abs=1e-14)
    far = maps.forward_walk(RIGHT, 60, 7)
    assert maps.signal(far, RIGHT, 7).min() > 0
    assert far.clean_T[-1] / far.clean_T[-2] == pytest.approx(1 / 7, abs=1e-12)


def test_marginal_right_is_the_walk_on_residues():
    """The full law of the offset in Z_K, moved by each token's error."""
    num_actions, right_T = 5, np.array([0.9, 0.4, 0.7, 0.25])
    offset = np.array([1.0, 0.0, 0.0, 0.0, 0.0])
    expected = []
    for p in right_T:
        moves = [w * np.roll(offset, shift) for shift, w in enumerate(law(float(p), num_actions))]
        offset = np.sum(moves, axis=0)
        expected.append(offset[0])
    assert maps.marginal_right(right_T, num_actions).tolist() == pytest.approx(expected, abs=1e-14)


def test_depth_chance_and_delay():
    # 10 of 31 positions at the floor 0.2, 21 at chance.
    loss = (10 * 0.2 + 21 * math.log(7)) / 31
    assert maps.solved_depth(loss, 31, 7, 0.2) == pytest.approx(10, abs=1e-12)
    path = maps.Path(np.ones(5), np.array([0.9, 0.5, 0.26, 0.25]))
    assert [maps.first_at_chance(path, 4, within) for within in (0.5, 0.02, 1e-9, -1.0)] == [2, 3, 4, 5]
    assert maps.delayed(path, 2).tolist() == [0.9, 0.9, 0.9, 0.5]
    assert maps.delayed(path, 0).tolist() == path.right_T.tolist()
    assert path.loss_nats == pytest.approx(-math.log(0.9 * 0.5 * 0.26 * 0.25) / 4, abs=1e-14)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: maps.right_rate(1.0, 7, "other"), r"\[0, 1\), got 1.0"),
        (lambda: maps.right_rate(0.1, 1, "other"), "got 1"),
        (lambda: maps.right_rate(0.1, 7, "both"), "got 'both'"),  # pyright: ignore[reportArgumentType]
        (lambda: maps.forward_walk(0.9, 0, 7), "got 0"),
        (lambda: maps.forward_walk(0.0, 3, 7), r"\(0, 1\], got 0.0"),
        (lambda: maps.forward_walk(0.9, 3, 7, initial_error=-0.1), "got 3 and -0.1"),
        (lambda: maps.tempered(0.5, 7, -1.0), "got -1.0"),
        (lambda: argmax_share(np.zeros(1), 7, 0.0), "got 0.0"),
        (lambda: learning_time(np.array([-0.1]), 1, 1.0), "got -0.1"),
        (lambda: experiment.run(settings=experiment.Settings(initial_error=0.0)), "got 0.0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


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
    low, high = grid_file.initial_error_range(grid)
    for error, is_late in ((low / 1.01, False), (low * 1.01, True)):
        assert (grid_file.predicted_times(grid, "opd-f", 1, error)[23, 0] > 3000) == is_late
    for error, is_late in ((high / 1.01, False), (high * 1.01, True)):
        assert (grid_file.predicted_times(grid, "opd-f", 1, error)[15, 0] > 3000) == is_late


def write_comparison(folder: Path, length: int = 4, **changes) -> Path:
    """A finished comparison in miniature: two seeds, curves that tell method, seed and stage apart."""
    methods = ["opd-f", "opd-r", "nail-f", "other"]
    cells = [{"label": m, "method": m, "seed": s, "folder": f"cells/{m}-seed{s}", "status": "done"}
             for m in methods for s in (0, 1)]  # fmt: skip
    if "status" in changes:
        cells[2]["status"] = changes["status"]
    noise = {"law": changes.get("law", "absorbing"), "eta": 0.25, "error": "other"}
    recipe = {
        "task": {"kind": "modular_addition", "modulus": 3, "length": length},
        "expert": {"kind": "oracle", "noise": noise},
        "train": {"steps": 7},
        "evaluate": {"prompts": 4},
    }
    compare = {"methods": changes.get("methods", methods), "seeds": [0, 1], "command": "made", "cells": cells}
    for name, content in (("compare.json", compare), ("recipe.json", recipe)):
        (folder / name).write_text(json.dumps(content))
    for number, cell in enumerate(cells):
        place = folder / cell["folder"]
        place.mkdir(parents=True)
        records: list[dict[str, Any]] = [{"kind": "train"}]
        for stage, step, offset in (("warm_start", 0, 9.0), ("main", 0, 0.5), ("main", 7, 0.25)):
            values: list[float | None] = [
                offset + number / 100 + t / 1000 for t in range(changes.get("found", length))
            ]
            if "hole" in changes:
                values[1] = None
            chains = {"accuracy_sampled": {"value": 0.25 * (number % 2) * (step > 0), "n": 4}}
            records.append(
                {"kind": "eval", "stage": stage, "stage_step": step, "metrics": chains,
                 "by_position": dict.fromkeys(METRICS, values)}
            )  # fmt: skip
        (place / "metrics.jsonl").write_text("\n".join(json.dumps(record) for record in records) + "\n")
    return folder


def test_read_demo(tmp_path):
    curves = read_demo(write_comparison(tmp_path))
    assert list(curves["end"]) == ["opd-f", "opd-r", "nail-f"]
    assert [curves[name] for name in ("num_actions", "length", "eta", "error", "steps", "prompts")] == [
        3, 4, 0.25, "other", 7, 4]  # fmt: skip
    loss = curves["end"]["opd-r"]["validation_loss_nats"]
    assert loss["by_seed"] == [[0.27, 0.271, 0.272, 0.273], [0.28, 0.281, 0.282, 0.283]]
    assert loss["mean"] == [0.275, 0.276, 0.277, 0.278]
    assert curves["start"]["accuracy_greedy"]["by_seed"][1][0] == 0.51
    assert curves["chains_right"]["nail-f"] == 1
    assert curves["num_chains"]["nail-f"] == 8
    json.dumps(curves)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"law": "additive"}, "'absorbing'.*found.*'additive'"),
        ({"methods": ["opd-f", "nail-f"]}, "methods opd-r expected, found"),
        ({"status": "failed"}, "cell opd-r, seed 0, expected, found it failed"),
        ({"hole": True}, r"4 finite values of accuracy_greedy by position expected, found \[3, 3\]"),
        ({"found": 3}, "4 finite values of accuracy_greedy by position expected, found"),
    ],
)
def test_read_demo_refuses(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_demo(write_comparison(tmp_path, **changes))


def test_read_demo_refuses_other_folders(tmp_path):
    with pytest.raises(ValueError, match=r"no finished comparison: compare.json expected"):
        experiment.run(settings=experiment.Settings(run_folder=str(tmp_path)))


def synthetic(method_right: dict[str, np.ndarray], num_actions: int = 3, eta: float = 0.2) -> dict:
    """Curves of two seeds that stand exactly where they are put."""
    length = len(next(iter(method_right.values())))

    def curve(right_T: np.ndarray) -> dict:
        loss = (-np.log(right_T)).tolist()
        half, rising = [0.5] * length, [0.4 + 0.1 * t for t in range(length)]
        return {
            "validation_loss_nats": {"by_seed": [loss, loss], "mean": loss},
            "accuracy_greedy": {"by_seed": [half, half], "mean": half},
            "accuracy_sampled": {"by_seed": [half, half], "mean": half},
            "expert_kl_nats": {"by_seed": [rising, rising], "mean": rising},
        }

    end = {method: curve(right_T) for method, right_T in method_right.items()}
    return {
        "num_actions": num_actions, "length": length, "eta": eta, "error": "other", "steps": 1, "prompts": 4,
        "seeds": [0, 1], "start": next(iter(end.values())), "end": end,
        "chains_right": dict.fromkeys(end, 1), "num_chains": dict.fromkeys(end, 8),
    }  # fmt: skip


def test_demo_measures():
    paths = {
        "opd-f": maps.forward_walk(0.8, 12, 3),
        "opd-r": maps.reverse_walk(math.log(8), 12, 3),
        "nail-f": maps.forward_walk(0.8, 12, 3, temperature=0),
        "kd": maps.offline_walk(0.8, 12, 3),
    }
    curves = synthetic({name: path.right_T for name, path in paths.items()})
    assert demo.gaps(curves, "opd-f")["opd-f"] == pytest.approx(0, abs=1e-12)
    expected = math.sqrt(np.mean((paths["opd-f"].right_T - paths["kd"].right_T) ** 2))
    assert demo.gaps(curves, "opd-f")["bc"] == pytest.approx(expected, abs=1e-12)
    assert demo.nearest_prefixes(curves) == (8, 8)
    swapped = synthetic({"opd-f": paths["kd"].right_T, "nail-f": paths["nail-f"].right_T})
    assert demo.nearest_prefixes(swapped) == (2, 4)
    late = synthetic({"opd-f": np.concatenate([[0.8, 0.8], paths["opd-f"].right_T[:10]])})
    assert demo.best_delay(late, "opd-f") == (2, pytest.approx(0, abs=1e-12))


def test_demo_rows_of_synthetic_curves():
    paths = demo.predicted(synthetic({"opd-f": np.full(6, 0.5)}))
    curves = synthetic({name: paths[demo.OWN_MAP[name]].right_T for name in ("opd-f", "opd-r", "nail-f")})
    rows = {row.claim.split(":")[0]: row for row in demo.rows(curves, curves)}
    blind = next(row for claim, row in rows.items() if "tell poisoned" in claim)
    # KL 0.5 nats at the second position, where a share 0.8 is clean: over the mixture's own divergence, by hand.
    mixed, q, u = law(0.8 * 0.8 + 0.2 / 3, 3), law(0.8, 3), [1 / 3] * 3
    assert blind.measured == pytest.approx(0.5 / (0.8 * kl(q, mixed) + 0.2 * kl(u, mixed)), abs=1e-9)
    walk = next(row for row in demo.rows(curves, curves) if "a walk" in row.claim)
    # Sampled accuracy was put at 0.5; the walk at p = 0.8, K = 3 is 1/3 + 2/3 0.7^t.
    gaps = [0.5 - 1 / 3 - 2 / 3 * 0.7**t for t in range(1, 7)]
    assert walk.measured == pytest.approx(math.sqrt(sum(gap**2 for gap in gaps) / 6), abs=1e-12)
    assert walk.bound == pytest.approx(0.3, abs=1e-12)
    chain = next(row for row in demo.rows(curves, curves) if "right chain" in row.claim)
    assert (chain.bound, chain.measured) == pytest.approx((0.8**6, 1 / 8), abs=1e-12)
    own = next(row for row in demo.rows(curves, curves) if "gap to its map (RMS)" in row.claim)
    assert own.measured == pytest.approx(0, abs=1e-12)
    assert own.bound == pytest.approx(demo.rms(paths["opd-f"].right_T - paths["bc"].right_T), abs=1e-12)


def test_shipped_curves_are_complete():
    for path, steps in ((SHIPPED_DEMO, 30), (SHIPPED_LONG, 200)):
        curves = load(path)
        assert (curves["num_actions"], curves["length"], curves["steps"]) == (3, 21, steps)
        for evaluation in (curves["start"], *curves["end"].values()):
            for name in METRICS:
                mean = np.mean(evaluation[name]["by_seed"], axis=0)
                # Five digits, before and after the mean: half a unit each, at most 5e-5 of a number.
                assert evaluation[name]["mean"] == pytest.approx(mean.tolist(), rel=1e-4)


@pytest.fixture(scope="module")
def outcome():
    return experiment.run(seed=3, settings=experiment.Settings(time_step=0.1, stall_factor=2.0))


def test_run_is_as_expected(outcome):
    assert [row.claim for row in outcome.rows if not row.is_as_expected] == []
    front = next(row for row in outcome.rows if "26 k" in row.claim)
    assert front.measured == pytest.approx(
        6600 / 275, abs=1e-12
    )  # sum of products over sum of squares, by hand
    assert sum(row.is_refuted for row in outcome.rows) == 6
    assert all(len(row.claim) <= 80 for row in outcome.rows)
    assert 6 <= len(outcome.rows) <= 25
    assert len(outcome.panels) == 4
    assert len(outcome.reading) <= 5
    json.dumps(outcome.as_record(), allow_nan=False)


def test_run_is_deterministic_and_reads_a_folder(outcome, tmp_path):
    settings = experiment.Settings(time_step=0.1, stall_factor=2.0)
    shares: list[float] = []
    again = experiment.run(seed=3, progress=shares.append, settings=settings)
    assert again.as_record() == outcome.as_record()
    assert shares == sorted(shares)
    assert shares[-1] == 1
    folder = write_comparison(tmp_path, length=6)
    own = experiment.run(
        settings=experiment.Settings(run_folder=str(folder), time_step=0.1, stall_factor=2.0)
    )
    assert own.panels[3].title.endswith("after 7 steps")
    assert own.settings["run_folder"] == str(folder)
