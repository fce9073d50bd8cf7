"""What the combination lock shows, as panels. Data only."""

from __future__ import annotations

from collections.abc import Sequence

from understudy.theory import lock
from understudy.theory.bounds import lock as bounds
from understudy.theory.lock_runs import LEARNERS, Found, Sizes, exact_errors
from understudy.theory.outcome import Line, Panel


def needed(
    target: float, rate: float, horizons: Sequence[int], cloning: dict[float, list[int]], mixture: list[int]
) -> Panel:
    """Trajectories for one error, by horizon; the online learners at one rate."""
    lines = []
    for eta, counts in cloning.items():
        limit = lock.arrivals_needed(target, eta)
        group = f"cloning {eta}"
        lines += [
            Line(label=f"noised cloning, eta = {eta:g}", x=horizons, y=counts, group=group),
            Line(label=f"lambda (1-eta)^-(H-1), eta = {eta:g}", x=horizons, role="predicted", group=group,
                 y=[limit / lock.reach(horizon, eta) for horizon in horizons]),
        ]  # fmt: skip
    online = lock.votes_needed(target, 1 - rate / 2, rate / 2)
    label = f"eta = {rate:g}"
    lines += [
        Line(label=f"NAIL, likeliest policy, {label} (formula without H)", x=[horizons[0], horizons[-1]],
             y=[online, online], role="predicted", group="likeliest"),
        Line(label=f"NAIL, returned mixture, {label}", x=horizons, y=mixture, group="mixture"),
        Line(label=f"offline lower bound, constant 1, {label}", x=horizons, role="bound", group="lower",
             y=[bounds.demonstrations_lower(horizon, rate, lock.KAPPA, target) for horizon in horizons]),
    ]  # fmt: skip
    return Panel(title=f"Trajectories for error {target:g}", x_label="horizon H",
                 y_label="trajectories n", y_scale="log", lines=lines)  # fmt: skip


def error_by_horizon(eta: float, sizes: Sizes, found: dict[int, dict[str, Found]]) -> Panel:
    """Real runs at every simulated horizon beside the exact errors."""
    shortest, longest = min(found), max(found)
    grid = sorted({shortest + round(i * (longest - shortest) / 16) for i in range(17)})
    exact = {horizon: exact_errors(horizon, eta, sizes) for horizon in grid}
    return Panel(title=f"P(wrong policy) by horizon, eta = {eta:g}", x_label="horizon H",
                 y_label="error probability", lines=_pairs(sizes, found, exact), y_limits=(0.0, 0.6))  # fmt: skip


def error_by_rate(horizon: int, sizes: Sizes, found: dict[float, dict[str, Found]]) -> Panel:
    """The same by the rate of the noise, at one horizon."""
    least, most = min(found), max(found)
    grid = [least + i * (most - least) / 20 for i in range(21)]
    exact = {eta: exact_errors(horizon, eta, sizes) for eta in grid}
    return Panel(title=f"P(wrong policy) by noise rate, H = {horizon}", x_label="noise rate eta",
                 y_label="error probability", lines=_pairs(sizes, found, exact), y_limits=(0.0, 0.6))  # fmt: skip


def _pairs(
    sizes: Sizes,
    found: dict[int, dict[str, Found]] | dict[float, dict[str, Found]],
    exact: dict[int, dict[str, float]] | dict[float, dict[str, float]],
) -> list[Line]:
    """A line of real runs with intervals and a dashed exact one for every learner."""
    labels = (sizes.num_demos, sizes.num_episodes, sizes.num_episodes, 2 * sizes.num_neil)
    lines = []
    for name, num in zip(LEARNERS, labels, strict=True):
        runs = [at[name] for at in found.values()]
        lines += [
            Line(label=f"{name}, n = {num}", x=list(found), y=[run.mean for run in runs],
                 low=[run.low for run in runs], high=[run.high for run in runs], group=name),
            Line(label=f"{name}, exact", x=list(exact), y=[at[name] for at in exact.values()], role="predicted",
                 group=name),
        ]  # fmt: skip
    return lines


def mixture(eta: float, horizons: Sequence[int]) -> Panel:
    """What the learning rate 1/H does to the returned mixture."""
    episodes = [1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000, 2000, 5000]
    long = horizons[-1]
    cases = [(horizon, None, f"rate 1/H, H = {horizon}") for horizon in (horizons[0], long)]
    lines = []
    for horizon, rate, name in [*cases, (long, 1.0, "rate 1, any H")]:
        distance_T, _ = lock.nail_by_episode(episodes[-1], horizon, eta, rate=rate)
        lines.append(
            Line(label=name, x=episodes, y=[float(distance_T[:n].mean()) for n in episodes], group=name)
        )
    lines.append(
        Line(label=f"Thm 8, constant 1, H = {long}", x=episodes, role="bound", group=f"rate 1/H, H = {long}",
             y=[min(1.0, bounds.nail_hellinger_sq(long, eta, 2, n)) for n in episodes])
    )  # fmt: skip
    return Panel(title=f"NAIL's returned mixture, eta = {eta:g}", x_label="episodes n", y_label="E D_H^2",
                 x_scale="log", y_scale="log", lines=lines)  # fmt: skip
