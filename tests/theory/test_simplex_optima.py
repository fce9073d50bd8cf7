"""The best row for several laws at once: against bisection, random rows and difference quotients in Python floats."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from understudy.theory.simplex_optima import RowProblem, derivative, kkt_residual, objective, row_optimum

LOSSES = ("forward", "reverse", "mixed", "jsd", "known")
FLOOR = 1e-10


def kl(a, b) -> float:
    return math.fsum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)


def loss_of(loss: str, q, p, beta: float, rate: float) -> float:
    floored = [max(x, FLOOR) for x in q]
    if loss == "forward":
        return kl(q, p)
    if loss == "reverse":
        return kl(p, floored)
    if loss == "mixed":
        return (1 - beta) * kl(q, p) + beta * kl(p, floored)
    if loss == "jsd":
        middle = [beta * x + (1 - beta) * y for x, y in zip(q, p, strict=True)]
        return beta * kl(q, middle) + (1 - beta) * kl(p, middle)
    return kl(q, [(1 - rate) * y + rate / len(p) for y in p])


def least_of_two(loss: str, laws, weights, beta: float, rate: float) -> float:
    """p of the first of two tokens: bisection on the sign of a difference quotient of the summed loss."""

    def slope(p: float) -> float:
        # The derivative of a sum of terms x log y, each written out: no cancellation of nearby values.
        found = 0.0
        for q, w in zip(laws, weights, strict=True):
            for x, y, sign in ((q[0], p, 1), (q[1], 1 - p, -1)):
                m = beta * x + (1 - beta) * y
                found += (
                    sign
                    * w
                    * {
                        "forward": -x / y,
                        "reverse": math.log(y / max(x, FLOOR)),
                        "mixed": -(1 - beta) * x / y + beta * math.log(y / max(x, FLOOR)),
                        "jsd": (1 - beta) * math.log(y / m),
                        "known": -(1 - rate) * x / ((1 - rate) * y + rate / 2),
                    }[loss]
                )
        return found

    low, high = 1e-15, 1 - 1e-15
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return (low + high) / 2


@pytest.mark.parametrize("loss", LOSSES)
def test_a_row_of_two_tokens_is_where_the_slope_vanishes(loss):
    generator = np.random.default_rng(3)
    for _ in range(20):
        laws = generator.dirichlet([0.7, 0.7], size=3)
        weights = generator.dirichlet([1.0, 1.0, 1.0])
        beta, rate = generator.uniform(0.1, 0.9), generator.uniform(0, 0.6)
        problem = RowProblem(loss=loss, weight_Rn=5 * weights[None], law_RnV=laws[None], beta=beta, rate=rate)
        row_RV, residual_R = row_optimum(problem)
        expected = least_of_two(loss, laws.tolist(), weights.tolist(), beta, rate)
        assert row_RV[0, 0] == pytest.approx(expected, abs=1e-9)
        assert residual_R[0] < 1e-8
        value = math.fsum(
            w * loss_of(loss, q, row_RV[0].tolist(), beta, rate)
            for q, w in zip(laws.tolist(), weights.tolist(), strict=True)
        )
        assert objective(problem, row_RV)[0] == pytest.approx(value, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_row_of_four_tokens_is_better(loss):
    """Against random rows near and far, by the oracle's values; and the swapped optimum is worse, so the test can fail."""
    generator = np.random.default_rng(4)
    laws, weights = generator.dirichlet([0.5] * 4, size=5), generator.dirichlet([1.0] * 5)

    def total(row) -> float:
        return math.fsum(
            w * loss_of(loss, q, list(row), 0.3, 0.25)
            for q, w in zip(laws.tolist(), weights.tolist(), strict=True)
        )

    problem = RowProblem(loss=loss, weight_Rn=weights[None], law_RnV=laws[None], beta=0.3, rate=0.25)
    best, _ = row_optimum(problem)
    least = total(best[0])
    for scale in (1e-3, 1e-2, 0.1, 1.0):
        for _ in range(50):
            assert total((1 - scale) * best[0] + scale * generator.dirichlet([1.0] * 4)) >= least - 1e-13
    swapped = replace(problem, loss="reverse" if loss == "forward" else "forward")
    assert total(row_optimum(swapped)[0][0]) > least + 1e-5


@pytest.mark.parametrize("loss", LOSSES)
def test_derivative_is_that_of_the_oracle(loss):
    generator = np.random.default_rng(6)
    laws, row = generator.dirichlet([1.0] * 3, size=2), generator.dirichlet([3.0] * 3)
    problem = RowProblem(
        loss=loss, weight_Rn=np.array([[0.25, 0.75]]), law_RnV=laws[None], beta=0.3, rate=0.25
    )
    slope_V = derivative(problem, row[None])[0]

    def total(p) -> float:
        return math.fsum(
            w * loss_of(loss, q, list(p), 0.3, 0.25) for q, w in zip(laws, (0.25, 0.75), strict=True)
        )

    for v, u in ((0, 1), (1, 2)):
        step = np.zeros(3)
        step[v], step[u] = 1e-6, -1e-6
        # Central difference: error 1e-12 of truncation and 1e-10 of rounding, relative to slopes of order one.
        found = (total(row + step) - total(row - step)) / 2e-6
        assert slope_V[v] - slope_V[u] == pytest.approx(found, abs=1e-8)


def test_water_filling_by_hand():
    """Rate 1/2, V = 4, level 1/4 / (1 - 1/2) / 2 = 1/4: means .7, .3, 0, 0 fill two tokens at the price 1 / (1 + 1/2)."""
    problem = RowProblem(
        loss="known",
        weight_Rn=np.ones((2, 1)),
        law_RnV=np.array([[[0.7, 0.3, 0.0, 0.0]], [[0.95, 0.05, 0.0, 0.0]]]),
        rate=0.5,
    )
    row_RV, residual_R = row_optimum(problem)
    assert row_RV[0].tolist() == pytest.approx([0.7 * 1.5 - 0.25, 0.3 * 1.5 - 0.25, 0, 0], abs=1e-15)
    assert row_RV[1].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert residual_R.max() < 1e-15


def test_floor_by_hand():
    """One law forbids the second token, the other is even: sqrt(1e-10 / 1) = 1e-5 to one."""
    laws = np.array([[[1.0, 0.0], [0.5, 0.5]]])
    row_RV, _ = row_optimum(RowProblem(loss="reverse", weight_Rn=np.ones((1, 2)), law_RnV=laws))
    assert row_RV[0, 1] / row_RV[0, 0] == pytest.approx(1e-5, rel=1e-12)


def test_residual_of_what_is_not_optimal():
    laws = np.array([[[0.8, 0.2], [0.5, 0.5]]])
    problem = RowProblem(loss="reverse", weight_Rn=np.ones((1, 2)), law_RnV=laws)
    assert kkt_residual(problem, problem.mean_RV)[0] > 0.01
    # On the boundary: all on the wrong token, where the other one would lower the loss.
    known = RowProblem(loss="known", weight_Rn=np.ones((1, 2)), law_RnV=laws, rate=0.3)
    assert kkt_residual(known, np.array([[0.0, 1.0]]))[0] > 1


def test_a_token_that_no_expert_emits():
    """The JSD gives it nothing; the reverse part of the mixture its floor: log p_2 / p_0 is that of one equation in p_2."""
    laws = np.array([[[0.6, 0.4, 0.0]]])
    jsd_RV, residual_R = row_optimum(
        RowProblem(loss="jsd", weight_Rn=np.ones((1, 1)), law_RnV=laws, beta=0.3)
    )
    assert jsd_RV[0].tolist() == pytest.approx([0.6, 0.4, 0.0], abs=1e-12)
    assert residual_R[0] < 1e-10
    mixed_RV, residual_R = row_optimum(
        RowProblem(loss="mixed", weight_Rn=np.ones((1, 1)), law_RnV=laws, beta=0.3)
    )
    # Where p = q up to 1e-10 both parts have slope -(1 - b) + b on the emitted tokens, and b (log(p / 1e-10) + 1) here.
    assert mixed_RV[0, 2] == pytest.approx(1e-10 * math.exp(-(1 - 0.3) / 0.3), rel=1e-6)
    assert residual_R[0] < 1e-10


def test_bad_problems():
    laws = np.full((1, 1, 2), 0.5)
    with pytest.raises(ValueError, match=r"beta must be in \(0, 1\), got 1"):
        RowProblem(loss="jsd", weight_Rn=np.ones((1, 1)), law_RnV=laws, beta=1.0)
    with pytest.raises(ValueError, match="one is positive"):
        RowProblem(loss="forward", weight_Rn=np.zeros((1, 1)), law_RnV=laws)
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got 1"):
        RowProblem(loss="known", weight_Rn=np.ones((1, 1)), law_RnV=laws, rate=1.0)
