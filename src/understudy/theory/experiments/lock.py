"""The combination lock: noise rolled into demonstrations costs (1 - eta)^-H; labels at the learner's own states do not."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from understudy.theory import learners, lock, mdp
from understudy.theory.bounds import lock as bounds
from understudy.theory.bounds import nailgun as vote_bounds
from understudy.theory.intervals import bounded_mean_interval
from understudy.theory.outcome import Line, Outcome, Panel, Progress, Row, silent

Array = np.ndarray

PAPER = "arXiv:2606.30923"
STREAM = 3092301


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the lock experiment."""

    etas: tuple[float, ...] = (0.1, 0.2, 0.3)
    """Noise rates of the exact sweeps."""
    horizons: tuple[int, ...] = (4, 8, 16, 24, 32, 48, 64)
    """Horizons of the exact sweeps, ascending; laws of growth are fitted on the second half."""
    eta: float = 0.2
    """Noise rate where real learners run, and of the panels that show one rate."""
    simulated_horizons: tuple[int, ...] = (8, 16, 32)
    num_demos: int = 100
    """Demonstrations of the simulated offline learners."""
    num_episodes: int = 10
    """Episodes of the simulated online learners; NEIL plays half of them with each policy."""
    num_runs: int = 2000
    """Independent runs of every simulated learner."""
    num_digits: int = 4
    """Digits of the larger lock: 2^digits policies."""
    target: float = 0.1
    """Error probability (or expected D_H^2) at which sample sizes are compared."""
    alpha: float = 0.3
    """What NAILGUN is told of the rate, with rho = 1: alpha (1 + rho) must be below 1."""
    delta: float = 0.1
    """NEIL's failure probability."""


def run(seed: int = 0, progress: Progress = silent, settings: Settings = Settings()) -> Outcome:
    """Exact errors of the offline and online learners on the lock, and the same learners run for real."""
    generator = np.random.default_rng([seed, STREAM])
    needed = {
        eta: [lock.demonstrations_needed(settings.target, horizon, eta) for horizon in settings.horizons]
        for eta in settings.etas
    }
    progress(0.1)
    nail = _nail_sweep(settings)
    progress(0.3)
    rows = [*_geometry_rows(settings), *_growth_rows(settings, needed), *_offline_rows(settings, generator)]
    progress(0.6)
    rows += _online_rows(settings, nail, generator)
    progress(0.8)
    rows += _larger_rows(settings, generator)
    progress(1.0)
    panels = (_needed_panel(settings, needed, nail), _error_panel(settings), _mixture_panel(settings))
    return Outcome(
        rows=tuple(rows),
        panels=panels,
        reading=_reading(settings, needed, nail),
        settings=asdict(settings),
    )


@dataclass(frozen=True, kw_only=True)
class NailSweep:
    """Exact facts of NAIL on the lock of two policies, one entry a horizon."""

    needed: list[int]
    """Episodes until E D_H^2 of the returned mixture is at the target."""
    total: list[float]
    """Sum over all episodes of E D_H^2: n times the returned mixture's, for large n."""
    kl_share: list[float]
    """Sum over all episodes of E KL_aug, over H log|Pi|."""


def _nail_sweep(settings: Settings) -> NailSweep:
    """Until the weights have settled: log odds of 40 at rate 1/H."""
    right = 1 - settings.eta / 2
    drift = (1 - settings.eta) * math.log(right / (1 - right))
    sweep = NailSweep(needed=[], total=[], kl_share=[])
    for horizon in settings.horizons:
        num = max(math.ceil(60 * horizon / drift), 200)
        distance_T, kl_T = lock.nail_by_episode(num, horizon, settings.eta)
        mean_T = np.cumsum(distance_T) / np.arange(1, num + 1)
        sweep.needed.append(int(np.argmax(mean_T <= settings.target)) + 1)
        sweep.total.append(float(distance_T.sum()))
        sweep.kl_share.append(float(kl_T.sum()) / (horizon * math.log(2)))
    return sweep


def _geometry_rows(settings: Settings) -> list[Row]:
    """Distances of the lock's laws by dynamic programming against the closed forms and the printed bounds."""
    clean, formula_error, ratio, thm6 = [], [], [], []
    for eta in settings.etas:
        for horizon in settings.horizons:
            world, pi_KHSA, nu_HSA = lock.lock_world(horizon)
            noisy_KHSA = mdp.noised(pi_KHSA, eta, nu_HSA)
            clean.append(mdp.trajectory_hellinger_sq(world, pi_KHSA[0], pi_KHSA[1]))
            # 1 - affinity loses digits where the distance is below 1e-16: compare absolutely there.
            noisy = mdp.trajectory_hellinger_sq(world, noisy_KHSA[0], noisy_KHSA[1])
            exact = lock.noisy_hellinger_sq(horizon, eta)
            formula_error.append(abs(noisy - exact))
            printed = bounds.noisy_hellinger_sq(horizon, eta)
            ratio.append(exact / printed)
            thm6.append(bounds.clean_hellinger_sq(exact, horizon, eta, lock.KAPPA))
    num, source = len(clean), f"{PAPER} Prop 1"
    loosest = 1 + math.sqrt(max(settings.etas) * (2 - max(settings.etas)))
    return [
        Row(claim="clean D_H^2 of the two locks is 1 (least, all H and eta)", source=source, relation="=",
            bound=1, measured=min(clean), num=num, tolerance=1e-12),
        Row(claim="noisy D_H^2 = q^(H-1) (1 - sqrt(1-q^2)), q = 1-eta (worst error)", source="DERIVED",
            relation="<=", bound=1e-14, measured=max(formula_error), num=num),
        Row(claim="noisy D_H^2 / (1-eta)^(H+1) is at most 1", source=source, relation="<=", bound=1,
            measured=max(ratio), num=num,
            note=f"loose by exactly 1 + sqrt(eta (2 - eta)) whatever H: up to {loosest:.3f} here, never above 2"),
        Row(claim="Thm 6 (kappa = 1/2) from noisy D_H^2 allows clean D_H^2 = 1 (least bound)",
            source=f"{PAPER} Thm 6", relation=">=", bound=1, measured=min(thm6), num=num,
            note=f"at most {max(thm6):.3f} for every H: the (1-eta)^-H of Thm 6 is attained"),
    ]  # fmt: skip


def _growth_rows(settings: Settings, needed: dict[float, list[int]]) -> list[Row]:
    """How the number of demonstrations grows with the horizon, exactly."""
    half = len(settings.horizons) // 2
    horizons = np.array(settings.horizons[half:], dtype=float)
    slope_error, limit_error, spread, implied = [], [], [], []
    for eta, counts in needed.items():
        slope = np.polyfit(horizons, np.log(counts[half:]), 1)[0]
        slope_error.append(abs(slope / -math.log1p(-eta) - 1))
        limit = lock.arrivals_needed(settings.target, eta) / lock.reach(settings.horizons[-1], eta)
        limit_error.append(abs(counts[-1] / limit - 1))
        constants = [
            count / bounds.demonstrations_lower(horizon, eta, lock.KAPPA, settings.target)
            for horizon, count in zip(settings.horizons[half:], counts[half:], strict=True)
        ]
        implied += constants
        spread.append(max(constants) / min(constants))
    fine = settings.target / 10
    drop = (
        lock.arrivals_needed(fine, settings.eta) * fine
        / (lock.arrivals_needed(settings.target, settings.eta) * settings.target)
    )  # fmt: skip
    goal = f"error <= {settings.target:g}"
    return [
        Row(claim=f"cloning: log n for {goal} rises by -log(1-eta) a step (worst rel. error)", source="DERIVED",
            relation="<=", bound=0.02, measured=max(slope_error), num=len(settings.etas),
            note=f"fitted on H = {settings.horizons[half]} to {settings.horizons[-1]}, binomial sums"),
        Row(claim=f"cloning: n = lambda(eta) (1-eta)^-(H-1) at H = {settings.horizons[-1]} (worst rel. error)",
            source="DERIVED", relation="<=", bound=0.01, measured=max(limit_error), num=len(settings.etas),
            note="lambda: votes, Poisson distributed, that bring the majority's error to the target"),
        Row(claim="n / [eta kappa / ((1-eta)^(H+1) eps)] varies little with H (worst max/min)",
            source=f"{PAPER} Props 1, 12-15", relation="<=", bound=1.2, measured=max(spread),
            num=len(implied),
            note=f"implied constants {min(implied):.2f} to {max(implied):.2f}, not growing with H; at eps / 10 they are "
            f"{drop:.2f} times that: two fixed locks cost log 1/eps, not 1/eps"),
    ]  # fmt: skip


def _offline_rows(settings: Settings, generator: np.random.Generator) -> list[Row]:
    """The real offline learners against their exact errors; what no offline learner can do."""
    eta, num = settings.eta, settings.num_demos
    rows, plain_R, horizon = [], np.empty(0), 0
    for horizon in settings.simulated_horizons[1:]:
        world, pi_KHSA, nu_HSA = lock.lock_world(horizon)
        noisy_HSA = mdp.noised(pi_KHSA[0], eta, nu_HSA)
        counts = learners.demonstrations(world, noisy_HSA, num, settings.num_runs, generator)
        wrong_R = learners.noised_cloning(counts, pi_KHSA, eta, nu_HSA)[:, 1]
        rows.append(_agreement(f"noised cloning, n = {num}, H = {horizon}: P(wrong) is the binomial sum",
                               lock.cloning_error(num, horizon, eta), wrong_R))  # fmt: skip
        plain_R = learners.plain_cloning(counts, pi_KHSA)[:, 1]
    rows.append(_agreement(f"cloning that ignores the noise, n = {num}, H = {horizon}: P(wrong) is a coin's",
                           lock.plain_cloning_error(num, horizon, eta), plain_R))  # fmt: skip
    low, high, rough = [], [], []
    for rate in settings.etas:
        for steps in settings.horizons:
            distance = lock.noisy_hellinger_sq(steps, rate)
            for demos in (1, 3, 10, 100, 1000, 10000):
                error = lock.cloning_error(demos, steps, rate)
                low.append(bounds.error_lower(distance, demos) - error)
                high.append(error - bounds.error_upper(distance, demos))
                rough.append(lock.rough_cloning_error(demos, steps, rate) - error)
    long = settings.simulated_horizons[-1]
    exact_far, rough_far = (
        lock.cloning_error(10 * num, long, eta),
        lock.rough_cloning_error(10 * num, long, eta),
    )
    rows += [
        Row(claim="any offline learner: P(wrong) >= Le Cam's bound from D_H^2 (worst excess)", source="DERIVED",
            relation="<=", bound=0, measured=max(low), num=len(low), tolerance=1e-12,
            note="noised cloning is the Bayes rule here: its exact error is the least there is"),
        Row(claim="noised cloning: P(wrong) <= 1/2 (1 - D_H^2)^n (worst excess)", source="DERIVED", relation="<=",
            bound=0, measured=max(high), num=len(high), tolerance=1e-12),
        Row(claim="the coin-only form 1/2 (1 - (1-eta)^(H-1))^n is never above the error", source="DERIVED",
            relation="<=", bound=0, measured=max(rough), num=len(rough), tolerance=1e-12,
            note=f"it leaves out wrong labels: {rough_far:.3f} against {exact_far:.3f} at n = {10 * num}, H = {long}"),
        Row(claim=f"without noise one demonstration is enough (error at H = {settings.horizons[-1]})",
            source="DERIVED", relation="=", bound=0, measured=lock.cloning_error(1, settings.horizons[-1], 0.0)),
    ]  # fmt: skip
    return rows


def _agreement(claim: str, exact: float, values_R: Array) -> Row:
    """A real learner's mean over runs against the exact value."""
    mean, low, high = bounded_mean_interval(values_R, 0, 1)
    return Row(claim=claim, source="DERIVED", relation="=", bound=exact, measured=mean, low=low, high=high,
               num=len(values_R))  # fmt: skip


def _online_rows(settings: Settings, nail: NailSweep, generator: np.random.Generator) -> list[Row]:
    eta, num, half = settings.eta, settings.num_episodes, len(settings.horizons) // 2
    rows = []
    horizon = settings.simulated_horizons[-1]
    world, pi_KHSA, nu_HSA = lock.lock_world(horizon)
    labels_RHSA = _labels(settings, pi_KHSA, nu_HSA)
    history = learners.nail(world, pi_KHSA, labels_RHSA, eta, nu_HSA, num, generator)
    rows.append(_agreement(f"NAIL's likeliest policy, n = {num}, H = {horizon}: P(wrong) has no H in it",
                           lock.online_error(num, eta), learners.winners(history.logw_TRK[-1])[:, 1]))  # fmt: skip
    drawn = generator.integers(num, size=settings.num_runs)
    weight_R = np.exp(history.logw_TRK[drawn, np.arange(settings.num_runs), 0])
    distance_T, _ = lock.nail_by_episode(num, horizon, eta)
    rows.append(_agreement(f"NAIL's returned mixture, n = {num}, H = {horizon}: E D_H^2 is the binomial sum",
                           float(distance_T.mean()), 1 - np.sqrt(weight_R)))  # fmt: skip
    seen_R = learners.neil(
        world, pi_KHSA, labels_RHSA, eta, nu_HSA, max(num // 2, 1), settings.delta, generator
    )
    rows.append(_agreement(f"NEIL, n = {2 * max(num // 2, 1)}, H = {horizon}: P(wrong) is the binomial sum",
                           lock.neil_error(max(num // 2, 1), eta, settings.delta), seen_R[:, 1]))  # fmt: skip
    horizons = settings.horizons[half:]
    slope = np.polyfit(np.log(horizons), np.log(nail.total[half:]), 1)[0]
    once = lock.nail_by_episode(400, 1, eta, rate=1.0)[1].sum() / math.log(2)
    long = settings.horizons[-1]
    budget = nail.needed[-1]
    constant = settings.target / bounds.nail_hellinger_sq(long, eta, 2, budget)
    dominated = settings.target / bounds.nail_hellinger_sq_dominated(long, eta, lock.KAPPA, 2, budget)
    rows += [
        Row(claim="NAIL's mixture: n E D_H^2 grows like H^b, b = 1 (rate 1/H; fitted b)", source="DERIVED",
            relation="=", bound=1, measured=float(slope), tolerance=0.05,
            note="one step of the lock tells anything, yet the rate 1/H makes the weights H times slower"),
        Row(claim="sum over t of E KL_aug is at most H log|Pi| (largest share, all H)", source=f"{PAPER} Thm 8",
            relation="<=", bound=1, measured=max(nail.kl_share), num=len(nail.kl_share),
            note=f"exact limit for long horizons {lock.nail_kl_limit(eta):.4f}: loose by convexity only"),
        Row(claim="with rate 1 instead of 1/H the same sum is log|Pi|, whatever H", source="DERIVED", relation="=",
            bound=1, measured=float(once), tolerance=1e-9,
            note="valid where at most one visited step separates the class: the lock"),
        Row(claim=f"Thm 8's E D_H^2 <= c H/(1-eta) sqrt(log|Pi|/n), H = {long}, n = {budget}: implied c",
            source=f"{PAPER} Thm 8", relation="<=", bound=1, measured=constant,
            note=f"the linear form (Thm 7, kappa = 1/2) has implied constant {dominated:.3f}: its rate is the true one"),
        Row(claim=f"NAILGUN (alpha {settings.alpha:g}, rho 1): n E D_H^2 <= 4 log|Pi| / (..)^2, n = 400",
            source=f"{PAPER} Thm 9", relation="<=",
            bound=400 * vote_bounds.hellinger_sq(settings.alpha, 1, 2, 400),
            measured=400 * lock.nailgun_error(400, eta), note="exact; neither eta nor nu is given, and no H enters"),
    ]  # fmt: skip
    return rows


def _labels(settings: Settings, pi_KHSA: Array, nu_HSA: Array) -> Array:
    """The noisy expert of policy 0 for every run."""
    noisy_HSA = mdp.noised(pi_KHSA[0], settings.eta, nu_HSA)
    return np.broadcast_to(noisy_HSA, (settings.num_runs, *noisy_HSA.shape))


def _larger_rows(settings: Settings, generator: np.random.Generator) -> list[Row]:
    """Many codes: every learner beyond two policies, against products of binomial sums."""
    eta, digits, num = settings.eta, settings.num_digits, settings.num_episodes
    horizon = settings.simulated_horizons[1]
    world, pi_KHSA, nu_HSA = lock.lock_world(horizon, digits)
    counts = learners.demonstrations(
        world, mdp.noised(pi_KHSA[0], eta, nu_HSA), settings.num_demos, settings.num_runs, generator
    )
    lost_R = 1 - learners.noised_cloning(counts, pi_KHSA, eta, nu_HSA)[:, 0]
    labels_RHSA = _labels(settings, pi_KHSA, nu_HSA)
    likeliest = learners.nail(world, pi_KHSA, labels_RHSA, eta, nu_HSA, num, generator).logw_TRK[-1]
    # Ties of the vote go to the lowest action, so the code is drawn: then they cost a half, as in the formula.
    code_R = generator.integers(len(pi_KHSA), size=settings.num_runs)
    coded_RHSA = mdp.noised(pi_KHSA, eta, nu_HSA)[code_R]
    history = learners.nailgun(world, pi_KHSA, coded_RHSA, settings.alpha, 1.0, num, generator)
    weight_TRK = np.exp(history.logw_TRK[:num])
    mistaken_R = np.mean([
        np.any(_voted(weight_RK, pi_KHSA)[:, horizon - digits :] != _played(pi_KHSA)[code_R, horizon - digits :], axis=-1)
        for weight_RK in weight_TRK
    ], axis=0)  # fmt: skip
    size = f"{len(pi_KHSA)} codes, H = {horizon}"
    return [
        _agreement(f"{size}: noised cloning, n = {settings.num_demos}: P(wrong code)",
                   lock.cloning_error(settings.num_demos, horizon, eta, digits), lost_R),
        _agreement(f"{size}: NAIL's likeliest code, n = {num}: P(wrong code)",
                   lock.online_error(num, eta, digits), 1 - learners.winners(likeliest)[:, 0]),
        _agreement(f"{size}: NAILGUN's returned vote, n = {num}: E D_H^2",
                   lock.nailgun_error(num, eta, digits), mistaken_R),
    ]  # fmt: skip


def _played(pi_KHSA: Array) -> Array:
    """The action of each policy on the path, [K, H]."""
    return np.argmax(pi_KHSA[:, :, 0], axis=-1)


def _voted(weight_RK: Array, pi_KHSA: Array) -> Array:
    """The voted action on the path, [R, H]."""
    return np.array([np.argmax(learners.vote(weight_K, pi_KHSA)[:, 0], axis=-1) for weight_K in weight_RK])


def _needed_panel(settings: Settings, needed: dict[float, list[int]], nail: NailSweep) -> Panel:
    horizons, lines = settings.horizons, []
    for eta, counts in needed.items():
        limit = lock.arrivals_needed(settings.target, eta)
        group = f"cloning {eta}"
        lines += [
            Line(label=f"noised cloning, eta = {eta:g}", x=horizons, y=counts, group=group),
            Line(label=f"lambda (1-eta)^-(H-1), eta = {eta:g}", x=horizons, role="predicted", group=group,
                 y=[limit / lock.reach(horizon, eta) for horizon in horizons]),
        ]  # fmt: skip
    online = lock.votes_needed(settings.target, 1 - settings.eta / 2, settings.eta / 2)
    label = f"eta = {settings.eta:g}"
    lines += [
        Line(label=f"NAIL, likeliest policy, {label}", x=horizons, y=[online] * len(horizons), group="argmax"),
        Line(label=f"NAIL, returned mixture, {label}", x=horizons, y=nail.needed, group="mixture"),
        Line(label=f"offline lower bound, constant 1, {label}", x=horizons, role="bound", group="lower",
             y=[bounds.demonstrations_lower(horizon, settings.eta, lock.KAPPA, settings.target)
                for horizon in horizons]),
    ]  # fmt: skip
    return Panel(title=f"Trajectories for error {settings.target:g}", x_label="horizon H",
                 y_label="trajectories n", y_scale="log", lines=lines)  # fmt: skip


def _error_panel(settings: Settings) -> Panel:
    eta, horizon = settings.eta, settings.simulated_horizons[-1]
    demos = [round(10 ** (0.25 * i)) for i in range(17)]
    episodes = [n for n in demos if n <= 100]
    noisy = lock.noisy_hellinger_sq(horizon, eta)
    lines = [
        Line(label="noised cloning", x=demos, y=[lock.cloning_error(n, horizon, eta) for n in demos], group="c"),
        Line(label="coin only: 1/2 (1-(1-eta)^(H-1))^n", x=demos, role="predicted", group="c",
             y=[lock.rough_cloning_error(n, horizon, eta) for n in demos]),
        Line(label="no offline learner below (Le Cam)", x=demos, role="bound", group="c",
             y=[bounds.error_lower(noisy, n) for n in demos]),
        Line(label="cloning that ignores the noise", x=demos, group="p",
             y=[lock.plain_cloning_error(n, horizon, eta) for n in demos]),
        Line(label="NAIL, likeliest policy", x=episodes, y=[lock.online_error(n, eta) for n in episodes], group="n"),
        Line(label="NAILGUN, returned vote (E D_H^2)", x=episodes, group="g",
             y=[lock.nailgun_error(n, eta) for n in episodes]),
        Line(label="NEIL, survivor", x=[n for n in episodes if n > 1], group="e",
             y=[lock.neil_error(n // 2, eta, settings.delta) for n in episodes if n > 1]),
    ]  # fmt: skip
    return Panel(title=f"P(wrong policy), H = {horizon}, eta = {eta:g}", x_label="trajectories n",
                 y_label="error probability", x_scale="log", lines=lines, y_limits=(0.0, 0.6))  # fmt: skip


def _mixture_panel(settings: Settings) -> Panel:
    """What the learning rate 1/H does to the returned mixture."""
    eta, num = settings.eta, 1000
    episodes = [1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000]
    lines = []
    for horizon in settings.simulated_horizons:
        for rate, name in ((None, f"rate 1/H, H = {horizon}"), (1.0, "rate 1, any H")):
            if rate is not None and horizon != settings.simulated_horizons[-1]:
                continue
            distance_T, _ = lock.nail_by_episode(num, horizon, eta, rate=rate)
            mean_T = np.cumsum(distance_T) / np.arange(1, num + 1)
            lines.append(Line(label=name, x=episodes, y=[float(mean_T[n - 1]) for n in episodes], group=name))
    long = settings.simulated_horizons[-1]
    lines.append(
        Line(label=f"Thm 8, constant 1, H = {long}", x=episodes, role="bound", group=f"rate 1/H, H = {long}",
             y=[min(1.0, bounds.nail_hellinger_sq(long, eta, 2, n)) for n in episodes])
    )  # fmt: skip
    return Panel(title=f"NAIL's returned mixture, eta = {eta:g}", x_label="episodes n", y_label="E D_H^2",
                 x_scale="log", y_scale="log", lines=lines)  # fmt: skip


def _reading(settings: Settings, needed: dict[float, list[int]], nail: NailSweep) -> tuple[str, ...]:
    eta, long, short = settings.eta, settings.horizons[-1], settings.horizons[0]
    first, last = (lock.demonstrations_needed(settings.target, horizon, eta) for horizon in (short, long))
    online = lock.votes_needed(settings.target, 1 - eta / 2, eta / 2)
    slow = max(needed, key=lambda rate: rate)
    return (
        f"At eta = {eta:g}, cloning needs {first} demonstrations for error {settings.target:g} at H = {short} and "
        f"{last} at H = {long}; no offline learner does better, for cloning is the Bayes rule here.",
        f"With labels at its own states the likeliest policy needs {online} episode(s) at every horizon.",
        f"The policy that NAIL returns is a mixture of early weights: it needs {nail.needed[0]} episodes at H = {short} and "
        f"{nail.needed[-1]} at H = {long}, linear in H, because its learning rate is 1/H.",
        f"The printed (1-eta)^(H+1) is above the exact noisy distance by the factor {1 + math.sqrt(eta * (2 - eta)):.3f} at "
        f"every horizon; the growth (1-eta)^-H is exact ({needed[slow][-1]:.3g} demonstrations at eta = {slow:g}, H = {long}).",
        "Cloning that ignores the noise gets worse with more demonstrations: one fall rules out every policy.",
    )
