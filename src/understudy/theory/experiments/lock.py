"""The combination lock: noise rolled into demonstrations costs (1 - eta)^-H; labels at the learner's own states do not."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from understudy.theory import learners, lock, mdp
from understudy.theory import lock_panels as panels_of
from understudy.theory.bounds import lock as bounds
from understudy.theory.bounds import nailgun as vote_bounds
from understudy.theory.lock_runs import LEARNERS, Found, Sizes, mixture_distance, probability, simulate
from understudy.theory.outcome import Outcome, Progress, Row, silent

Array = np.ndarray

PAPER = "arXiv:2606.30923"
STREAM = 3092301


@dataclass(frozen=True, kw_only=True)
class Settings(Sizes):
    """Sizes of the lock experiment."""

    etas: tuple[float, ...] = (0.1, 0.2, 0.3)
    """Noise rates of the exact sweeps."""
    horizons: tuple[int, ...] = (4, 8, 16, 24, 32, 48, 64)
    """Horizons of the exact sweeps, ascending; laws of growth are fitted on the second half."""
    eta: float = 0.2
    """Noise rate where one rate is shown."""
    simulated_horizons: tuple[int, ...] = (8, 16, 32)
    simulated_etas: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
    """Rates at which real learners run, at the second of the simulated horizons."""
    num_mixture: int = 60
    """Episodes of the simulated NAIL whose mixture is measured: its rate 1/H needs many."""
    num_digits: int = 4
    """Digits of the larger lock: 2^digits policies."""
    target: float = 0.05
    """Error probability (or expected D_H^2) at which sample sizes are compared. Not eta / 2: one label has that error."""


def run(seed: int = 0, progress: Progress = silent, settings: Settings = Settings()) -> Outcome:
    """Exact errors of the offline and online learners on the lock, and the same learners run for real."""
    generator = np.random.default_rng([seed, STREAM])
    needed = {
        eta: [lock.demonstrations_needed(settings.target, horizon, eta) for horizon in settings.horizons]
        for eta in settings.etas
    }
    progress(0.1)
    nail = _nail_sweep(settings)
    progress(0.2)
    by_horizon = {
        horizon: simulate(horizon, settings.eta, settings, generator, len(settings.simulated_horizons))
        for horizon in settings.simulated_horizons
    }
    progress(0.5)
    middle = settings.simulated_horizons[1]
    num_cases = len(settings.simulated_etas) * len(LEARNERS)
    by_rate = {eta: simulate(middle, eta, settings, generator, num_cases) for eta in settings.simulated_etas}
    progress(0.8)
    rows = [*_geometry_rows(settings), *_growth_rows(settings, needed)]
    rows += _simulated_rows(settings, by_horizon, by_rate, generator)
    rows += [*_offline_rows(settings, generator), *_online_rows(settings, nail)]
    progress(0.9)
    rows += _larger_rows(settings, generator)
    progress(1.0)
    panels = (
        panels_of.needed(settings.target, settings.eta, settings.horizons, needed, nail.needed),
        panels_of.error_by_horizon(settings.eta, settings, by_horizon),
        panels_of.error_by_rate(middle, settings, by_rate),
        panels_of.mixture(settings.eta, settings.simulated_horizons),
    )
    return Outcome(
        rows=tuple(rows),
        panels=panels,
        reading=_reading(settings, needed, nail, by_horizon),
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
    implied: list[float]
    """The largest c of Thm 8, E D_H^2 = c bound(n), over all n where the bound is below 1."""
    implied_dominated: list[float]
    """The same of the form linear in 1/n."""


def _nail_sweep(settings: Settings) -> NailSweep:
    """Until the weights have settled (log odds of 40 at rate 1/H) and Thm 8's bound has fallen to a quarter, or further."""
    right, eta = 1 - settings.eta / 2, settings.eta
    drift = (1 - eta) * math.log(right / (1 - right))
    sweep = NailSweep(needed=[], total=[], kl_share=[], implied=[], implied_dominated=[])
    longest = max(settings.horizons)
    for horizon in settings.horizons:
        informative = bounds.nail_hellinger_sq(horizon, eta, 2, 1) ** 2
        cap = math.ceil(1.5 * bounds.nail_hellinger_sq(longest, eta, 2, 1) ** 2)
        num = max(math.ceil(60 * horizon / drift), 200, min(math.ceil(16 * informative), cap))
        distance_T, kl_T = lock.nail_by_episode(num, horizon, eta)
        episodes_T = np.arange(1, num + 1)
        mean_T = np.cumsum(distance_T) / episodes_T
        if mean_T[-1] > settings.target:
            raise ValueError(f"a target that NAIL reaches in {num} episodes expected, got {settings.target}.")
        sweep.needed.append(int(np.argmax(mean_T <= settings.target)) + 1)
        sweep.total.append(float(distance_T.sum()))
        sweep.kl_share.append(float(kl_T.sum()) / (horizon * math.log(2)))
        printed_T = bounds.nail_hellinger_sq(horizon, eta, 2, 1) / np.sqrt(episodes_T)
        linear_T = bounds.nail_hellinger_sq_dominated(horizon, eta, lock.KAPPA, 2, 1) / episodes_T
        for implied, bound_T in ((sweep.implied, printed_T), (sweep.implied_dominated, linear_T)):
            implied.append(float((mean_T / bound_T)[bound_T < 1].max()))
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
    slope_error, limit_error, spread, implied, enough = [], [], [], [], []
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
        enough += [
            count / bounds.demonstrations_enough(horizon, eta, 2, settings.target)
            for horizon, count in zip(settings.horizons, counts, strict=True)
        ]
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
        Row(claim="cloning: n / [(1-eta)^-(H+2) log|Pi| / eps] is at most 1 (largest, all H and eta)",
            source=f"{PAPER} Thm 6", relation="<=", bound=1, measured=max(enough), num=len(enough),
            note=f"least {min(enough):.3f}; printed up to a constant"),
    ]  # fmt: skip


def _simulated_rows(
    settings: Settings,
    by_horizon: dict[int, dict[str, Found]],
    by_rate: dict[float, dict[str, Found]],
    generator: np.random.Generator,
) -> list[Row]:
    """The real learners against their exact errors: at each the horizon or rate where they are farthest apart."""
    labels = (settings.num_demos, settings.num_episodes, settings.num_episodes, 2 * settings.num_neil)
    horizons = ", ".join(str(horizon) for horizon in by_horizon)
    rows = []
    for name, num in zip(LEARNERS, labels, strict=True):
        worst = max(by_horizon, key=lambda horizon: by_horizon[horizon][name].strain)
        exact = {f"{at[name].exact:.4g}" for at in by_horizon.values()}
        depends = "the exact value has no H in it" if len(exact) == 1 else "the exact value rises with H"
        rows.append(_agreement(f"{name}, n = {num}: P(wrong) at H = {horizons} (the farthest)",
                               by_horizon[worst][name], settings.num_runs, f"H = {worst}; {depends}"))  # fmt: skip
    eta, name = max(
        ((eta, name) for eta in by_rate for name in LEARNERS), key=lambda at: by_rate[at[0]][at[1]].strain
    )
    rows.append(_agreement(f"all four, eta {min(by_rate):g} to {max(by_rate):g}, H = {settings.simulated_horizons[1]}: "
                           "P(wrong) (the farthest)", by_rate[eta][name], settings.num_runs,
                           f"{name} at eta = {eta:g}, of {len(by_rate) * len(LEARNERS)}"))  # fmt: skip
    long, num = settings.simulated_horizons[-1], settings.num_mixture
    found = mixture_distance(long, settings.eta, num, settings.num_runs, generator)
    rows.append(_agreement(f"NAIL's returned mixture, n = {num}, H = {long}: E D_H^2 is the binomial sum",
                           found, settings.num_runs))  # fmt: skip
    return rows


def _offline_rows(settings: Settings, generator: np.random.Generator) -> list[Row]:
    """What no offline learner can do, and what ignoring the noise does."""
    num, long = settings.num_demos, settings.simulated_horizons[-1]
    world, pi_KHSA, nu_HSA = lock.lock_world(long)
    counts = learners.demonstrations(
        world, mdp.noised(pi_KHSA[0], settings.eta, nu_HSA), num, settings.num_runs, generator
    )
    plain = probability(
        lock.plain_cloning_error(num, long, settings.eta),
        learners.plain_cloning(counts, pi_KHSA)[:, 1],
        generator,
    )
    low, high = [], []
    for rate in settings.etas:
        for steps in settings.horizons:
            distance = lock.noisy_hellinger_sq(steps, rate)
            for demos in (1, 3, 10, 100, 1000, 10000):
                error = lock.cloning_error(demos, steps, rate)
                low.append(bounds.error_lower(distance, demos) - error)
                high.append(error - bounds.error_upper(distance, demos))
    return [
        _agreement(f"cloning that ignores the noise, n = {num}, H = {long}: P(wrong) is a coin's", plain,
                   settings.num_runs),
        Row(claim="any offline learner: P(wrong) >= Le Cam's bound from D_H^2 (worst excess)", source="DERIVED",
            relation="<=", bound=0, measured=max(low), num=len(low), tolerance=1e-12,
            note="noised cloning is the Bayes rule here: its exact error is the least there is"),
        Row(claim="noised cloning: P(wrong) <= 1/2 (1 - D_H^2)^n (worst excess)", source="DERIVED", relation="<=",
            bound=0, measured=max(high), num=len(high), tolerance=1e-12),
    ]  # fmt: skip


def _agreement(claim: str, found: Found, num: int, note: str = "") -> Row:
    """A real learner's mean over runs against the exact value."""
    return Row(claim=claim, source="DERIVED", relation="=", bound=found.exact, measured=found.mean,
               low=found.low, high=found.high, num=num, note=note)  # fmt: skip


def _online_rows(settings: Settings, nail: NailSweep) -> list[Row]:
    """What Thm 8 and Thm 9 say of the lock, exactly."""
    eta, half = settings.eta, len(settings.horizons) // 2
    slope = np.polyfit(np.log(settings.horizons[half:]), np.log(nail.total[half:]), 1)[0]
    once = [lock.nail_kl_in_world(60, horizon, eta, 1.0).sum() / math.log(2) for horizon in settings.horizons]
    at = int(np.argmax(nail.implied))
    return [
        Row(claim="NAIL's mixture: n E D_H^2 grows like H^b, b = 1 (rate 1/H; fitted b)", source="DERIVED",
            relation="=", bound=1, measured=float(slope), tolerance=0.05,
            note="one step of the lock tells anything, yet the rate 1/H makes the weights H times slower"),
        Row(claim="sum over t of E KL_aug is at most H log|Pi| (largest share, all H)", source=f"{PAPER} Thm 8",
            relation="<=", bound=1, measured=max(nail.kl_share), num=len(nail.kl_share),
            note=f"exact limit for long horizons {lock.nail_kl_limit(eta):.4f}: loose by convexity only"),
        Row(claim="with rate 1 instead of 1/H the same sum is log|Pi| at every H (worst error)", source="DERIVED",
            relation="<=", bound=1e-9, measured=float(np.abs(np.array(once) - 1).max()), num=len(once),
            note="in the whole world; valid where at most one visited step separates the class: the lock"),
        Row(claim="Thm 8: E D_H^2 <= c H/(1-eta) sqrt(log|Pi|/n), all n, H with bound < 1: largest c",
            source=f"{PAPER} Thm 8", relation="<=", bound=1, measured=nail.implied[at], num=len(nail.implied),
            note=f"largest at H = {settings.horizons[at]}, {min(nail.implied):.3f} at H = "
            f"{settings.horizons[int(np.argmin(nail.implied))]}; the form linear in 1/n (Thm 7, kappa = 1/2) has c from "
            f"{min(nail.implied_dominated):.3f} to {max(nail.implied_dominated):.3f}: its rate is the true one"),
        Row(claim=f"NAILGUN (alpha {settings.alpha:g}, rho 1): n E D_H^2 <= 4 log|Pi| / (..)^2, n = 400",
            source=f"{PAPER} Thm 9", relation="<=",
            bound=400 * vote_bounds.hellinger_sq(settings.alpha, 1, 2, 400),
            measured=400 * lock.nailgun_error(400, eta), note="exact; neither eta nor nu is given, and no H enters"),
    ]  # fmt: skip


def _larger_rows(settings: Settings, generator: np.random.Generator) -> list[Row]:
    """Many codes: every learner beyond two policies, against products of binomial sums."""
    eta, digits, num = settings.eta, settings.num_digits, settings.num_episodes
    horizon = settings.simulated_horizons[1]
    world, pi_KHSA, nu_HSA = lock.lock_world(horizon, digits)
    counts = learners.demonstrations(
        world, mdp.noised(pi_KHSA[0], eta, nu_HSA), settings.num_demos, settings.num_runs, generator
    )
    lost_R = 1 - learners.noised_cloning(counts, pi_KHSA, eta, nu_HSA)[:, 0]
    run_R = np.arange(settings.num_runs)
    # Ties of the vote go to the lowest action, so the code is drawn: then they cost a half, as in the formula.
    code_R = generator.integers(len(pi_KHSA), size=settings.num_runs)
    coded_RHSA = mdp.noised(pi_KHSA, eta, nu_HSA)[code_R]
    likeliest = learners.nail(world, pi_KHSA, coded_RHSA, eta, nu_HSA, num, generator).logw_TRK[-1]
    history = learners.nailgun(world, pi_KHSA, coded_RHSA, settings.alpha, 1.0, num, generator)
    returned_RK = np.exp(history.logw_TRK[generator.integers(num, size=settings.num_runs), run_R])
    # The expert plays on the path; so does every vote until it errs.
    played_RH = np.argmax([learners.vote(weight_K, pi_KHSA)[:, 0] for weight_K in returned_RK], axis=-1)
    is_wrong_R = np.any(played_RH != np.argmax(pi_KHSA[code_R, :, 0], axis=-1), axis=-1)
    size = f"{len(pi_KHSA)} codes, H = {horizon}"
    cases = (
        (f"{size}: noised cloning, n = {settings.num_demos}: P(wrong code)",
         lock.cloning_error(settings.num_demos, horizon, eta, digits), lost_R),
        (f"{size}: NAIL's likeliest code, n = {num}: P(wrong code)",
         lock.online_error(num, eta, digits), 1 - learners.winners(likeliest)[run_R, code_R]),
        (f"{size}: NAILGUN's returned vote, n = {num}: E D_H^2",
         lock.nailgun_error(num, eta, digits), is_wrong_R.astype(float)),
    )  # fmt: skip
    return [
        _agreement(claim, probability(exact, wrong_R, generator), settings.num_runs)
        for claim, exact, wrong_R in cases
    ]


def _reading(
    settings: Settings,
    needed: dict[float, list[int]],
    nail: NailSweep,
    by_horizon: dict[int, dict[str, Found]],
) -> tuple[str, ...]:
    eta, horizons = settings.eta, settings.horizons
    long, short = horizons[-1], horizons[0]
    counts = [lock.demonstrations_needed(settings.target, horizon, eta) for horizon in horizons]
    early, late = (
        (counts[i + 1] / counts[i]) ** (1 / (horizons[i + 1] - horizons[i])) for i in (0, len(horizons) - 2)
    )
    online = lock.votes_needed(settings.target, 1 - eta / 2, eta / 2)
    likeliest = [at[LEARNERS[1]] for at in by_horizon.values()]
    slow = max(needed)
    return (
        f"At eta = {eta:g}, cloning needs {counts[0]} demonstrations for error {settings.target:g} at H = {short} and "
        f"{counts[-1]} at H = {long}; no offline learner does better, for cloning is the Bayes rule here. At eta = "
        f"{slow:g} it needs {needed[slow][-1]:.3g}.",
        f"With labels at its own states the likeliest policy needs {online} episode(s) at every horizon; real runs of "
        f"{settings.num_episodes} err {min(run.mean for run in likeliest):.3f} to {max(run.mean for run in likeliest):.3f} "
        f"at H = {', '.join(map(str, by_horizon))}, and the formula without H says {likeliest[0].exact:.3f}.",
        f"The policy that NAIL returns is a mixture of early weights: it needs {nail.needed[0]} episodes at H = {short} and "
        f"{nail.needed[-1]} at H = {long}, linear in H, because its learning rate is 1/H.",
        f"The printed (1-eta)^(H+1) is above the exact noisy distance by the factor {1 + math.sqrt(eta * (2 - eta)):.3f} at "
        f"every horizon; the growth a step approaches 1/(1-eta) = {1 / (1 - eta):.4f}: {early:.4f} from H = {short} to "
        f"{horizons[1]}, {late:.4f} from {horizons[-2]} to {long}.",
        "Cloning that ignores the noise gets worse with more demonstrations: one fall rules out every policy.",
    )
