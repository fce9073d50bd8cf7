"""Gaussian projections: the KL against quadrature, the closed forms by hand, the experiment."""

import json
import math

import numpy as np
import pytest

from understudy.theory.experiments.gaussian import Settings, correlated, run
from understudy.theory.gaussian import (
    Direction,
    closed_form_projection,
    gaussian_kl,
    level_curve,
    line_direction,
    numerical_projection,
    student_kl,
    value,
)

EXPERT = np.array([-2.0, 2.0])
EYE = np.eye(2)
SKEWED = np.array([[2.0, -0.7], [-0.7, 0.8]])


def phi(z):
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def log_density(points_ND, mean, cov):
    (a, b), (_, d) = cov
    det = a * d - b * b
    x, y = points_ND[:, 0] - mean[0], points_ND[:, 1] - mean[1]
    return -0.5 * (d * x * x - 2 * b * x * y + a * y * y) / det - math.log(2 * math.pi * math.sqrt(det))


def quadrature_kl(mean, cov, other_mean, other_cov):
    """The definition, summed on a grid: the trapezoid rule has spectral accuracy for what decays this fast."""
    step, reach = 0.1, 14.0
    axis = np.arange(-reach, reach + step / 2, step)
    points_ND = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    logp, other = log_density(points_ND, mean, cov), log_density(points_ND, other_mean, other_cov)
    return float((np.exp(logp) * (logp - other)).sum() * step * step)


@pytest.mark.parametrize(
    ("mean", "cov", "other_mean", "other_cov"),
    [
        ((0, 2), EYE, EXPERT, EYE),
        ((1.0, -0.5), EYE, EXPERT, SKEWED),
        (EXPERT, SKEWED, (0.3, 0.1), EYE),
        ((0.5, 1.0), correlated(0.9), EXPERT, SKEWED),
    ],
)
def test_kl_is_its_integral(mean, cov, other_mean, other_cov):
    expected = quadrature_kl(mean, cov, other_mean, other_cov)
    assert gaussian_kl(np.array(mean), cov, np.array(other_mean), other_cov) == pytest.approx(
        expected, abs=1e-9
    )


def test_student_kl_has_the_named_direction():
    along_D = line_direction(30)
    mean_D = 1.5 * along_D
    reverse = quadrature_kl(mean_D, EYE, EXPERT, SKEWED)
    forward = quadrature_kl(EXPERT, SKEWED, mean_D, EYE)
    assert abs(reverse - forward) > 0.1
    assert student_kl(1.5, along_D, EXPERT, SKEWED, "reverse") == pytest.approx(reverse, abs=1e-9)
    assert student_kl(1.5, along_D, EXPERT, SKEWED, "forward") == pytest.approx(forward, abs=1e-9)


@pytest.mark.parametrize("which", ["forward", "reverse"])
@pytest.mark.parametrize("angle", [0.0, 22.5, 45.0, 90.0, 130.0])
@pytest.mark.parametrize("cov", [EYE, SKEWED])
def test_projection_minimises_the_integral(which, angle, cov):
    along_D = line_direction(angle)

    def kl(position):
        student = (position * along_D, EYE)
        return (
            quadrature_kl(*student, EXPERT, cov)
            if which == "reverse"
            else quadrature_kl(EXPERT, cov, *student)
        )

    behind, here, ahead = kl(-2.0), kl(0.0), kl(2.0)
    # the vertex of the parabola through three points of the integral
    vertex = (behind - ahead) / (behind + ahead - 2 * here)
    for project in (numerical_projection, closed_form_projection):
        np.testing.assert_allclose(project(along_D, EXPERT, cov, which), vertex * along_D, atol=1e-8)


@pytest.mark.parametrize("which", ["forward", "reverse"])
@pytest.mark.parametrize("project", [numerical_projection, closed_form_projection])
def test_paper_by_hand(project, which):
    upright_D = project(line_direction(90), EXPERT, EYE, which)
    diagonal_D = project(line_direction(45), EXPERT, EYE, which)
    np.testing.assert_allclose(upright_D, [0, 2], atol=1e-12)
    np.testing.assert_allclose(diagonal_D, [0, 0], atol=1e-12)
    assert value(upright_D) == pytest.approx(0.9772498680518208, abs=1e-12)
    assert value(diagonal_D) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize(
    ("angle", "cov", "reverse_y", "forward_y"),
    [
        (90, correlated(0.5), 3.0, 2.0),  # E[y | x = 0] = 2 + 0.5 * 2
        (90, correlated(-0.5), 1.0, 2.0),
        (45, np.diag([4.0, 1.0]), 1.2, 0.0),  # (-2 / 4 + 2) / (1 / 4 + 1)
        (45, np.diag([1.0, 4.0]), -1.2, 0.0),
    ],
)
def test_other_covariances_by_hand(angle, cov, reverse_y, forward_y):
    expectations: list[tuple[Direction, float]] = [("reverse", reverse_y), ("forward", forward_y)]
    for which, expected in expectations:
        assert numerical_projection(line_direction(angle), EXPERT, cov, which)[1] == pytest.approx(
            expected, abs=1e-12
        )
        assert closed_form_projection(line_direction(angle), EXPERT, cov, which)[1] == pytest.approx(
            expected, abs=1e-12
        )


def test_value_is_the_mass_above_the_axis():
    assert value(np.array([5.0, 1.5])) == pytest.approx(phi(1.5), abs=1e-14)
    assert value(np.array([5.0, 1.5]), np.diag([1.0, 9.0])) == pytest.approx(phi(0.5), abs=1e-14)


def test_best_and_worst_line_of_all():
    def at(angle):
        radians = math.radians(angle)
        return phi((-2 * math.cos(radians) + 2 * math.sin(radians)) * math.sin(radians))

    every = [at(angle / 100) for angle in range(18_000)]
    assert max(every) == pytest.approx(phi(1 + math.sqrt(2)), abs=1e-12)
    assert every.index(max(every)) == 11_250
    assert min(every) == pytest.approx(phi(1 - math.sqrt(2)), abs=1e-12)
    assert every.index(min(every)) == 2_250
    for angle in (0.0, 33.0, 112.5, 171.0):
        found = value(closed_form_projection(line_direction(angle), EXPERT, EYE, "reverse"))
        assert found == pytest.approx(at(angle), abs=1e-12)


def test_level_curve_has_one_kl_and_touches_the_class():
    along_D = line_direction(45)
    picked_D = closed_form_projection(along_D, EXPERT, SKEWED, "reverse")
    least = gaussian_kl(picked_D, EYE, EXPERT, SKEWED)
    x, y = level_curve(EXPERT, SKEWED, picked_D)
    for point in zip(x, y, strict=True):
        assert gaussian_kl(np.array(point), EYE, EXPERT, SKEWED) == pytest.approx(least, abs=1e-9)
    assert (x[0], y[0]) == pytest.approx((x[-1], y[-1]))
    assert max(x) - min(x) == pytest.approx((max(y) - min(y)) * math.sqrt(2.0 / 0.8), rel=2e-3)
    assert all(
        student_kl(t, along_D, EXPERT, SKEWED, "reverse") >= least - 1e-12 for t in np.linspace(-9, 9, 181)
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_kl(EXPERT, EYE, EXPERT, np.array([[1.0, 2.0], [2.0, 1.0]])), "positive definite"),
        (lambda: gaussian_kl(EXPERT, np.array([[1.0, 0.5], [0.0, 1.0]]), EXPERT, EYE), "symmetric"),
        (lambda: closed_form_projection(line_direction(0), EXPERT, -EYE, "reverse"), "positive definite"),
        (lambda: closed_form_projection(line_direction(0), EXPERT, EYE, "sideways"), "direction must be"),  # pyright: ignore[reportArgumentType]
        (lambda: student_kl(0.0, line_direction(0), EXPERT, EYE, "sideways"), "direction must be"),  # pyright: ignore[reportArgumentType]
        (lambda: run(settings=Settings(correlation=1.0)), "correlation in"),
        (lambda: run(settings=Settings(variance_ratio=1.0)), "variance_ratio > 1"),
        (lambda: run(settings=Settings(expert_mean=(1.0, -1.0))), "mean_y > 0"),
    ],
)
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_experiment_holds_and_repeats():
    small = Settings(angle_step=22.5, num_random_experts=20)
    shares: list[float] = []
    outcome = run(0, shares.append, small)
    assert {row.holds for row in outcome.rows} == {"yes"}
    assert all(len(row.claim) < 80 for row in outcome.rows)
    assert 6 <= len(outcome.rows) <= 25
    assert shares == sorted(shares)
    assert shares[-1] == 1
    record = outcome.as_record()
    assert json.loads(json.dumps(record))["rows"] == record["rows"]
    assert run(0, settings=small).rows == outcome.rows


def test_experiment_rows_carry_the_numbers():
    rows = {row.claim: row for row in run(0, settings=Settings(angle_step=45, num_random_experts=5)).rows}
    difference = rows["A, correlation +0.5: V(reverse) - V(forward) = Phi(3) - Phi(2)"]
    assert difference.measured == pytest.approx(phi(3) - phi(2), abs=1e-12)
    assert rows["A, correlation -0.5: V(reverse) - V(forward) = Phi(1) - Phi(2)"].measured < -0.13
    best = next(row for claim, row in rows.items() if claim.startswith("The best line"))
    assert best.measured == pytest.approx(phi(1 + math.sqrt(2)), abs=1e-12)
    assert "(112.5 degrees)" in best.claim
    worse = next(row for claim, row in rows.items() if claim.startswith("B: its KL"))
    assert (worse.bound, worse.measured) == pytest.approx((4.0, 40.0), abs=1e-9)


def test_another_expert_and_its_classes():
    outcome = run(0, settings=Settings(expert_mean=(-1.0, 3.0), angle_step=45, num_random_experts=5))
    assert {row.holds for row in outcome.rows} == {"yes"}


def test_pictured_level_curves_have_one_kl():
    skewed = next(
        p for p in run(0, settings=Settings(angle_step=45, num_random_experts=5)).panels if "part" in p.title
    )
    picked = {cloud.group: np.array([cloud.x[0], cloud.y[0]]) for cloud in skewed.clouds}
    kls = {
        "forward": lambda mean_D: gaussian_kl(EXPERT, correlated(0.5), mean_D, EYE),
        "reverse": lambda mean_D: gaussian_kl(mean_D, EYE, EXPERT, correlated(0.5)),
    }
    curves = [line for line in skewed.lines if line.role == "bound"]
    assert len(curves) == 4
    for line in curves:
        kl = kls[line.group.split()[-1]]
        level = kl(picked[line.group])
        for point in zip(line.x, line.y, strict=True):
            assert kl(np.array(point)) == pytest.approx(level, abs=1e-9)
