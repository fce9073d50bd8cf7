"""NAILGUN: a greedy vote finds a deterministic expert under noise it does not know, and where that ends."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

import numpy as np

from understudy.theory import learners, lock, mdp, nail_coins, voting
from understudy.theory import nailgun_panels as panels_of
from understudy.theory.bounds import nailgun as bounds
from understudy.theory.bounds import noise as noise_bounds
from understudy.theory.intervals import mean_interval
from understudy.theory.nailgun_worlds import WorldRuns, aimed_error, run_world, uniform_error
from understudy.theory.outcome import Outcome, Progress, Row, silent

Array = np.ndarray

PAPER = "arXiv:2606.30923"
THEOREM = f"{PAPER} Thm 9"
STREAM = 3092302


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the NAILGUN experiment."""

    num_instances: int = 20000
    """Random worlds in which one step of the potential is computed exactly."""
    horizons: tuple[int, ...] = (4, 8, 16, 32)
    """Horizons of the real runs, ascending."""
    num_runs: int = 300
    num_episodes: int = 400
    num_policies: int = 32
    """Policies of the random worlds, each one step away from a hidden one."""
    num_digits: int = 4
    """Digits of the code lock: 2^digits policies that hardly differ."""
    eta: float = 0.4
    alpha: float = 0.45
    """What the learner is told in the real runs; eta <= alpha, alpha (1 + rho) < 1."""
    rho: float = 0.5
    small_alpha: float = 0.05
    """A false promise, alpha < eta."""
    num_labels: int = 1000
    """Labels in the sweeps over eta."""
    target: float = 0.1
    coin_episodes: int = 20
    """Episodes of the simulated NAIL on coins: few, so that its distance can be seen."""
    coin_runs: int = 4000
    exact_coin_episodes: int = 4500
    """Episodes of the exact NAIL on coins: Thm 8 with its constant must fall below the untrained mixture's distance."""


def run(seed: int = 0, progress: Progress = silent, settings: Settings = Settings()) -> Outcome:
    """The potential argument step by step, real runs against its sum, the margin, and what no learner can tell."""
    generator = np.random.default_rng([seed, STREAM])
    step = _potential_cloud(settings, generator, progress)
    rows = _potential_rows(settings, step)
    progress(0.4)
    worlds = []
    for horizon in settings.horizons:
        worlds.append(run_world(horizon, settings, generator))
        progress(0.4 + 0.3 * len(worlds) / len(settings.horizons))
    lock_rows, simulated_T = _lock_rows(settings, generator)
    progress(0.9)
    rows += [
        *_random_world_rows(settings, worlds),
        *lock_rows,
        *_margin_rows(settings),
        *_promise_rows(settings, generator),
    ]
    rows += [*_twin_rows(settings, generator), *_stochastic_rows(settings, generator)]
    progress(1.0)
    mistakes = bounds.mistakes(settings.alpha, settings.rho, settings.num_policies)
    panels = (
        panels_of.potential(step.gap_N * step.mistake_N, step.drop_N),
        panels_of.worlds(settings.horizons, worlds, mistakes),
        panels_of.codes(
            settings.num_digits,
            settings.eta,
            settings.alpha,
            settings.rho,
            simulated_T,
            _code_mistakes(settings),
        ),
        panels_of.margin(settings.num_labels, settings.rho),
    )
    return Outcome(
        rows=tuple(rows),
        panels=panels,
        reading=_reading(settings, step, worlds),
        settings=asdict(settings),
    )


@dataclass(frozen=True, kw_only=True)
class StepCloud:
    """One exact step of the potential in every random world, [N]."""

    drop_N: Array
    """1 - E[W' / W]."""
    mistake_N: Array
    """P(mistake)."""
    gap_N: Array
    """(sqrt(1 - alpha) - sqrt(alpha rho))^2."""
    printed_N: Array
    """1 minus what E[W' / W] is allowed to be."""
    label_slack_N: Array
    """(1 - gap) minus the largest factor of one label: >= 0 if the bound of one label holds."""


def _potential_cloud(settings: Settings, generator: np.random.Generator, progress: Progress) -> StepCloud:
    """Worlds in batches of 500, with sizes drawn a batch: H 1..4, S 1..3, A 2..4, K 2..6."""
    parts = []
    num_batches = math.ceil(settings.num_instances / 500)
    for batch in range(num_batches):
        num = min(500, settings.num_instances - 500 * batch)
        sizes = (int(generator.integers(*pair)) for pair in ((1, 5), (1, 4), (2, 5), (2, 7)))
        world = voting.random_instances(num, *sizes, generator=generator)
        ratio_N, mistake_N, worst_N = voting.potential_step(world)
        pairs = zip(world.alpha_N, world.rho_N, strict=True)
        gap_N = np.array([bounds.gap(float(alpha), float(rho)) for alpha, rho in pairs])
        allowed_N = np.array([
            bounds.potential_factor(float(alpha), float(rho), mistake)
            for alpha, rho, mistake in zip(world.alpha_N, world.rho_N, mistake_N, strict=True)
        ])  # fmt: skip
        parts.append((1 - ratio_N, mistake_N, gap_N, 1 - allowed_N, 1 - gap_N - worst_N))
        progress(0.4 * (batch + 1) / num_batches)
    drop_N, mistake_N, gap_N, printed_N, slack_N = (np.concatenate(part) for part in zip(*parts, strict=True))
    return StepCloud(
        drop_N=drop_N, mistake_N=mistake_N, gap_N=gap_N, printed_N=printed_N, label_slack_N=slack_N
    )


def _potential_rows(settings: Settings, step: StepCloud) -> list[Row]:
    num = len(step.drop_N)
    excess = float(np.max(step.printed_N - step.drop_N))
    ratio_N, mistake_N, worst_N = voting.potential_step(voting.tight_instance(settings.alpha, settings.rho))
    gap = bounds.gap(settings.alpha, settings.rho)
    is_mistaken_N = step.mistake_N > 1e-9
    least = float(np.min((step.drop_N / (step.gap_N * np.maximum(step.mistake_N, 1e-9)))[is_mistaken_N]))
    grid = [(0.01 * i / (1 + 0.1 * j), 0.1 * j) for i in range(1, 100) for j in range(1, 11)]
    size = (settings.num_policies, settings.num_episodes)
    form = max(
        bounds.hellinger_sq(alpha, rho, *size) / bounds.hellinger_sq_by_margin(alpha, rho, *size)
        for alpha, rho in grid
    )
    return [
        Row(claim="one label of a wrong policy multiplies W by 1 - gap at most (worst excess)", source="DERIVED",
            relation="<=", bound=0, measured=float(np.max(-step.label_slack_N)), num=num, tolerance=1e-12,
            note="gap = (sqrt(1-alpha) - sqrt(alpha rho))^2"),
        Row(claim="equal to 1 - gap at eta = alpha, nu = rho on its action, 0 on the expert's", source="DERIVED",
            relation="=", bound=bounds.label_factor(settings.alpha, settings.rho), measured=float(worst_N[0]),
            tolerance=1e-12),
        Row(claim="E[W'|w] <= W (1 - gap/2 P(mistake)), random worlds (worst excess)", source=THEOREM, relation="<=",
            bound=0, measured=excess, num=num, tolerance=1e-12,
            note=f"exact; least drop / (gap P(mistake)) among them {least:.3f}"),
        Row(claim="the half cannot be improved: drop / (gap P(mistake)) of a tied vote", source="DERIVED",
            relation="=", bound=0.5, measured=float((1 - ratio_N[0]) / (gap * mistake_N[0])), tolerance=1e-12,
            note="the policies that are wrong where the vote is hold half of the weight at least"),
        Row(claim="Thm 9's second form, c log|Pi| / (margin^2 n): c = 8 is enough (grid, largest)", source=THEOREM,
            relation="<=", bound=8, measured=form, num=len(grid), tolerance=1e-9,
            note="gap >= margin^2 / 2; c is not printed. With the derived 2 in place of the first form's 4, c = 4"),
    ]  # fmt: skip


def _random_world_rows(settings: Settings, worlds: list[WorldRuns]) -> list[Row]:
    """Real runs on random worlds: mistakes in all, and D_H^2 of the returned vote, against the potential's sum."""
    bound = bounds.mistakes(settings.alpha, settings.rho, settings.num_policies)
    printed = bounds.hellinger_sq(settings.alpha, settings.rho, settings.num_policies, settings.num_episodes)
    most, far = (
        max(worlds, key=lambda world: world.mistakes[0]),
        max(worlds, key=lambda world: world.distance[0]),
    )
    horizons = ", ".join(map(str, settings.horizons))
    first, last = worlds[0].mistakes, worlds[-1].mistakes
    sizes = f"{settings.num_policies} policies, {settings.num_episodes} episodes, eta and nu not given"
    return [
        Row(claim="deterministic policies: D_H^2 of trajectories = P(mistake) (worst difference)", source="DERIVED",
            relation="<=", bound=1e-12, measured=max(world.identity for world in worlds),
            num=len(worlds) * settings.num_runs,
            note="the laws are equal until the first mistake and disjoint after it"),
        Row(claim=f"random worlds: P(mistake) of the untrained vote at H = {horizons} (least)", source="DERIVED",
            relation=">=", bound=0.5, measured=min(world.untrained for world in worlds), num=len(worlds),
            note="all policies leave a hidden one at one step: at every horizon there is as much to learn"),
        Row(claim=f"random worlds, H = {horizons}: mistaken episodes in all <= 2 log|Pi| / gap (most)",
            source=THEOREM, relation="<=", bound=bound, measured=most.mistakes[0], low=most.mistakes[1],
            high=most.mistakes[2], num=settings.num_runs, note=sizes),
        Row(claim=f"mistaken episodes at H = {settings.horizons[-1]} over those at H = {settings.horizons[0]}",
            source=THEOREM, relation="<=", bound=2, measured=last[0] / first[0], low=last[1] / first[2],
            high=last[2] / first[1], num=2 * settings.num_runs,
            note=f"linear growth would be {settings.horizons[-1] / settings.horizons[0]:g}"),
        Row(claim=f"returned vote, n = {settings.num_episodes}: E D_H^2 <= 4 log|Pi| / (n gap) (farthest H)",
            source=THEOREM, relation="<=", bound=printed, measured=far.distance[0], low=far.distance[1],
            high=far.distance[2], num=settings.num_runs,
            note="as D_H^2 = P(mistake), the proof gives 2 in place of the printed 4 where D_H^2 is at most 1"),
    ]  # fmt: skip


def _aimed_lock(settings: Settings, horizon: int) -> tuple[mdp.MDP, Array, Array]:
    """The code lock; at every step the noise has rho on the action next to the expert's (all a2) and the rest on a3."""
    world, pi_KHSA, _ = lock.lock_world(horizon, settings.num_digits)
    nu_HSA = np.broadcast_to(np.array([settings.rho, 0.0, 1 - settings.rho]), pi_KHSA.shape[1:])
    return world, pi_KHSA, nu_HSA


def _lock_rows(settings: Settings, generator: np.random.Generator) -> tuple[list[Row], dict[int, Array]]:
    """The code lock with noise that aims: mistakes are a sum of binomial sums, at every horizon.

    Also the mean number of mistakes so far in the real runs, by horizon.
    """
    exact_T = _code_mistakes(settings)
    total, num_codes, means, found = float(exact_T.sum()), 2**settings.num_digits, {}, {}
    for horizon in (settings.num_digits, 4 * settings.num_digits):
        world, pi_KHSA, nu_HSA = _aimed_lock(settings, horizon)
        # The expert plays a2 at every digit: the last code. Ties go to a1 and cost a mistake.
        noisy_HSA = mdp.noised(pi_KHSA[-1], settings.eta, nu_HSA)
        history = learners.nailgun(
            world, pi_KHSA, np.broadcast_to(noisy_HSA, (settings.num_runs, *noisy_HSA.shape)), settings.alpha,
            settings.rho, settings.num_episodes, generator,
        )  # fmt: skip
        mistaken_TR = learners.mistaken_episodes(history, pi_KHSA, len(pi_KHSA) - 1)
        found[horizon] = mean_interval(mistaken_TR.sum(0).astype(float))
        means[horizon] = np.cumsum(mistaken_TR.mean(-1))
    # The intervals are of one kind, and nearly of one width.
    far = max(found, key=lambda at: max(found[at][1] - total, total - found[at][2]))
    mean, low, high = found[far]
    horizons = " and ".join(map(str, found))
    bound = bounds.mistakes(settings.alpha, settings.rho, num_codes)
    rows = [
        Row(claim=f"{num_codes} codes, H = {horizons}: mistaken episodes = the binomial sums (the farther)",
            source="DERIVED", relation="=", bound=total, measured=mean, low=low, high=high,
            num=settings.num_runs, note=f"H = {far}"),
        Row(claim="the same sum <= 2 log|Pi| / gap", source=THEOREM, relation="<=", bound=bound, measured=total,
            note="exact, at every horizon; noise aimed at one wrong digit, eta below alpha"),
    ]  # fmt: skip
    return rows, means


def _code_mistakes(settings: Settings) -> Array:
    """P(mistake_t) of the aimed lock, [T]: labels are right 1 - eta, wrong eta rho, else a3, which no code plays."""
    right, wrong = 1 - settings.eta, settings.eta * settings.rho
    return voting.code_mistakes(settings.num_episodes, right, wrong, settings.num_digits)


def _margin_rows(settings: Settings) -> list[Row]:
    """Two policies, one step, `num_labels` labels: below the margin the vote converges, past it to the wrong policy."""
    num, rho = settings.num_labels, settings.rho
    edge = 1 / (1 + rho)
    # rho = 1: right 1 - eta, wrong eta, margin m = 1 - 2 eta.
    margins = (0.08, 0.01)
    needed = [voting.votes_needed(settings.target, (1 + m) / 2, (1 - m) / 2) for m in margins]
    slope = math.log(needed[1] / needed[0]) / math.log(margins[1] / margins[0])
    implied = needed[1] / bounds.episodes_lower((1 - margins[1]) / 2, 1.0, settings.target)
    flat_eta, flat_actions = 0.92, 4
    flat = uniform_error(num, flat_eta, flat_actions)
    return [
        Row(claim=f"aimed noise, rho {rho:g}, eta 0.9/(1+rho): P(wrong vote) after {num} labels", source=THEOREM,
            relation="<=", bound=0.05, measured=aimed_error(num, 0.9 * edge, rho)),
        Row(claim="the same at eta 1.1/(1+rho), past the margin: the vote is for the wrong policy", source="DERIVED",
            relation=">=", bound=0.95, measured=aimed_error(num, min(1.1 * edge, 0.999), rho),
            note="labels of the wrong action, eta rho, then outnumber the right ones, 1 - eta"),
        Row(claim="labels for a fixed error grow like margin^-b, b = 2 (rho = 1, fitted b)",
            source=f"{PAPER} Prop 3", relation="=", bound=2, measured=-slope, tolerance=0.05,
            note=f"{needed[0]} labels at margin {margins[0]:g}, {needed[1]} at {margins[1]:g}; implied c = {implied:.3f}"),
        Row(claim=f"uniform noise, {flat_actions} actions, eta {flat_eta:g} (margin < 0): P(wrong vote), {num} labels",
            source="DERIVED", relation="<=", bound=0.01, measured=flat,
            note=f"margin alpha < A/(A+1) = {flat_actions / (flat_actions + 1):g} is sufficient, not necessary: the right "
            "action leads for every eta < 1"),
    ]  # fmt: skip


def _promise_rows(settings: Settings, generator: np.random.Generator) -> list[Row]:
    """What false or impossible promises do."""
    total = float(_code_mistakes(settings).sum())
    claimed = bounds.mistakes(settings.small_alpha, settings.rho, 2**settings.num_digits)
    world, pi_KHSA, nu_HSA = _aimed_lock(settings, settings.num_digits)
    clean_HSA = mdp.noised(pi_KHSA[-1], 0.0, nu_HSA)
    labels_RHSA = np.broadcast_to(clean_HSA, (2, *clean_HSA.shape))
    beyond = min(0.999, 1.2 / (1 + settings.rho))
    history = learners.nailgun(world, pi_KHSA, labels_RHSA, beyond, settings.rho, 20, generator)
    late = learners.mistaken_episodes(history, pi_KHSA, len(pi_KHSA) - 1)[1:]
    return [
        Row(claim=f"told alpha {settings.small_alpha:g} while eta is {settings.eta:g}: mistakes exceed 2 log|Pi| / gap",
            source="DERIVED", relation=">=", bound=claimed, measured=total,
            note="the vote of a product class does not depend on alpha: it still converges, the guarantee is gone"),
        Row(claim=f"told alpha {beyond:g}, alpha (1+rho) > 1, no noise at all: share of mistakes", source="DERIVED",
            relation="=", bound=1, measured=float(late.mean()), num=late.size,
            note="r < 1: every label counts against the policy that plays it; do not promise more than 1/(1+rho)"),
    ]  # fmt: skip


def _twin_rows(settings: Settings, generator: np.random.Generator) -> list[Row]:
    """Pairs of worlds with the same labels: no learner, offline or online, can tell them apart."""
    horizon, actions = 3, 4
    expert_HSA = np.eye(actions)[generator.integers(actions, size=(horizon, 2))]
    nu_HSA = generator.dirichlet(np.ones(actions), (horizon, 2))
    eta, alpha = settings.eta / 4, settings.eta
    twin_HSA = voting.confusing_policy(expert_HSA, nu_HSA, eta, alpha)
    difference = np.abs(mdp.noised(twin_HSA, eta, nu_HSA) - mdp.noised(expert_HSA, alpha, nu_HSA)).max()
    transition = generator.dirichlet(np.ones(2), (horizon - 1, 2, actions))
    world = mdp.MDP(np.array([0.5, 0.5]), transition)
    clean = mdp.trajectory_hellinger_sq(world, expert_HSA, twin_HSA)
    own_HS = ((1 - alpha) + (alpha - eta) * (nu_HSA * expert_HSA).sum(-1)) / (1 - eta)
    weight_S = np.sqrt(own_HS[-1])
    for h in range(horizon - 2, -1, -1):
        kernel_SS = np.einsum("sa,sat->st", expert_HSA[h], transition[h])
        weight_S = np.sqrt(own_HS[h]) * (kernel_SS @ weight_S)
    edge, labels_gap, parted = _swapped_experts(settings.rho, generator)
    note = "0 <= eta <= alpha <= 1, eta < 1 make it a law for every nu; every learner errs by D_H^2 / 4 or more on one of the two"
    return [
        Row(claim="unknown rate, even with nu known: a stochastic twin at eta has pi*'s labels at alpha", source=THEOREM,
            relation="<=", bound=1e-15, measured=float(difference), num=actions * 2 * horizon, note=note),
        Row(claim="their clean D_H^2 = 1 - E prod sqrt(twin(a*)) (not small)", source="DERIVED", relation="=",
            bound=float(1 - world.start_S @ weight_S), measured=clean, tolerance=1e-12,
            note=f"eta {eta:g}, alpha {alpha:g}, H = {horizon}"),
        Row(claim=f"unknown nu, eta (1+rho) = 1 (eta {edge:.4g}): two deterministic experts, same labels", source="DERIVED",
            relation="<=", bound=1e-15, measured=labels_gap, num=horizon * 2 * actions,
            note="each under its own nu, which aims rho at what the other plays: the margin is necessary for the worst nu"),
        Row(claim="clean D_H^2 of these two experts", source="DERIVED", relation="=", bound=1, measured=parted,
            tolerance=1e-12, note="they differ in every state"),
    ]  # fmt: skip


def _swapped_experts(rho: float, generator: np.random.Generator) -> tuple[float, float, float]:
    """(eta at the margin, largest difference of the noisy laws, clean D_H^2) of two experts that play each other's noise."""
    horizon, states, actions, edge = 3, 2, 4, 1 / (1 + rho)
    one_HS = generator.integers(actions, size=(horizon, states))
    two_HS = (one_HS + generator.integers(1, actions, size=one_HS.shape)) % actions
    # Expert, noisy expert: both rows speak of the same two.
    pairs = [
        (np.eye(actions)[expert], mdp.noised(np.eye(actions)[expert], edge, voting.aimed_noise(expert, other, rho, actions)))
        for expert, other in ((one_HS, two_HS), (two_HS, one_HS))
    ]  # fmt: skip
    (one, noisy_one), (two, noisy_two) = pairs
    world = mdp.MDP(
        np.full(states, 1 / states), generator.dirichlet(np.ones(states), (horizon - 1, states, actions))
    )
    clean = mdp.trajectory_hellinger_sq(world, one, two)
    return edge, float(np.abs(noisy_one - noisy_two).max()), clean


def _stochastic_rows(settings: Settings, generator: np.random.Generator) -> list[Row]:
    """A biased coin as expert, two steps, known noise: no vote can play it, NAIL's mixture comes near."""
    horizon, num, eta = 2, settings.coin_episodes, settings.eta
    distance_T = nail_coins.distance_by_episode(max(settings.exact_coin_episodes, num), horizon, eta)
    mean, low, high = nail_coins.simulated_distance(num, horizon, eta, settings.coin_runs, generator)
    mean_T = np.cumsum(distance_T) / np.arange(1, len(distance_T) + 1)
    log_size = math.log(len(nail_coins.COINS))
    bound_T = np.asarray(noise_bounds.nail_bound(log_size, np.arange(1, len(mean_T) + 1), eta, horizon))
    share_T = np.where(bound_T < 1, mean_T / bound_T, 0)
    at = int(share_T.argmax())
    untrained = distance_T[0]
    return [
        Row(claim=f"expert = coin {nail_coins.COINS[0]:g}, H = {horizon}: NAIL's mu_T, n = {num}, is nearer than any vote",
            source=f"{PAPER} Thm 8", relation="<=", bound=nail_coins.best_vote(horizon), measured=mean, low=low,
            high=high, num=settings.coin_runs,
            note=f"E D_H^2; the best of the 2^H votes has 1 - 0.8^(H/2), the untrained mixture {untrained:.4f}"),
        Row(claim=f"its E D_H^2, n = {num}, is the binomial sum", source="DERIVED", relation="=",
            bound=float(mean_T[num - 1]), measured=mean, low=low, high=high, num=settings.coin_runs),
        Row(claim="its E D_H^2 / (9/2 H/(1-eta) sqrt(log|Pi|/n)), all n where that is < 1 (largest)",
            source=f"{PAPER} Thm 8; constant DERIVED", relation="<=", bound=1, measured=float(share_T[at]),
            num=int((bound_T < 1).sum()),
            note=f"at n = {at + 1}; at n = {len(mean_T)} the untrained mixture is {untrained / bound_T[-1]:.2f} times the bound"),
    ]  # fmt: skip


def _reading(settings: Settings, step: StepCloud, worlds: list[WorldRuns]) -> tuple[str, ...]:
    total = float(_code_mistakes(settings).sum())
    limit = bounds.mistakes(settings.alpha, settings.rho, 2**settings.num_digits)
    excess = int(np.sum(step.drop_N < step.printed_N - 1e-12))
    edge, rho = 1 / (1 + settings.rho), settings.rho
    below, past = (aimed_error(settings.num_labels, min(x * edge, 0.999), rho) for x in (0.9, 1.1))
    over = replace(settings, eta=settings.alpha)
    return (
        f"The potential falls as printed in {len(step.drop_N) - excess} of {len(step.drop_N)} random worlds, computed "
        "exactly; a tied vote against noise as adverse as promised falls by exactly the printed half.",
        f"Summed over a run, {2**settings.num_digits} codes cost {total:.1f} mistaken episodes at any horizon "
        f"({_code_mistakes(over).sum():.1f} at eta = alpha), where the theorem allows {limit:.1f}; {settings.num_policies} "
        f"policies around a hidden one cost {worlds[0].mistakes[0]:.1f} at H = {settings.horizons[0]} and "
        f"{worlds[-1].mistakes[0]:.1f} at H = {settings.horizons[-1]}.",
        "D_H^2 between deterministic policies is the probability of a mistake, so the proof gives 2 log|Pi| / (n gap): "
        "half of the printed bound.",
        f"With rho = {rho:g} on one wrong action the vote errs with probability {below:.2g} at 0.9 of the margin and "
        f"{past:.3f} at 1.1: it converges to the wrong policy, as any learner may, for at the margin another expert "
        "gives the same labels.",
        "If the noise is unknown and the expert may be stochastic, no learner can tell: a stochastic expert under little "
        "noise and a deterministic one under more have equal labels, to rounding.",
    )
