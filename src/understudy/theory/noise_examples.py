"""The two families that show what noise hides: a thin leak under even noise, a drift under noise off the support."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import root_scalar

from understudy.theory import noise_geometry as geometry
from understudy.theory.outcome import Row

NAIL = "arXiv:2606.30923"


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The two families of the paper, measured."""

    clean_leak: np.ndarray
    noisy_leak: np.ndarray
    noisy_factor: float
    """Of leak^2, as the leak vanishes."""
    drift: np.ndarray
    """Clean distance / root of the noisy label distance, by horizon."""
    drift_factor: float
    """Of sqrt(H), while H leak is small."""


def measure(eta: float, leaks: Sequence[float], drift_leak: float, drift_horizons: Sequence[int]) -> Examples:
    """Both families, exactly."""
    eta_N = np.array([eta])
    even = [geometry.drift(1, eta_N, leak, (0.5, 0.5)) for leak in leaks]
    long = [geometry.drift(horizon, eta_N, drift_leak) for horizon in drift_horizons]
    return Examples(
        clean_leak=np.array([geometry.clean_distance(one)[0] for one in even]),
        noisy_leak=np.array([geometry.noisy_distance(one)[0] for one in even]),
        noisy_factor=(1 - eta) ** 2 / (2 * eta * (2 - eta)),
        drift=np.array(
            [geometry.clean_distance(x)[0] / np.sqrt(geometry.noisy_label_distance(x)[0]) for x in long]
        ),
        drift_factor=float(np.sqrt(2 * eta / (1 - eta))),
    )


def drift_rows(eta: float, drift_leak: float) -> list[Row]:
    """At a leak so small that nothing saturates, then where the growth ends."""
    horizons = np.array([1, 4, 16, 64, 256])
    eta_N = np.array([eta])
    thin = [geometry.drift(int(horizon), eta_N, 1e-7) for horizon in horizons]
    ratio = np.array(
        [geometry.clean_distance(x)[0] / np.sqrt(geometry.noisy_label_distance(x)[0]) for x in thin]
    )
    one = geometry.drift(1, eta_N, drift_leak)
    clean, noisy = geometry.clean_distance(one)[0], geometry.noisy_label_distance(one)[0]
    grid = np.arange(1, int(8 / drift_leak))
    # One state: the affinities multiply.
    whole = -np.expm1(grid * np.log1p(-clean)) / np.sqrt(-np.expm1(grid * np.log1p(-noisy)))
    peak = float(root_scalar(lambda x: np.exp(x / 2) - 1 - x, bracket=(1, 5)).root)
    return [
        Row(
            claim=f"Noise off the support: clean / root of noisy label distance ~ H^0.5, eta {eta}",
            source=f"{NAIL} Prop 20",
            relation="=",
            bound=0.5,
            measured=float(np.polyfit(np.log(horizons), np.log(ratio), 1)[0]),
            tolerance=1e-4,
            num=len(horizons),
            note=f"Its factor is {ratio[-1] / np.sqrt(horizons[-1]):.4f}, and sqrt(2 eta / (1 - eta)) = "
            f"{np.sqrt(2 * eta / (1 - eta)):.4f}: sqrt(eta (1 - eta)) of what Lemma 3 allows.",
        ),
        Row(
            claim=f"The growth ends where exp(H leak / 2) = 1 + H leak, leak {drift_leak:g}",
            source="DERIVED",
            relation="=",
            bound=peak,
            measured=float(grid[whole.argmax()] * drift_leak),
            tolerance=10 * drift_leak,
            num=len(grid),
            note="Past it the clean distance is near 1 and the ratio falls. The leak is finite: the place moves by O(leak).",
        ),
    ]


def leak_rows(eta: float, leaks: Sequence[float], shown: Examples) -> list[Row]:
    """Orders and constants as the leak vanishes."""
    leak_L = np.asarray(leaks)
    is_thin = leak_L <= 1e-4
    log_clean, log_noisy = np.log(shown.clean_leak[is_thin]), np.log(shown.noisy_leak[is_thin])
    return [
        Row(
            claim=f"Even noise on a thin leak: the noisy distance falls as (clean)^2, eta {eta}",
            source=f"{NAIL} (why kappa matters)",
            relation="=",
            bound=2.0,
            measured=float(np.polyfit(log_clean, log_noisy, 1)[0]),
            tolerance=1e-3,
            num=int(is_thin.sum()),
            note=f"Clean distance / leak: {shown.clean_leak[0] / leaks[0]:.6f}.",
        ),
        Row(
            claim="Its factor: noisy = (1 - eta)^2 / (2 eta (2 - eta)) leak^2",
            source="DERIVED",
            relation="=",
            bound=shown.noisy_factor,
            measured=float(shown.noisy_leak[0] / leaks[0] ** 2),
            tolerance=20 * leaks[0] / eta,
            num=1,
        ),
    ]
