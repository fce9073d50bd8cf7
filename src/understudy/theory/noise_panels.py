"""What the worst cases look like: the panels of the experiment on clean and noisy distances. Data only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from understudy.theory import noise_geometry as geometry
from understudy.theory.bounds import noise as bounds
from understudy.theory.noise_worst_cases import Found
from understudy.theory.outcome import Cloud, Line, Panel


def floats(values: bounds.Number | Sequence[float]) -> list[float]:
    return [float(value) for value in np.atleast_1d(np.asarray(values))]


def one_step(eta: float, generator: np.random.Generator) -> Panel:
    """Clean / noisy distance of one step against kappa: random problems, the extremal one, both factors."""
    kappas = np.logspace(-2, 4, 25)
    thin = geometry.thin_leak(kappas, eta, 1e-8)
    reached = geometry.clean_distance(thin) / geometry.noisy_distance(thin)
    inst = geometry.random_instances(600, 1, 1, 3, (eta,), generator)
    noisy, kappa = geometry.noisy_distance(inst), geometry.kappa_of(inst)
    is_shown = (noisy > 1e-9) & (kappa > 1e-2) & (kappa < 1e4)
    ratio = geometry.clean_distance(inst)[is_shown] / noisy[is_shown]
    x = floats(kappas)
    return Panel(
        title=f"One step: what domination buys (eta {eta})",
        x_label="kappa: noise / (expert + student)",
        y_label="clean / noisy distance",
        x_scale="log",
        y_scale="log",
        clouds=[Cloud(label="random problems", x=floats(kappa[is_shown]), y=floats(ratio))],
        lines=[
            Line(label="thin leak", x=x, y=floats(reached), group="sharp"),
            Line(
                label="sharp factor",
                x=x,
                y=floats(bounds.sharp_step_factor(kappas, eta)),
                role="predicted",
                group="sharp",
            ),
            Line(label="Lemma 2", x=x, y=floats(bounds.step_factor(kappas, eta)), role="bound"),
        ],
    )


def tightness(found: Found, climb_horizons: Sequence[int], chain: dict[int, float]) -> Panel:
    """The largest left / right by inequality and horizon; 1 is the limit."""
    horizons = sorted(climb_horizons)
    lines = [
        Line(label=name, x=horizons, y=[found.largest[name, horizon] for horizon in horizons])
        for name in ("Thm 6, dominated", "Thm 6", "Thm 7, dominated", "Thm 7")
    ]
    scaled = np.array([1.0, *chain.values()]) / bounds.LABEL_FACTOR
    return Panel(
        title="How tight: largest left / right found",
        x_label="horizon H",
        y_label="left / right",
        x_scale="log",
        lines=[
            *lines,
            Line(label="Lemma 4 (chain)", x=[1, *chain], y=floats(scaled)),
            Line(label="limit", x=[1, max(chain)], y=[1.0, 1.0], role="bound"),
        ],
        y_limits=(0.0, 1.1),
    )


def hidden_leak(
    eta: float, leaks: Sequence[float], clean: np.ndarray, noisy: np.ndarray, factor: float
) -> Panel:
    """Even noise: the clean distance is of first order in the leak, the noisy one of second."""
    x, leak = floats(leaks), np.asarray(leaks)
    return Panel(
        title=f"Even noise hides a thin leak (eta {eta})",
        x_label="leak of the student",
        y_label="squared Hellinger distance",
        x_scale="log",
        y_scale="log",
        lines=[
            Line(label="clean", x=x, y=floats(clean), group="clean"),
            Line(label="leak / 2", x=x, y=floats(leak / 2), role="predicted", group="clean"),
            Line(label="noisy", x=x, y=floats(noisy), group="noisy"),
            Line(label="factor x leak^2", x=x, y=floats(factor * leak**2), role="predicted", group="noisy"),
        ],
    )


def drift(eta: float, leak: float, horizons: Sequence[int], ratio: np.ndarray, factor: float) -> Panel:
    """Noise on an action the expert never plays: the ratio grows like sqrt(H) until the clean distance saturates."""
    root = np.sqrt(np.asarray(horizons, dtype=float))
    x = floats(horizons)
    return Panel(
        title=f"Noise on a forbidden action costs sqrt(H) (eta {eta})",
        x_label="horizon H",
        y_label="clean / root of noisy label distance",
        x_scale="log",
        y_scale="log",
        lines=[
            Line(label=f"leak {leak:g}", x=x, y=floats(ratio), group="drift"),
            Line(
                label="sqrt(2 eta H / (1 - eta))",
                x=x,
                y=floats(factor * root),
                role="predicted",
                group="drift",
            ),
            Line(
                label="Thm 7 with our constant: 9/2 sqrt(2 H) / (1 - eta)",
                x=x,
                y=floats(bounds.online_bound(1.0, eta, np.asarray(horizons))),
                role="bound",
            ),
        ],
    )
