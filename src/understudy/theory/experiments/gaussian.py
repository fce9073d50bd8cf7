"""Which student imitation picks when the expert cannot be represented, and what it is worth (arXiv:2606.30445 Fig. 4).

D = 2: actions (x, y), reward where y >= 0. Students are N(mean, I) with the mean on a line through the origin.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from scipy import stats

from understudy.theory.gaussian import (
    IDENTITY,
    Direction,
    closed_form_projection,
    level_curve,
    line_direction,
    numerical_projection,
    student_kl,
    value,
)
from understudy.theory.outcome import Area, Cloud, Line, Outcome, Panel, Progress, Row, silent

FIGURE = "arXiv:2606.30445 Fig. 4"
EXPERIMENT_ID = 1102

Array = np.ndarray

BOTH: tuple[Direction, Direction] = ("forward", "reverse")
UPRIGHT, DIAGONAL = 90.0, 45.0
"""Angles of the classes: A has mean_x = 0, B has mean_y = mean_x."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The expert and the grids."""

    expert_mean: tuple[float, float] = (-2.0, 2.0)
    angle_step: float = 5.0
    """Degrees between numerically projected lines."""
    correlation: float = 0.5
    """Of the expert whose covariance differs from the students' (variances 1); both signs are run."""
    variance_ratio: float = 4.0
    """Of the expert that is wider along one axis; both axes are run."""
    num_random_experts: int = 200
    """Random means and covariances on which the two closed forms are checked."""


def correlated(rho: float) -> Array:
    """Covariance [D, D] with unit variances and this correlation."""
    return np.array([[1.0, rho], [rho, 1.0]])


def paper_rows(settings: Settings) -> list[Row]:
    """The two classes of the figure: projections, values, and what the projection leaves on the table."""
    mean_D = np.array(settings.expert_mean)
    rows = []
    for name, angle, value_printed in (
        ("A (mean_x = 0)", UPRIGHT, 0.97725),
        ("B (mean_y = mean_x)", DIAGONAL, 0.5),
    ):
        along_D = line_direction(angle)
        nearest_D = float(mean_D @ along_D) * along_D
        where_D = np.round(nearest_D, 12) + 0.0  # -0 and 1e-16 are 0 to a reader
        found = {which: numerical_projection(along_D, mean_D, IDENTITY, which) for which in BOTH}
        rows += [
            Row(
                claim=f"{name}: least {which} KL picks the nearest mean, ({where_D[0]:.3g}, {where_D[1]:.3g})",
                source=FIGURE if which == "reverse" else "DERIVED",
                relation="=",
                bound=0.0,
                measured=float(np.linalg.norm(found[which] - nearest_D)),
                tolerance=1e-9,
                note="Distance between the numerical minimum of the KL and the Euclidean projection.",
            )
            for which in BOTH
        ]
        if settings.expert_mean == (-2.0, 2.0):
            rows.append(
                Row(
                    claim=f"{name}: value of the projection is {value_printed:g}",
                    source=FIGURE,
                    relation="=",
                    bound=value_printed,
                    measured=value(found["reverse"]),
                    tolerance=5e-6,
                    note="Phi(mean_y), to five digits.",
                )
            )
    return rows + best_member_rows(mean_D)


def best_member_rows(mean_D: Array) -> list[Row]:
    """The KL takes the nearest member, not the best: in B, as in A, values come as near to 1 as one likes."""
    along_D = line_direction(DIAGONAL)
    nearest_D = closed_form_projection(along_D, mean_D, IDENTITY, "reverse")
    far_D = 6 * math.sqrt(2) * along_D
    far_kl = student_kl(6 * math.sqrt(2), along_D, mean_D, IDENTITY, "reverse")
    nearest_kl = 0.5 * float((nearest_D - mean_D) @ (nearest_D - mean_D))
    return [
        Row(
            claim="B holds a member of value > 1 - 1e-8: the mean (6, 6)",
            source="DERIVED",
            relation=">=",
            bound=1 - 1e-8,
            measured=value(far_D),
            note="The supremum of the value is 1 in both classes, so what is lost is lost by the choice, not by the class.",
        ),
        Row(
            claim="B: its KL to the expert is larger than that of the projection",
            source="DERIVED",
            relation=">=",
            bound=nearest_kl,
            measured=far_kl,
            note="In nats. Imitation picks the nearest member, not the best.",
        ),
    ]


def angle_rows(settings: Settings, progress: Progress) -> list[Row]:
    """Every line through the origin: numerical projections against the closed form, best and worst class."""
    mean_D = np.array(settings.expert_mean)
    radius, expert_angle = float(np.linalg.norm(mean_D)), math.atan2(mean_D[1], mean_D[0])
    angles = np.arange(0.0, 180.0, settings.angle_step)
    gaps = []
    for step, angle in enumerate(angles):
        # y of the projection: |m| cos(a - a_m) sin(a) = |m|/2 (sin(2 a - a_m) + sin a_m)
        height = radius / 2 * (math.sin(2 * math.radians(angle) - expert_angle) + math.sin(expert_angle))
        expected = float(stats.norm.cdf(height))
        gaps += [
            abs(value(numerical_projection(line_direction(angle), mean_D, IDENTITY, which)) - expected)
            for which in BOTH
        ]
        progress(0.1 + 0.5 * (step + 1) / len(angles))
    best = math.degrees(expert_angle) / 2 + 45
    expert_value = value(mean_D)

    def at(angle: float) -> float:
        return value(numerical_projection(line_direction(angle), mean_D, IDENTITY, "reverse"))

    top, bottom = (radius + mean_D[1]) / 2, (mean_D[1] - radius) / 2
    return [
        Row(
            claim="Line at angle a: value = Phi(|m|/2 (sin(2a - a_m) + sin a_m)), both KLs",
            source="DERIVED",
            relation="=",
            bound=0.0,
            measured=max(gaps),
            num=len(gaps),
            tolerance=1e-9,
            note="Largest difference over the lines; m is the expert's mean, a_m its angle.",
        ),
        Row(
            claim=f"The best line ({best % 180:g} degrees): the student is worth Phi((|m| + m_y)/2)",
            source="DERIVED",
            relation="=",
            bound=float(stats.norm.cdf(top)),
            measured=at(best),
            tolerance=1e-9,
        ),
        Row(
            claim="That student, which imitates only, is at least as good as its expert",
            source="DERIVED",
            relation=">=",
            bound=expert_value,
            measured=at(best),
            note="The bound is the value of the expert. Misspecification may help as well as harm.",
        ),
        Row(
            claim=f"The worst line ({(best + 90) % 180:g} degrees): the student is worth Phi((m_y - |m|)/2)",
            source="DERIVED",
            relation="=",
            bound=float(stats.norm.cdf(bottom)),
            measured=at(best + 90),
            tolerance=1e-9,
            note="Below 1/2, the value of a coin: the student at the origin is better.",
        ),
    ]


def covariance_rows(settings: Settings) -> list[Row]:
    """Experts of another covariance: forward and reverse KL choose differently, and either may be the better."""
    mean_D = np.array(settings.expert_mean)
    x, y = settings.expert_mean
    rho, ratio = settings.correlation, settings.variance_ratio
    # Reverse, A: the expert's mean of y given x = 0. Reverse, B: m weighted by the precisions of x and y.
    cases = [
        (f"A, correlation {rho:+g}", UPRIGHT, correlated(rho), y - rho * x, y),
        (f"A, correlation {-rho:+g}", UPRIGHT, correlated(-rho), y + rho * x, y),
        (
            f"B, {ratio:g} x variance in x",
            DIAGONAL,
            np.diag([ratio, 1.0]),
            (x / ratio + y) / (1 / ratio + 1),
            (x + y) / 2,
        ),
        (
            f"B, {ratio:g} x variance in y",
            DIAGONAL,
            np.diag([1.0, ratio]),
            (x + y / ratio) / (1 / ratio + 1),
            (x + y) / 2,
        ),
    ]
    rows = []
    for name, angle, cov_DD, reverse_y, forward_y in cases:
        along_D = line_direction(angle)
        forward, reverse = (value(numerical_projection(along_D, mean_D, cov_DD, which)) for which in BOTH)
        rows.append(
            Row(
                claim=f"{name}: V(reverse) - V(forward) = Phi({reverse_y:.3g}) - Phi({forward_y:.3g})",
                source="DERIVED",
                relation="=",
                bound=float(stats.norm.cdf(reverse_y)) - float(stats.norm.cdf(forward_y)),
                measured=reverse - forward,
                tolerance=1e-9,
                note=f"Forward {forward:.5f}, reverse {reverse:.5f}, the expert itself {value(mean_D, cov_DD):.5f}.",
            )
        )
    return rows


def random_expert_rows(settings: Settings, rng: np.random.Generator) -> list[Row]:
    """The two closed forms on random experts and lines, and that forward KL does not see the covariance."""
    gaps: dict[Direction, list[float]] = {"forward": [], "reverse": []}
    for _ in range(settings.num_random_experts):
        mean_D, factor_DD = rng.normal(scale=2, size=2), rng.normal(size=(2, 2))
        cov_DD = factor_DD @ factor_DD.T + 0.1 * IDENTITY
        along_D = line_direction(rng.uniform(0, 180))
        metric = {"forward": IDENTITY, "reverse": np.linalg.inv(cov_DD)}
        for which in BOTH:
            weight_D = metric[which] @ along_D
            expected_D = (mean_D @ weight_D) / (along_D @ weight_D) * along_D
            found_D = numerical_projection(along_D, mean_D, cov_DD, which)
            gaps[which].append(float(np.abs(found_D - expected_D).max()))
    claims: dict[Direction, str] = {
        "forward": "Any expert covariance: forward KL picks the nearest mean, blind to covariance",
        "reverse": "Any expert covariance S: reverse KL picks the nearest mean in the metric S^-1",
    }
    exact = partial(
        Row, source="DERIVED", relation="=", bound=0.0, tolerance=1e-9, note="Largest distance of means."
    )
    return [
        exact(claim=claims[which], measured=max(gaps[which]), num=settings.num_random_experts)
        for which in BOTH
    ]


def plane_panel(settings: Settings, cov_DD: Array, title: str, directions: tuple[Direction, ...]) -> Panel:
    """The plane: rewarded half, the two classes, the expert, its level curves through what each KL picks."""
    mean_D = np.array(settings.expert_mean)
    reach = 1.6 * float(np.linalg.norm(mean_D))
    lines, clouds = [], [Cloud(label="expert", x=[float(mean_D[0])], y=[float(mean_D[1])], group="expert")]
    for name, angle in (("class A", UPRIGHT), ("class B", DIAGONAL)):
        along_D = line_direction(angle)
        ends = [(sign * 2 * reach * along_D).tolist() for sign in (-1, 1)]
        lines.append(
            Line(label=name, x=[e[0] for e in ends], y=[e[1] for e in ends], role="predicted", group=name)
        )
        for which in directions:
            picked_D = closed_form_projection(along_D, mean_D, cov_DD, which)
            kind = f"{which} KL" if len(directions) > 1 else "either KL"
            label = f"{name}, {kind}: V = {value(picked_D):.3f}"
            clouds.append(
                Cloud(label=label, x=[float(picked_D[0])], y=[float(picked_D[1])], group=f"{name} {which}")
            )
            x, y = level_curve(mean_D, cov_DD if which == "reverse" else IDENTITY, picked_D)
            lines.append(Line(label=f"equal {kind}, {name}", x=x, y=y, role="bound", group=f"{name} {which}"))
    return Panel(
        title=title,
        x_label="x",
        y_label="y",
        lines=lines,
        clouds=clouds,
        areas=[Area(label="reward 1 (y >= 0)", x=[-reach, reach, reach, -reach], y=[0.0, 0.0, reach, reach])],
        x_limits=(-reach, reach),
        y_limits=(-reach, reach),
        has_equal_axes=True,
    )


def angle_panel(settings: Settings) -> Panel:
    """Value of what imitation picks against the angle of the class."""
    mean_D = np.array(settings.expert_mean)
    rho = settings.correlation
    dense = np.linspace(0, 180, 181).tolist()
    coarse = np.arange(0.0, 180.0 + settings.angle_step / 2, settings.angle_step).tolist()
    lines = []
    cases: list[tuple[str, Array, Direction]] = [
        ("either KL, equal covariances", IDENTITY, "reverse"),
        (f"reverse KL, expert correlation {rho:+g}", correlated(rho), "reverse"),
        (f"reverse KL, expert correlation {-rho:+g}", correlated(-rho), "reverse"),
    ]
    for label, cov_DD, which in cases:
        closed = [value(closed_form_projection(line_direction(a), mean_D, cov_DD, which)) for a in dense]
        found = [value(numerical_projection(line_direction(a), mean_D, cov_DD, which)) for a in coarse]
        lines += [
            Line(label=label, x=coarse, y=found, group=label),
            Line(label=f"{label} (closed form)", x=dense, y=closed, role="predicted", group=label),
        ]
    expert_value = value(mean_D)
    lines.append(
        Line(label="the expert itself", x=[0.0, 180.0], y=[expert_value] * 2, role="bound", group="expert")
    )
    return Panel(
        title="What imitation picks, by the angle of the class",
        x_label="angle of the line of student means (degrees; A = 90, B = 45)",
        y_label="value V",
        lines=lines,
        y_limits=(0.0, 1.02),
    )


def correlation_panel(settings: Settings) -> Panel:
    """Class A: value of the two choices against the correlation of the expert."""
    mean_D, along_D = np.array(settings.expert_mean), line_direction(UPRIGHT)
    rhos = np.linspace(-0.95, 0.95, 39).tolist()
    lines = []
    for which in BOTH:
        found = [value(numerical_projection(along_D, mean_D, correlated(rho), which)) for rho in rhos]
        closed = [value(closed_form_projection(along_D, mean_D, correlated(rho), which)) for rho in rhos]
        lines += [
            Line(label=f"{which} KL", x=rhos, y=found, group=which),
            Line(label=f"{which} KL (closed form)", x=rhos, y=closed, role="predicted", group=which),
        ]
    return Panel(
        title="Class A: the two KLs part when the covariances do",
        x_label="correlation of x and y in the expert",
        y_label="value V of the student picked",
        lines=lines,
    )


def reading(settings: Settings) -> tuple[str, ...]:
    """What the numbers say."""
    mean_D = np.array(settings.expert_mean)
    rho = settings.correlation

    def worth(angle: float, cov_DD: Array = IDENTITY) -> float:
        return value(closed_form_projection(line_direction(angle), mean_D, cov_DD, "reverse"))

    best = math.degrees(math.atan2(mean_D[1], mean_D[0])) / 2 + 45
    return (
        f"The expert is worth {value(mean_D):.5f}. Its nearest student is worth {worth(UPRIGHT):.5f} in class A and "
        f"{worth(DIAGONAL):.5f} in class B, though both classes hold students of value as near to 1 as one likes.",
        "With equal covariances forward and reverse KL pick the same student, the one with the nearest mean: no choice of "
        "the divergence repairs class B.",
        f"Over all lines the picked student ranges from {worth(best + 90):.4f} to {worth(best):.4f}: imitation of an expert "
        "one cannot represent may end below a coin flip, or above the expert.",
        f"If x and y are correlated in the expert, reverse KL in class A gives {worth(UPRIGHT, correlated(rho)):.4f} at "
        f"{rho:+g} and {worth(UPRIGHT, correlated(-rho)):.4f} at {-rho:+g}, forward KL {worth(UPRIGHT):.4f} at both: neither "
        "direction is the better one in general.",
    )


def run(seed: int = 0, progress: Progress = silent, settings: Settings = Settings()) -> Outcome:
    """Projections of a Gaussian expert on classes of students, numerically and in closed form, with their values.

    Raises:
        ValueError: a correlation not in (0, 1), a variance ratio not above 1, an angle step not in (0, 90], or an expert
            whose mean is not of value above 1/2.
    """
    if not (0 < settings.correlation < 1 and settings.variance_ratio > 1 and 0 < settings.angle_step <= 90):
        raise ValueError(
            "correlation in (0, 1), variance_ratio > 1 and angle_step in (0, 90] expected, got "
            f"{settings.correlation}, {settings.variance_ratio} and {settings.angle_step}."
        )
    if settings.expert_mean[1] <= 0:
        raise ValueError(f"an expert with mean_y > 0 expected, got the mean {settings.expert_mean}.")
    rng = np.random.default_rng([seed, EXPERIMENT_ID])
    rows = paper_rows(settings)
    progress(0.1)
    rows += angle_rows(settings, progress) + covariance_rows(settings)
    rows += random_expert_rows(settings, rng)
    progress(0.8)
    rho = settings.correlation
    panels = (
        plane_panel(settings, IDENTITY, "Equal covariances: both KLs pick the nearest mean", ("reverse",)),
        plane_panel(settings, correlated(rho), f"Expert with correlation {rho:+g}: the KLs part", BOTH),
        angle_panel(settings),
        correlation_panel(settings),
    )
    progress(1.0)
    return Outcome(rows=tuple(rows), panels=panels, reading=reading(settings), settings=asdict(settings))
