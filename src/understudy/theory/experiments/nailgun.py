"""NAILGUN: a greedy vote finds a deterministic expert under noise it does not know, and where that ends."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

import numpy as np

from understudy.theory import learners, lock, mdp, voting
from understudy.theory.bounds import nailgun as bounds
from understudy.theory.intervals import bounded_mean_interval, mean_interval
from understudy.theory.outcome import Cloud, Line, Outcome, Panel, Progress, Row, silent

Array = np.ndarray

PAPER = "arXiv:2606.30923"
THEOREM = f"{PAPER} Thm 9"
STREAM = 3092302


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the NAILGUN experiment."""

    num_instances: int = 20000
    """Random worlds in which one step of the potential is computed exactly."""
    horizons: tuple[int, ...] = (2, 4, 8, 16)
    """Horizons of the real runs, ascending."""
    num_runs: int = 300
    num_episodes: int = 400
    num_policies: int = 32
    """Random deterministic policies of the random worlds."""
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


def run(seed: int = 0, progress: Progress = silent, settings: Settings = Settings()) -> Outcome:
    """The potential argument step by step, real runs against its sum, the margin, and what no learner can tell."""
    generator = np.random.default_rng([seed, STREAM])
    step = _potential_cloud(settings, generator, progress)
    rows = _potential_rows(settings, step)
    progress(0.4)
    random_rows, worlds_panel = _random_world_rows(settings, generator)
    progress(0.7)
    lock_rows, mistakes_panel = _lock_rows(settings, generator)
    progress(0.9)
    rows += [*random_rows, *lock_rows, *_margin_rows(settings), *_promise_rows(settings, generator)]
    rows += [*_twin_rows(settings, generator), *_stochastic_rows(settings, generator)]
    progress(1.0)
    return Outcome(
        rows=tuple(rows),
        panels=(_potential_panel(step), worlds_panel, mistakes_panel, _margin_panel(settings)),
        reading=_reading(settings, step),
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
        parts.append((1 - ratio_N, mistake_N, gap_N, 1 - gap_N - worst_N))
        progress(0.4 * (batch + 1) / num_batches)
    drop_N, mistake_N, gap_N, slack_N = (np.concatenate(part) for part in zip(*parts, strict=True))
    return StepCloud(drop_N=drop_N, mistake_N=mistake_N, gap_N=gap_N, label_slack_N=slack_N)


def _potential_rows(settings: Settings, step: StepCloud) -> list[Row]:
    num = len(step.drop_N)
    excess = float(np.max(step.gap_N / 2 * step.mistake_N - step.drop_N))
    ratio_N, mistake_N, worst_N = voting.potential_step(voting.tight_instance(settings.alpha, settings.rho))
    gap = bounds.gap(settings.alpha, settings.rho)
    is_mistaken_N = step.mistake_N > 1e-9
    least = float(np.min((step.drop_N / (step.gap_N * np.maximum(step.mistake_N, 1e-9)))[is_mistaken_N]))
    grid = [(0.01 * i / (1 + 0.1 * j), 0.1 * j) for i in range(1, 100) for j in range(1, 11)]
    form = max(bounds.margin(alpha, rho) ** 2 / bounds.gap(alpha, rho) for alpha, rho in grid)
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
        Row(claim="Thm 9's second form: margin^2 / gap is at most 2 (grid of alpha, rho)", source=THEOREM,
            relation="<=", bound=2, measured=form, num=len(grid), tolerance=1e-12,
            note="gap >= margin^2 / 2, so log|Pi| / (margin^2 n) holds with constant 8 as printed, 4 as derived"),
    ]  # fmt: skip


def _random_world(
    settings: Settings, horizon: int, generator: np.random.Generator
) -> tuple[mdp.MDP, Array, Array]:
    """Four states and actions, random policies; the noise has rho on one wrong action of the expert and 0 on its own."""
    states, actions = 4, 4
    shape = (horizon, states)
    transition = generator.dirichlet(np.full(states, 0.5), (horizon - 1, states, actions))
    world = mdp.MDP(generator.dirichlet(np.ones(states)), transition)
    action_KHS = generator.integers(actions, size=(settings.num_policies, *shape))
    # Rivals agree with the expert nearly everywhere, at any horizon: else one episode tells them all apart.
    stays = generator.random(action_KHS.shape) < 1 - 2 / horizon
    action_KHS = np.where(stays, action_KHS[:1], action_KHS)
    wrong_HS = (action_KHS[0] + generator.integers(1, actions, size=shape)) % actions
    rest_HSA = 1 - np.eye(actions)[wrong_HS] - np.eye(actions)[action_KHS[0]]
    nu_HSA = settings.rho * np.eye(actions)[wrong_HS] + (1 - settings.rho) * rest_HSA / (actions - 2)
    return world, learners.one_hot_policies(action_KHS, actions), nu_HSA


def _random_world_rows(settings: Settings, generator: np.random.Generator) -> tuple[list[Row], Panel]:
    """Real runs on random worlds: mistakes in all, and D_H^2 of the returned vote, against the potential's sum."""
    bound = bounds.mistakes(settings.alpha, settings.rho, settings.num_policies)
    found, identity, distances = [], [], []
    for horizon in settings.horizons:
        world, pi_KHSA, nu_HSA = _random_world(settings, horizon, generator)
        noisy_HSA = mdp.noised(pi_KHSA[0], settings.eta, nu_HSA)
        history = learners.nailgun(
            world, pi_KHSA, np.broadcast_to(noisy_HSA, (settings.num_runs, *noisy_HSA.shape)), settings.alpha,
            settings.rho, settings.num_episodes, generator,
        )  # fmt: skip
        found.append(mean_interval(learners.mistaken_episodes(history, pi_KHSA, 0).sum(0).astype(float)))
        drawn = generator.integers(settings.num_episodes, size=settings.num_runs)
        votes = [learners.vote(np.exp(history.logw_TRK[t, r]), pi_KHSA) for r, t in enumerate(drawn)]
        distance_R = np.array([mdp.trajectory_hellinger_sq(world, pi_KHSA[0], vote) for vote in votes])
        mistake_R = np.array([voting.mistake_probability(world, pi_KHSA[0], vote) for vote in votes])
        identity.append(float(np.abs(distance_R - mistake_R).max()))
        distances.append(bounded_mean_interval(distance_R, 0, 1))
    rows = [
        Row(claim="deterministic policies: D_H^2 of trajectories = P(mistake) (worst difference)", source="DERIVED",
            relation="<=", bound=1e-12, measured=max(identity), num=len(identity) * settings.num_runs,
            note="the laws are equal until the first mistake and disjoint after it")
    ]  # fmt: skip
    for at in (0, -1):
        mean, low, high = found[at]
        rows.append(
            Row(claim=f"random worlds, H = {settings.horizons[at]}: mistaken episodes in all <= 2 log|Pi| / gap",
                source=THEOREM, relation="<=", bound=bound, measured=mean, low=low, high=high, num=settings.num_runs,
                note=f"{settings.num_policies} policies, {settings.num_episodes} episodes, eta and nu not given")
        )  # fmt: skip
    mean, low, high = distances[0]
    printed = bounds.hellinger_sq(settings.alpha, settings.rho, settings.num_policies, settings.num_episodes)
    rows.append(
        Row(claim=f"returned vote, H = {settings.horizons[0]}, n = {settings.num_episodes}: E D_H^2 <= 4 log|Pi| / (n gap)",
            source=THEOREM, relation="<=", bound=printed, measured=mean, low=low, high=high, num=settings.num_runs,
            note="as D_H^2 = P(mistake), the proof gives 2 in place of the printed 4 where D_H^2 is at most 1")
    )  # fmt: skip
    line = Line(label="mistaken episodes in all", x=settings.horizons, y=[mean for mean, _, _ in found],
                low=[low for _, low, _ in found], high=[high for _, _, high in found])  # fmt: skip
    limit = Line(
        label="2 log|Pi| / gap", x=settings.horizons, y=[bound] * len(settings.horizons), role="bound"
    )
    panel = Panel(title="Random worlds: no growth with the horizon", x_label="horizon H", x_scale="log",
                  y_label="mistaken episodes", y_scale="log", lines=(line, limit))  # fmt: skip
    return rows, panel


def _aimed_lock(settings: Settings, horizon: int) -> tuple[mdp.MDP, Array, Array]:
    """The code lock; at every step the noise has rho on the action next to the expert's (all a2) and the rest on a3."""
    world, pi_KHSA, _ = lock.lock_world(horizon, settings.num_digits)
    nu_HSA = np.broadcast_to(np.array([settings.rho, 0.0, 1 - settings.rho]), pi_KHSA.shape[1:])
    return world, pi_KHSA, nu_HSA


def _lock_rows(settings: Settings, generator: np.random.Generator) -> tuple[list[Row], Panel]:
    """The code lock with noise that aims: mistakes are a sum of binomial sums, at every horizon."""
    exact_T = _code_mistakes(settings)
    rows = []
    for horizon in (settings.num_digits, 4 * settings.num_digits):
        world, pi_KHSA, nu_HSA = _aimed_lock(settings, horizon)
        # The expert plays a2 at every digit: the last code. Ties go to a1 and cost a mistake.
        noisy_HSA = mdp.noised(pi_KHSA[-1], settings.eta, nu_HSA)
        history = learners.nailgun(
            world, pi_KHSA, np.broadcast_to(noisy_HSA, (settings.num_runs, *noisy_HSA.shape)), settings.alpha,
            settings.rho, settings.num_episodes, generator,
        )  # fmt: skip
        mistaken_TR = learners.mistaken_episodes(history, pi_KHSA, len(pi_KHSA) - 1)
        mean, low, high = mean_interval(mistaken_TR.sum(0).astype(float))
        rows.append(
            Row(claim=f"{len(pi_KHSA)} codes, H = {horizon}: mistaken episodes in all = the binomial sums",
                source="DERIVED", relation="=", bound=float(exact_T.sum()), measured=mean, low=low, high=high,
                num=settings.num_runs)
        )  # fmt: skip
    bound = bounds.mistakes(settings.alpha, settings.rho, 2**settings.num_digits)
    rows.append(
        Row(claim="the same sum <= 2 log|Pi| / gap", source=THEOREM, relation="<=", bound=bound,
            measured=float(exact_T.sum()), note="exact, at every horizon; noise aimed at one wrong digit, eta below alpha"),
    )  # fmt: skip
    episodes = list(range(1, settings.num_episodes + 1))
    simulated_T = np.cumsum(mistaken_TR.mean(-1))
    panel = Panel(
        title=f"{2**settings.num_digits} codes, eta = {settings.eta:g}, alpha = {settings.alpha:g}",
        x_label="episodes n", y_label="mistaken episodes so far", y_scale="log", x_scale="log",
        lines=(Line(label=f"real runs, H = {horizon}", x=episodes, y=simulated_T.tolist(), group="m"),
               Line(label="binomial sums, any H", x=episodes, y=np.cumsum(exact_T).tolist(), role="predicted", group="m"),
               Line(label="2 log|Pi| / gap", x=episodes, y=[bound] * len(episodes), role="bound", group="b")),
    )  # fmt: skip
    return rows, panel


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
    flat = voting.vote_error(num, 1 - 0.9 + 0.9 / 3, 0.9 / 3)
    return [
        Row(claim=f"aimed noise, rho {rho:g}, eta 0.9/(1+rho): P(wrong vote) after {num} labels", source=THEOREM,
            relation="<=", bound=0.05, measured=_aimed_error(num, 0.9 * edge, rho)),
        Row(claim="the same at eta 1.1/(1+rho), past the margin: the vote is for the wrong policy", source="DERIVED",
            relation=">=", bound=0.95, measured=_aimed_error(num, min(1.1 * edge, 0.999), rho),
            note="labels of the wrong action, eta rho, then outnumber the right ones, 1 - eta"),
        Row(claim="at rho = 1, eta = 1/2 the vote is a coin, whatever n", source="DERIVED", relation="=", bound=0.5,
            measured=_aimed_error(num, 0.5, 1.0), tolerance=1e-9),
        Row(claim="labels for a fixed error grow like margin^-b, b = 2 (rho = 1, fitted b)",
            source=f"{PAPER} Prop 3", relation="=", bound=2, measured=-slope, tolerance=0.05,
            note=f"{needed[0]} labels at margin {margins[0]:g}, {needed[1]} at {margins[1]:g}; implied c = {implied:.3f}"),
        Row(claim=f"uniform noise, 3 actions, eta 0.9 (margin < 0): P(wrong vote), {num} labels", source="DERIVED",
            relation="<=", bound=0.01, measured=flat,
            note="margin alpha < A/(A+1) is sufficient, not necessary: the right action leads for every eta < 1"),
    ]  # fmt: skip


def _aimed_error(num: int, eta: float, rho: float) -> float:
    """P(wrong vote) of two policies after `num` labels, nu = rho on the wrong action and nothing on the right."""
    return voting.vote_error(num, 1 - eta, eta * rho)


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
    rho = settings.rho
    edge = 1 / (1 + rho)
    left, right = np.array([1 - edge, edge * rho]), np.array([edge * rho, 1 - edge])
    note = "0 <= eta <= alpha <= 1, eta < 1 make it a law for every nu; every learner errs by D_H^2 / 4 or more on one of the two"
    return [
        Row(claim="unknown nu: a stochastic twin at rate eta has the labels of pi* at rate alpha", source=THEOREM,
            relation="<=", bound=1e-15, measured=float(difference), num=actions * 2 * horizon, note=note),
        Row(claim="their clean D_H^2 = 1 - E prod sqrt(twin(a*)) (not small)", source="DERIVED", relation="=",
            bound=float(1 - world.start_S @ weight_S), measured=clean, tolerance=1e-12,
            note=f"eta {eta:g}, alpha {alpha:g}, H = {horizon}"),
        Row(claim="at eta (1+rho) = 1 two deterministic experts can have the same labels", source="DERIVED",
            relation="<=", bound=1e-15, measured=float(np.abs(left - right).max()),
            note="right and aimed-at action swapped: the margin is necessary for the worst nu, clean D_H^2 = 1"),
    ]  # fmt: skip


def _stochastic_rows(settings: Settings, generator: np.random.Generator) -> list[Row]:
    """A coin as expert, two steps, known noise: no vote can play it, NAIL's mixture comes near."""
    horizon, rate = 2, settings.eta
    world = mdp.MDP(np.ones(1), np.ones((horizon - 1, 1, 2, 1)))
    rows_KA = np.array([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]])
    pi_KHSA = np.broadcast_to(rows_KA[:, None, None], (3, horizon, 1, 2))
    nu_HSA = np.full((horizon, 1, 2), 0.5)
    labels_RHSA = np.broadcast_to(mdp.noised(pi_KHSA[0], rate, nu_HSA), (settings.num_runs, horizon, 1, 2))
    history = learners.nail(world, pi_KHSA, labels_RHSA, rate, nu_HSA, settings.num_episodes, generator)
    mixtures = (learners.mixture(weight_K, pi_KHSA) for weight_K in np.exp(history.logw_TRK[-1]))
    nail = [mdp.trajectory_hellinger_sq(world, pi_KHSA[0], mixed_HSA) for mixed_HSA in mixtures]
    mean, low, high = bounded_mean_interval(np.array(nail), 0, 1)
    best = min(
        mdp.trajectory_hellinger_sq(world, pi_KHSA[0], np.eye(2)[np.array([first, second])][:, None])
        for first in (0, 1) for second in (0, 1)
    )  # fmt: skip
    return [
        Row(claim="a stochastic expert (coin, H = 2): D_H^2 of every vote is 1 - 2^(-H/2)", source="DERIVED",
            relation="=", bound=1 - 2 ** (-horizon / 2), measured=best, num=4, tolerance=1e-12),
        Row(claim=f"NAIL, given the noise, n = {settings.num_episodes + 1}: E D_H^2 of mu_n is below every vote's",
            source=f"{PAPER} Thm 8", relation="<=", bound=best, measured=mean, low=low, high=high, num=settings.num_runs),
    ]  # fmt: skip


def _potential_panel(step: StepCloud) -> Panel:
    shown = slice(0, 1500)
    least_N = step.gap_N * step.mistake_N
    return Panel(
        title="One exact step of the potential", x_label="gap x P(mistake)", y_label="1 - E[W'/W]",
        clouds=(Cloud(label="a random world", x=least_N[shown].tolist(), y=step.drop_N[shown].tolist()),),
        lines=(Line(label="printed: half of it", x=[0.0, 1.0], y=[0.0, 0.5], role="bound"),),
        x_limits=(0.0, 1.0),
    )  # fmt: skip


def _margin_panel(settings: Settings) -> Panel:
    num, lines = settings.num_labels, []
    etas = [round(0.02 * i, 2) for i in range(10, 50)]
    for rho in (1.0, settings.rho):
        lines.append(Line(label=f"aimed noise, rho = {rho:g} (margin at {1 / (1 + rho):.3g})", x=etas,
                          y=[_aimed_error(num, eta, rho) for eta in etas], group=f"{rho}"))  # fmt: skip
        lines.append(
            Line(
                label=f"eta = 1/(1 + {rho:g})",
                x=[1 / (1 + rho)] * 2,
                y=[0.0, 1.0],
                role="bound",
                group=f"{rho}",
            )
        )
    lines.append(Line(label="uniform noise, 3 actions (margin at 0.75)", x=etas, group="u",
                      y=[voting.vote_error(num, 1 - eta + eta / 3, eta / 3) for eta in etas]))  # fmt: skip
    return Panel(title=f"Vote of two policies after {num} labels", x_label="noise rate eta",
                 y_label="P(wrong policy)", lines=lines, y_limits=(-0.02, 1.02))  # fmt: skip


def _reading(settings: Settings, step: StepCloud) -> tuple[str, ...]:
    total = float(_code_mistakes(settings).sum())
    limit = bounds.mistakes(settings.alpha, settings.rho, 2**settings.num_digits)
    excess = int(np.sum(step.drop_N < step.gap_N / 2 * step.mistake_N - 1e-12))
    edge, rho = 1 / (1 + settings.rho), settings.rho
    below, past = (_aimed_error(settings.num_labels, min(x * edge, 0.999), rho) for x in (0.9, 1.1))
    over = replace(settings, eta=settings.alpha)
    return (
        f"The potential falls as printed in {len(step.drop_N) - excess} of {len(step.drop_N)} random worlds, computed "
        "exactly; a tied vote against noise as adverse as promised falls by exactly the printed half.",
        f"Summed over a run, {2**settings.num_digits} codes cost {total:.1f} mistaken episodes at any horizon "
        f"({_code_mistakes(over).sum():.1f} at eta = alpha), where the theorem allows {limit:.1f}.",
        "D_H^2 between deterministic policies is the probability of a mistake, so the proof gives 2 log|Pi| / (n gap): "
        "half of the printed bound.",
        f"With rho = {rho:g} on one wrong action the vote errs with probability {below:.2g} at 0.9 of the margin and "
        f"{past:.3f} at 1.1: it converges to the wrong policy, as any learner may, for at the margin another expert "
        "gives the same labels.",
        "If the noise is unknown and the expert may be stochastic, no learner can tell: a stochastic expert under little "
        "noise and a deterministic one under more have equal labels, to rounding.",
    )
