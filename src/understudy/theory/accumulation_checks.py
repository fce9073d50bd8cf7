"""Rows of `error-accumulation`: the classical and the log-loss bounds, on random worlds and on constructed ones.

H horizon, R total reward, D squared Hellinger distance of trajectory laws, n demonstrations, K candidates. All exact,
except the learners of rows with an interval.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from understudy.theory import accumulation as worlds
from understudy.theory import accumulation_rivals as rivals
from understudy.theory import accumulation_shared as shared
from understudy.theory.bounds import accumulation as bounds
from understudy.theory.intervals import mean_interval, proportion_interval
from understudy.theory.mdp import noised, trajectory_hellinger_sq
from understudy.theory.outcome import Progress, Row

EXACT = 1e-9
ROSS = "arXiv:1011.0686"
FOSTER = "arXiv:2407.15007"
NAIL = "arXiv:2606.30923"


def at_most_one(claim: str, source: str, ratio: float, num: int, note: str = "") -> Row:
    return Row(
        claim=claim,
        source=source,
        relation="<=",
        bound=1,
        measured=ratio,
        num=num,
        tolerance=EXACT,
        note=note,
    )


def equals(
    claim: str, source: str, bound: float, measured: float, tolerance: float = EXACT, note: str = ""
) -> Row:
    return Row(
        claim=claim,
        source=source,
        relation="=",
        bound=bound,
        measured=measured,
        tolerance=tolerance,
        note=note,
    )


def simulated(
    claim: str, source: str, bound: float, found: tuple[float, float, float], num: int, note: str = ""
) -> Row:
    mean, low, high = found
    return Row(
        claim=claim, source=source, relation="=", bound=bound, measured=mean, low=low, high=high, num=num,
        note=note,
    )  # fmt: skip


def ratio_to(value: float, bound: float) -> float:
    """value / bound; a bound of zero (up to rounding) is met by a value of zero only."""
    return value / bound if bound > EXACT else (0.0 if value <= EXACT else math.inf)


def random_rows(num_worlds: int, generator: np.random.Generator, progress: Progress) -> list[Row]:
    """Every inequality on random MDPs: the largest ratio of regret to bound."""
    ratios = []
    for index in range(num_worlds):
        world, student = worlds.random_world(generator)
        found, horizon = worlds.regret(world, student), world.mdp.horizon
        demo_error_H = worlds.error_rates(world, world.expert_HSA, student)
        own_error = float(worlds.error_rates(world, student, student).mean())
        gap, by_lemma = worlds.price_of_errors(world, student)
        total = worlds.reward_range(world)
        distance = max(0.0, trajectory_hellinger_sq(world.mdp, world.expert_HSA, student))
        softened = noised(student, 0.5, np.full(student.shape, 1 / student.shape[-1]))
        far = max(0.0, trajectory_hellinger_sq(world.mdp, softened, student))
        ratios.append(
            (
                ratio_to(found, bounds.cloning_bound(horizon, float(demo_error_H.mean()))),
                ratio_to(found, bounds.cloning_bound_by_step(demo_error_H)),
                ratio_to(found, bounds.interaction_bound(gap, horizon, own_error)),
                abs(found - by_lemma),
                ratio_to(found, bounds.log_loss_bound_printed(total, distance)),
                ratio_to(found, bounds.log_loss_bound_sharp(total, distance)),
                ratio_to(
                    worlds.regret(replace(world, expert_HSA=softened), student),
                    bounds.stochastic_expert_bound(total, far),
                ),
            )
        )
        if index % 100 == 0:
            progress(index / num_worlds)
    quadratic, by_step, online, lemma, printed, sharp, stochastic = np.max(ratios, axis=0).tolist()
    num = num_worlds
    return [
        at_most_one(
            "regret / (H^2 eps), eps on the expert's states, random MDPs",
            f"{ROSS} Thm 2.1",
            quadratic,
            num,
            note=f"against sum_h min(1, eps_1 + ... + eps_h), the sharper form: {by_step:.3f}",
        ),
        at_most_one(
            "regret / (mu H eps), eps on the student's own states, random MDPs",
            f"{ROSS} Thm 2.2",
            online,
            num,
            note=f"the performance difference lemma behind it holds to {lemma:.0e}",
        ),
        at_most_one(
            "regret / (2 R D), deterministic expert: half the printed bound 4 R D",
            f"{FOSTER}; {NAIL} Thm 5; constant 2 DERIVED",
            sharp,
            num,
            note=f"regret / (4 R D), as printed, {printed:.3f}; D has the factor 1/2; without it the constants become 2 and 1",
        ),
        at_most_one(
            "regret / (R sqrt(D (2 - D))), stochastic experts", "DERIVED; rate of Thm 4", stochastic, num
        ),
    ]


def _doubling(world_of: Callable[[int], worlds.World], error: float, off_road: float, horizon: int) -> float:
    """log2 of how much the regret grows from H to 2H, by dynamic programming."""
    small, large = (
        worlds.regret(world, worlds.road_student(world, error, off_road))
        for world in (world_of(horizon), world_of(2 * horizon))
    )
    return math.log2(large / small)


def construction_rows(horizons: Sequence[int]) -> list[Row]:
    grid = [(horizon, error) for horizon in horizons for error in (1e-4, 1e-3, 0.01, 0.1, 0.5)]
    first_only, online, gaps = [], [], []
    for horizon, error in grid:
        cliff = worlds.cliff_world(horizon)
        at_once = worlds.road_student(cliff, error * np.eye(horizon)[0], 0)
        first_only.append(worlds.regret(cliff, at_once) / bounds.cloning_bound(horizon, error / horizon))
        student = worlds.road_student(cliff, error, 0)
        gaps.append(worlds.price_of_errors(cliff, student)[0] / horizon)
        for depth in (0, 1, 2, 4, 8):
            ditch = worlds.ditch_world(horizon, depth)
            student = worlds.road_student(ditch, error, error)
            gap = worlds.price_of_errors(ditch, student)[0]
            online.append(
                (worlds.regret(ditch, student) / bounds.interaction_bound(gap, horizon, error), depth)
            )
    flat = [ratio for ratio, depth in online if depth == 0]
    length = min(horizons[-1], 8)
    ditch = worlds.ditch_world(length, 1)
    students = [worlds.road_student(ditch, 0.01, 0) for _ in range(2**length)]
    for student, wrong in zip(students, itertools.product((0, 1), repeat=length), strict=True):
        student[:, 1] = np.eye(2)[1 - np.array(wrong)]
    completions = [worlds.regret(ditch, student) for student in students]
    limit = "tends to this as H grows and H eps falls; here eps = 1e-6, H = 512 to 1024"
    return [
        equals(
            "all errors in step 1 on a cliff: regret / (H^2 eps), least",
            f"{ROSS} Thm 2.1",
            1,
            min(first_only),
        ),
        equals(
            "cliff: mu / H, so mu H eps is H^2 eps: online has no better bound",
            f"{ROSS} Thm 2.2",
            1,
            min(gaps),
        ),
        at_most_one(
            "ditches of depth 0 to 8: regret / (mu H eps), eps everywhere",
            f"{ROSS} Thm 2.2",
            max(ratio for ratio, _ in online),
            len(online),
            note=f"least ratio {min(ratio for ratio, _ in online):.3f}; exactly 1 where a mistake costs one step "
            f"(least {min(flat):.6f})",
        ),
        replace(
            equals(
                f"ditch, eps = 0.01, H = {length}: worst of all clones alike on the road = cliff",
                "DERIVED",
                worlds.lasting_regret(0.01, length),
                max(completions),
                note=f"the best of them has regret {min(completions):.4f}: demonstrations cannot tell them apart",
            ),
            num=len(completions),
        ),
        equals(
            "exponent of H, ditch, clone that never leaves it",
            "DERIVED",
            2,
            _doubling(lambda horizon: worlds.ditch_world(horizon, 1), 1e-6, 1, 512),
            0.01,
            limit,
        ),
        equals(
            "exponent of H, ditch, error rate eps on own states",
            "DERIVED",
            1,
            _doubling(lambda horizon: worlds.ditch_world(horizon, 1), 1e-6, 1e-6, 512),
            0.01,
            limit,
        ),
    ]


def log_loss_rows(
    horizons: Sequence[int], rare: int, num: int, length: int, runs: int, generator: np.random.Generator
) -> list[Row]:
    cliff = worlds.cliff_world(8)
    paid_last = replace(cliff, reward_HSA=cliff.reward_HSA * np.eye(8)[-1][:, None, None])
    student = worlds.road_student(cliff, 1e-4, 0)
    distance = trajectory_hellinger_sq(cliff.mdp, cliff.expert_HSA, student)
    lean = np.array([0.55, 0.45])
    far = float(1 - np.sqrt(lean * lean[::-1]).sum())
    difference = 0.0
    for horizon in horizons:
        world, codes, regret_K = worlds.context_world(horizon, 3, 0.1)
        distance_K = [trajectory_hellinger_sq(world.mdp, world.expert_HSA, code) for code in codes]
        difference = max(difference, float(np.abs(regret_K - distance_K).max()))
    world, codes, regret_K = worlds.context_world(length, rare, 1 / (num + 1))
    offline, online = (
        regret_K[clone(world, codes, regret_K, num, runs, generator)]
        for clone in (worlds.clone_offline, worlds.clone_online)
    )
    expected = worlds.hardest_missing_rate(rare, num)
    fewer, more = (rare / (num + 1) * (num / (num + 1)) ** other for other in (num - 1, num + 1))
    neighbours = f"n - 1 and n + 1 would give {fewer:.4f} and {more:.4f}"
    setting = f"{2**rare} codes, n = {num}"
    return [
        equals("cliff paid at the end, rare errors: regret / (R D) within 0.001 of 2", "DERIVED", 2,
                worlds.regret(paid_last, student) / distance, 1e-3, "1 + (1 - eps)^(H/2), here eps = 1e-4, H = 8"),
        Row(claim="a stochastic expert: regret / (R D) exceeds 4", source="DERIVED", relation=">=", bound=4,
            measured=float(lean[0] - lean[1]) / far, note="one step, laws (.55, .45) and (.45, .55)"),
        _likelihood_row(generator),
        equals("realizable codes: largest |regret - R D| over codes and H, R = 1", "DERIVED", 0, difference,
                note=f"H = {horizons[0]} to {horizons[-1]}: no horizon once R is fixed"),
        simulated(f"log-loss cloning, {setting}: regret / R = I z (1 - z)^n", f"{FOSTER}; value DERIVED", expected,
                   mean_interval(offline), runs, neighbours),
        simulated(f"DAgger, same class, a mistake costs one step: the same regret, {setting}", "DERIVED", expected,
                   mean_interval(online), runs, neighbours),
    ]  # fmt: skip


def _likelihood_row(generator: np.random.Generator) -> Row:
    """Maximum likelihood over small random classes, every sample enumerated."""
    preference, tail, mean, num = 0.0, 0.0, 0.0, 60
    for _ in range(num):
        num_demos = int(generator.integers(1, 8))
        laws_KM = generator.dirichlet(np.full(4, 0.4), size=6)
        prob_C, worst_C, preferred_K = worlds.mle_distances(laws_KM, num_demos)
        distance_K = np.clip(1 - np.sqrt(laws_KM * laws_KM[0]).sum(1), 0, 1)
        for chance, distance in zip(preferred_K[1:], distance_K[1:], strict=True):
            preference = max(preference, chance / bounds.mle_preference_bound(distance, num_demos))
        for failure in (0.9, 0.5, 0.1, 0.01):
            exceeds_C = worst_C > bounds.mle_bound(len(laws_KM), num_demos, failure)
            tail = max(tail, float(prob_C @ exceeds_C) / failure)
        mean = max(mean, float(prob_C @ worst_C) / bounds.mle_mean_bound(len(laws_KM), num_demos))
    return at_most_one(
        "P(D > log(K/delta)/n) / delta, any most likely law, enumerated",
        f"DERIVED; rate of {FOSTER}",
        tail,
        num,
        note=f"its steps: P(a wrong law is as likely) / (1 - D)^n {preference:.3f}, mean D / ((log K + 1)/n) {mean:.3f}",
    )


def shared_losses(num_rare: int, num: int, horizon: int) -> tuple[float, float]:
    """Share of the reward that cloning and DAgger lose in a ditch whose labels are shared by the steps; exact."""
    return shared.share_lost(horizon, num_rare, num, False), shared.share_lost(horizon, num_rare, num, True)


def shared_row(num_rare: int, num: int) -> Row:
    first, half, top = (shared_losses(num_rare, num, horizon) for horizon in (8, 32, 64))
    flat, falling = (math.log2(large / small) for small, large in zip(half, top, strict=True))
    return Row(
        claim="labels shared, ditch: regret / R flat offline, 1/H online; error of exponents",
        source="DERIVED",
        relation="<=",
        bound=0.1,
        measured=max(abs(flat), abs(falling + 1)),
        num=2,
        note=f"H = 32 to 64, n = {num}, exact: exponents {flat:.3f} and {falling:.3f}; offline / online "
        f"{first[0]:.4f} / {first[1]:.4f} at H = 8, {top[0]:.4f} / {top[1]:.4f} at H = 64; a ditch never seen, which has a "
        f"probability of about e^-I = {math.exp(-num_rare):.1g} at any H, ends the fall",
    )


def rival_rows(
    num_rare: int, eta: float, runs: int, lock_runs: int, generator: np.random.Generator
) -> list[Row]:
    """The learners of the rivals against their closed forms; the notes say which neighbours would not fit."""
    num, coverage, horizon = 200, 4, 16
    prob_I = rivals.hardest_contexts(num_rare, coverage, num)
    fewer, more = (rivals.uncovered_risk(prob_I, other, num) for other in (3.85, 4.2))
    rows = [
        simulated(
            f"class misses the expert, offline, C = {coverage}: risk = 1/2 sum D (1 - D/C)^N",
            "DERIVED for arXiv:2606.30445 Thm 1",
            rivals.uncovered_risk(prob_I, coverage, num),
            mean_interval(rivals.simulate_uncovered(prob_I, coverage, num, runs, generator)),
            runs,
            f"C = 3.85 and 4.2 would give {fewer:.4f} and {more:.4f}",
        )
    ]
    unreached = 0.5 * (1 - (1 - eta) ** (horizon - 1)) ** 100
    offline = [rivals.lock_failure(horizon, eta, episodes) for episodes in (80, 100, 125)]
    online = [float(rivals.vote_failure(episodes, eta)) for episodes in (3, 5, 7)]
    cases = (
        ("offline", 100, lock_runs, offline, f"n = 80 and 125 would give {offline[0]:.3f} and {offline[2]:.3f}; "
         f"demonstrations that never arrive explain only {unreached:.4f} of it"),
        ("online", 5, runs, online, f"n = 3 and 7 would give {online[0]:.4f} and {online[2]:.4f}"),
    )  # fmt: skip
    for name, episodes, num_runs, exact, note in cases:
        wrong = rivals.simulate_lock(horizon, eta, episodes, name == "online", num_runs, generator)
        found = (wrong / num_runs, *proportion_interval(wrong, num_runs))
        claim = f"lock, {name}, H = {horizon}, n = {episodes}: P(wrong), closed form"
        rows.append(simulated(claim, "DERIVED", exact[1], found, num_runs, note))
    return rows
