"""The mean-field maps against brute force: explicit minimisation, explicit prefix trees, explicit residue walks."""

from __future__ import annotations

import itertools
import json
import math
from decimal import Decimal

import numpy as np
import pytest
from scipy import optimize

from understudy.theory import mean_field as maps
from understudy.theory.experiments import mean_field as experiment
from understudy.theory.mean_field_front import argmax_share, learning_time

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


def test_exact_margins():
    """Two positions by hand, and the float's signal at the first nine, where the difference p - 1/K is not lost."""
    first, second = maps.exact_margins(0.75, 2, 3)
    assert (first, second) == (Decimal("0.625"), (3 * (Decimal("0.75") ** 2 + Decimal("0.25") / 3) - 1) / 2)
    path = maps.forward_walk(RIGHT, 9, 7)
    by_float = [p - (1 - p) / 6 for p in path.right_T]
    assert [float(e) for e in maps.exact_margins(RIGHT, 9, 7)] == pytest.approx(by_float, abs=1e-14)


@pytest.fixture(scope="module")
def outcome():
    return experiment.run(seed=3, settings=experiment.Settings(time_step=0.1, stall_factor=2.0))


def test_run_is_as_expected(outcome):
    assert [row.claim for row in outcome.rows if not row.is_as_expected] == []
    assert sum(row.is_refuted for row in outcome.rows) == 8
    assert all(len(row.claim) < 85 for row in outcome.rows)
    assert 6 <= len(outcome.rows) <= 29
    assert len(outcome.panels) == 4
    assert len(outcome.reading) <= 5
    assert "above 0.67 greedy prefixes stop short" in outcome.reading[1]
    assert "4 of 9 runs" in outcome.reading[4]
    assert outcome.reading[4].endswith("to 0.758, still falling.")
    json.dumps(outcome.as_record(), allow_nan=False)


def test_run_is_deterministic(outcome):
    shares: list[float] = []
    settings = experiment.Settings(time_step=0.1, stall_factor=2.0)
    again = experiment.run(seed=3, progress=shares.append, settings=settings)
    assert again.as_record() == outcome.as_record()
    assert shares == sorted(shares)
    assert shares[-1] == 1
