"""Pessimism from base-model samples: its rates, its penalty, its rival, and what is wrong with the printed bound.

G gaps, R repetitions. Losses of the families are exact (binomial); the random, the lucky and the rival worlds are simulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from understudy.theory import pessimism
from understudy.theory.bounds.pessimism import explicit_bound, printed_bound, theory_beta
from understudy.theory.intervals import bounded_mean_interval, proportion_interval
from understudy.theory.outcome import Line, Outcome, Panel, Progress, Row, silent
from understudy.theory.pessimism_checks import (
    Contest,
    Interval,
    contest,
    random_row,
    row,
    unbiased_row,
)

Array = np.ndarray
PAPER = "arXiv:2606.30445 Thm 5"
SEED_TAG = 205
LARGE, WIDE = pessimism.LARGE, 16.0
JOINT = "from two 99.9 % intervals, so 99.8 %"
FAILURE = 0.05
"""Probability with which the explicit bound may be exceeded; part of the theory's beta."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    nums: Sequence[int] = (300, 1000, 3000, 10_000, 30_000)
    """Sample sizes of the exact families."""
    coverages: Sequence[float] = (4.0, 8.0, 16.0, 32.0, 64.0)
    """C_base* of the two-student family."""
    rare_nums: Sequence[int] = (300, 1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000)
    rare_coverage: float = 8.0
    num_rare_contexts: int = 8
    num_tail: int = 10_000
    """|Y| - 1 of the world whose best student is the base model."""
    num_reps: int = 2000
    lucky_num: int = 400
    """Samples in the world with a hundred rare responses."""
    betas: Sequence[float] = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    num_worlds: int = 40
    """Random worlds for the explicit bound."""
    rival_coverage: float = 32.0
    """Coverage of the side that covers badly."""
    rival_nums: Sequence[int] = (30, 100, 300, 1000, 3000)
    rival_shown: int = 300
    """Sample size of the head-to-head rows; one of `rival_nums`."""


def run(seed: int = 0, progress: Progress = silent, settings: Settings = Settings()) -> Outcome:
    """Theorem 5: rates, the derived constants, the penalty's role, and pessimism against offline imitation."""
    if settings.rival_shown not in settings.rival_nums or 0.0 not in settings.betas:
        raise ValueError(
            f"rival_shown must be one of rival_nums and 0 one of betas, got {settings.rival_shown} of "
            f"{settings.rival_nums} and {settings.betas}."
        )
    generator = np.random.default_rng([seed, SEED_TAG])
    families = pessimism.families(settings.coverages, settings.nums, FAILURE)
    progress(0.4)
    rare_N, rare_printed_N = _rare(settings)
    constant = float((families.worst_CN / families.printed_CN).max())
    rare_constant = float((rare_N / rare_printed_N).max())
    lucky = _lucky(generator, settings)
    progress(0.7)
    bad, num_reps = settings.rival_coverage, settings.num_reps
    worlds = [pessimism.rivals(8, 0.05, *coverages) for coverages in ((bad, 3.0), (1.0, bad))]
    contests = [contest(generator, w, settings.rival_nums, num_reps, FAILURE) for w in worlds]
    progress(0.9)
    drawn_row = random_row(generator, settings.num_worlds, max(2, num_reps // 20), FAILURE)
    rows = (
        unbiased_row(generator),
        *_rate_rows(families, rare_N, settings),
        *_constant_rows(families, constant, rare_constant, settings),
        drawn_row,
        *_penalty_rows(lucky, settings),
        *_contest_rows(contests, settings),
    )
    first, second = _rate_panels(families, rare_N, settings)
    panels = (first, second, _beta_panel(lucky, settings), _contest_panel(contests, settings))
    progress(1.0)
    reading = _reading(families, rare_N, constant, lucky, contests, settings)
    return Outcome(rows=rows, panels=panels, reading=reading, settings=asdict(settings))


def _rare(settings: Settings) -> tuple[Array, Array]:
    """(exact losses, printed bounds) [N] of students that differ at rare contexts of mass C/N each, with the theory's beta."""
    coverage, num_policies = settings.rare_coverage, 2**settings.num_rare_contexts
    best, records = coverage / (coverage - 1), []
    for num in settings.rare_nums:
        beta = theory_beta(best, 1.0, num_policies, num, FAILURE)
        prob = min(coverage / num, 1 / settings.num_rare_contexts)
        loss = settings.num_rare_contexts * prob / 2 * pessimism.rare_context_miss(coverage, prob, num, beta)
        records.append((loss, printed_bound(coverage, best, 1.0, num_policies, num)))
    loss_N, printed_N = np.array(records).T
    return loss_N, printed_N


def _slope(x: Array, y: Array) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _tail_losses(settings: Settings) -> tuple[float, float, float]:
    """pi* = pi_base at the largest N, exact: printed and second-moment penalty, our beta; printed penalty, beta 0.1/|Y|."""
    num = settings.nums[-1]
    beta = theory_beta(1.0, 1.0, 2, num, FAILURE)
    printed = pessimism.tail_loss(settings.num_tail, num, beta, "printed")
    second_moment = pessimism.tail_loss(settings.num_tail, num, beta, "second moment")
    small_beta = 0.1 / (settings.num_tail + 1)
    return printed, second_moment, pessimism.tail_loss(settings.num_tail, num, small_beta, "printed")


class _Lucky(NamedTuple):
    """The world of rare responses: mean losses over V_max with intervals."""

    by_beta: list[Interval]
    theory: float
    """The theory's beta."""
    at_theory: Interval
    at_zero: Interval
    limit: float
    """Loss of the student with the least penalty, chosen as beta grows."""
    log_at_theory: Interval
    """With f = log."""
    log_at_zero: Interval
    unseen_log: Interval
    """Share of logs at which beta = 0 takes a response that was never sampled, when f = log."""
    unseen_shifted: Interval
    """The same with f - min f."""


def _lucky(generator: np.random.Generator, settings: Settings) -> _Lucky:
    num, num_reps, num_rare, rare_prob = settings.lucky_num, settings.num_reps, 100, 1e-4
    scores = ((0.6, 0.4, 0.1), (-0.5, -1.0, -6.0), (5.5, 5.0, 0.0))
    world, logs, shifted = (
        pessimism.lucky_world(num_rare, rare_prob, good_safe_rare) for good_safe_rare in scores
    )
    counts_RXY = pessimism.draw_counts(world.context_X, world.base_XY, num, num_reps, generator)
    coverage = float(world.coverage_K[0])
    beta, log_beta = (theory_beta(coverage, w.v_max, num_rare + 2, num, FAILURE) for w in (world, logs))

    def loss(chosen: pessimism.LoggedBandit, weight: float) -> Interval:
        shortfall_R = pessimism.shortfall(chosen, pessimism.pessimistic_choice(chosen, counts_RXY, weight))
        return bounded_mean_interval(shortfall_R / chosen.v_max, 0, 2)

    def unseen(chosen: pessimism.LoggedBandit) -> Interval:
        choice_RK = pessimism.pessimistic_choice(chosen, counts_RXY, 0.0)
        # Ties are broken evenly; a log counts if the response it most likely takes was never sampled.
        num_unseen = int(((choice_RK * (counts_RXY[:, 0] == 0)).sum(1) > 0.5).sum())
        return num_unseen / num_reps, *proportion_interval(num_unseen, num_reps)

    least = int(np.argmin(world.penalty_KX("printed")[:, 0]))
    return _Lucky(
        by_beta=[loss(world, weight) for weight in settings.betas],
        theory=beta,
        at_theory=loss(world, beta),
        at_zero=loss(world, 0.0),
        limit=float(world.online_K.max() - world.online_K[least]) / world.v_max,
        log_at_theory=loss(logs, log_beta),
        log_at_zero=loss(logs, 0.0),
        unseen_log=unseen(logs),
        unseen_shifted=unseen(shifted),
    )


def _slopes(families: pessimism.Families, settings: Settings) -> tuple[float, float, float]:
    """Log-log slopes: in N at the largest C*, in C*, and in C* with the beta that ignores it.

    In C* from 16 on: below, the other student's own coverage C*/(C* - 1) matters.
    """
    coverages_C = np.array(settings.coverages)
    wide_C = coverages_C >= WIDE
    in_num = _slope(np.array(settings.nums), families.worst_CN[-1])
    tables = families.worst_CN, families.agnostic_CN
    in_coverage, in_agnostic = (_slope(coverages_C[wide_C], table_CN[wide_C, -1]) for table_CN in tables)
    return in_num, in_coverage, in_agnostic


def _rare_slopes(rare_N: Array, settings: Settings) -> str:
    """Log-log slopes of the loss on rare contexts: from one N to the next at both ends, and overall."""
    log_N, log_loss_N = np.log(settings.rare_nums), np.log(rare_N)
    local = np.diff(log_loss_N) / np.diff(log_N)
    overall = _slope(np.array(settings.rare_nums), rare_N)
    return f"slope {local[0]:.2f} at the least N, {local[-1]:.2f} at the largest, {overall:.2f} over all"


def _rate_rows(families: pessimism.Families, rare_N: Array, settings: Settings) -> list[Row]:
    in_num, in_coverage, in_agnostic = _slopes(families, settings)
    nums, coverages, num_cells = settings.nums, settings.coverages, families.worst_CN.size
    num_wide = sum(coverage >= WIDE for coverage in coverages)
    limit = (
        0.5
        * settings.num_rare_contexts
        * settings.rare_coverage
        * pessimism.rare_limit(settings.rare_coverage)
    )
    breakable = f"a wrong learner can exceed it in {families.num_breakable} of {num_cells} cells"
    normal = float(np.abs(families.worst_CN[:, -1] / families.normal_CN[:, -1] - 1).max())
    return [
        row(f"Two students, worst gap, C* = {coverages[-1]:g}: loss falls as N^-1/2", "=", -0.5, in_num, len(nums), 0.03,
             PAPER, "log-log slope; exact losses"),
        row(f"l rare contexts of mass C/N: N x loss at N = {settings.rare_nums[-1]:.0e} within 1 % of its limit", "=", limit,
             float(rare_N[-1] * settings.rare_nums[-1]), 1, 0.01 * limit, PAPER,
             f"C = {settings.rare_coverage:g}, l = {settings.num_rare_contexts}; a far limit, each N with its own contexts: "
             f"{_rare_slopes(rare_N, settings)}"),
        row(f"Loss grows as C*^1/2 at N = {nums[-1]}, C* from {WIDE:g}", "=", 0.5, in_coverage, num_wide, 0.05, PAPER,
             f"beta that knows C*; slope {_slope(np.array(coverages), families.worst_CN[:, -1]):.2f} from C* = {coverages[0]:g}"),
        row("With a beta that ignores C*, loss grows as C*", "=", 1.0, in_agnostic, num_wide, 0.1,
             note="so sqrt(C*) needs to know C*"),
        row(f"Worst loss at N = {nums[-1]} against its normal limit: relative difference", "<=", 0.05, normal, len(coverages),
             note="max over gaps of gap Phi((beta (C - C/(C-1)) - gap) / sd); the limit is N to infinity"),
        row("P(loss > derived explicit bound) is at most its failure probability", "<=", FAILURE,
             families.worst_failure, num_cells, note=f"largest over gaps, coverages and N; exact; {breakable}"),
        row("Largest expected loss / derived explicit bound is at most 1", "<=", 1.0,
             float((families.worst_CN / families.explicit_CN).max()), num_cells, note=f"exact; {breakable}"),
    ]  # fmt: skip


def _constant_rows(
    families: pessimism.Families, constant: float, rare_constant: float, settings: Settings
) -> list[Row]:
    allowed = float((families.explicit_CN / families.printed_CN).max())
    num, coverage = settings.nums[-1], settings.coverages[-1]
    tail_loss, moment_loss, small_loss = _tail_losses(settings)
    tail_beta = theory_beta(1.0, 1.0, 2, num, FAILURE)
    tail_printed = constant * printed_bound(2.0, 1.0, 1.0, 2, num)
    tail_explicit = explicit_bound(tail_beta, 1.0, 2.0, 1.0, 2, num, FAILURE, is_one_context=True)
    large = printed_bound(coverage, coverage, LARGE, 2, num, constant) / LARGE
    return [
        row("Constant that two students imply for the printed bound, V_max = 1", "<=", allowed, constant,
             families.worst_CN.size, source=PAPER,
             note=f"bound: what the derived constants allow; the rare contexts imply only {rare_constant:.2g}"),
        row(f"Loss / V_max is the same at V_max = {LARGE:g} and 1", "=", 0.0, families.scale_error,
             len(settings.coverages), 1e-9),
        row(f"sqrt(C* V_max ln|Pi|/N) as printed, that constant: holds at V_max = {LARGE:g}", "<=", large,
             float(families.worst_CN[-1, -1]), 1, source=PAPER, is_refuted=True,
             note=f"C* = {coverage:g}, N = {num}; both over V_max, which belongs in front of the root"),
        row(f"Printed penalty, pi* = pi_base, |Y| = {settings.num_tail + 1}, beta without |Y|: bound holds", "<=",
             tail_printed, tail_loss, 1, source=f"{PAPER} with our beta", is_refuted=True,
             note=f"PL(pi_base) = |Y| at C* = 1; a beta > {0.5 / (settings.num_tail - 1):.2g} fails; ours, for PL = C*, "
             f"is {tail_beta:.2g}"),
        row("Same world, printed penalty, a beta that knows |Y| (0.1/|Y|): bound holds", "<=", tail_printed, small_loss, 1,
             source=f"{PAPER} with beta = 0.1/|Y|", note="so what fails is a beta that is set without |Y|, not every beta"),
        row("Same world, penalty sum_y pi^2/pi_base: within the explicit bound", "<=", tail_explicit, moment_loss, 1),
    ]  # fmt: skip


def _minus(left: Interval, right: Interval) -> Interval:
    """left - right with the interval that both intervals together allow: it covers with 99.8 %, not 99.9 %."""
    return left[0] - right[0], left[1] - right[2], left[2] - right[1]


def _penalty_rows(lucky: _Lucky, settings: Settings) -> list[Row]:
    num, zero = settings.num_reps, lucky.at_zero
    return [
        row(f"100 rare responses, N = {settings.lucky_num}: beta = 0 loses more than theory's beta", ">=", 0.0,
             _minus(zero, lucky.at_theory), num, note=f"{zero[0]:.3g} against {lucky.at_theory[0]:.3g}, over V_max; {JOINT}"),
        row(f"Too large a beta ({max(settings.betas):g}) ends at the least-penalised student", "=", lucky.limit,
             lucky.by_beta[int(np.argmax(settings.betas))], num, 1e-9, note="the exact bias J_on(pi*) - J_on(argmin PL)"),
        row("f = log < 0, beta = 0: P(it takes a response never sampled) is 1", "=", 1.0, lucky.unseen_log, num,
             note="share of logs; an unseen response scores 0, the best of a negative f"),
        row("The same f minus its minimum, beta = 0: P is 0", "=", 0.0, lucky.unseen_shifted, num,
             note="share of logs"),
        row("f = log: the theory's beta loses less than beta = 0", ">=", 0.0,
             _minus(lucky.log_at_zero, lucky.log_at_theory), num, note=f"difference of losses over V_max; {JOINT}"),
    ]  # fmt: skip


def _contest_rows(contests: list[Contest], settings: Settings) -> list[Row]:
    at, num = list(settings.rival_nums).index(settings.rival_shown), settings.num_reps
    (first, second), bad, shown = contests, settings.rival_coverage, settings.rival_shown
    even = "all students have the same penalty: coverage decides, not beta"
    return [
        row(f"C_e = {bad:g}, C_base = 3, N = {shown}: imitation loses more than pessimism", ">=", 0.0,
             _minus(first.offline[at], first.pessimistic[at]), num, note=f"{even}; {JOINT}"),
        row(f"C_e = 1, C_base = {bad:g}, N = {shown}: pessimism loses more than imitation", ">=", 0.0,
             _minus(second.pessimistic[at], second.offline[at]), num, note=f"{even}; {JOINT}"),
        row("Imitation's loss there is the closed form with C_e", "=", first.offline_exact[at], first.offline[at], num),
        row("Pessimism's loss there is the closed form with C_base", "=", second.pessimistic_exact[at],
             second.pessimistic[at], num),
        row("There the penalty plays no part: largest change of a loss at beta = 0 or 10", "=", 0.0,
             max(first.beta_effect, second.beta_effect), 2 * num * len(settings.rival_nums), 1e-12,
             note="all students have the same PL; the worlds compare coverage"),
    ]  # fmt: skip


def _rate_panels(families: pessimism.Families, rare_N: Array, settings: Settings) -> tuple[Panel, Panel]:
    nums, coverages = list(settings.nums), list(settings.coverages)
    rare_nums = list(settings.rare_nums)
    lines = [Line(label="rare contexts of mass C/N", x=rare_nums, y=rare_N.tolist(), group="rare")]
    for i in sorted({0, len(coverages) - 1}):
        name = f"C* = {coverages[i]:g}"
        lines.append(Line(label=f"{name}, worst gap", x=nums, y=families.worst_CN[i].tolist(), group=name))
        explicit = families.explicit_CN[i].tolist()
        lines.append(Line(label=f"{name}, derived bound", x=nums, y=explicit, role="bound", group=name))
    worst, normal, explicit, agnostic = (
        table[:, -1].tolist()
        for table in (families.worst_CN, families.normal_CN, families.explicit_CN, families.agnostic_CN)
    )
    y_label = "J_on(pi*) - J_on(pi_hat), V_max = 1"
    return (
        Panel(title="Loss of the pessimistic learner against samples", x_label="N", y_label=y_label,
              x_scale="log", y_scale="log", lines=tuple(lines)),
        Panel(title=f"Loss against coverage of the best student, N = {nums[-1]}", x_label="C_base* = sup pi*/pi_base",
              y_label=y_label, x_scale="log", y_scale="log",
              lines=(Line(label="beta of the theory", x=coverages, y=worst, group="beta"),
                     Line(label="normal limit", x=coverages, y=normal, role="predicted", group="beta"),
                     Line(label="derived bound", x=coverages, y=explicit, role="bound", group="beta"),
                     Line(label="beta that ignores C*", x=coverages, y=agnostic, group="loose"))),
    )  # fmt: skip


def _beta_panel(lucky: _Lucky, settings: Settings) -> Panel:
    drawn = [(beta, *loss) for beta, loss in zip(settings.betas, lucky.by_beta, strict=True) if beta > 0]
    betas, means, lows, highs = (list(column) for column in zip(*drawn, strict=True))
    ends = [betas[0], betas[-1]]
    return Panel(
        title=f"The penalty's weight: 100 rare responses, N = {settings.lucky_num}",
        x_label="beta", y_label="loss / V_max", x_scale="log",
        lines=(Line(label="pessimistic learner", x=betas, y=means, low=lows, high=highs),
               Line(label="beta = 0", x=ends, y=[lucky.at_zero[0]] * 2, role="predicted"),
               Line(label="least-penalised student", x=ends, y=[lucky.limit] * 2, role="predicted"),
               Line(label="theory's beta", x=[lucky.theory] * 2, y=[0, lucky.at_zero[0]], role="bound")),
    )  # fmt: skip


def _contest_panel(contests: list[Contest], settings: Settings) -> Panel:
    lines, nums, bad = [], list(settings.rival_nums), settings.rival_coverage
    worlds = (f"C_e {bad:g}, C_base 3", f"C_e 1, C_base {bad:g}")
    for world, found in zip(worlds, contests, strict=True):
        pairs = (found.pessimistic, found.pessimistic_exact), (found.offline, found.offline_exact)
        for name, (measured, exact) in zip(("pessimism", "imitation"), pairs, strict=True):
            label = f"{name}: {world}"
            means, lows, highs = (list(column) for column in zip(*measured, strict=True))
            lines.append(Line(label=label, x=nums, y=means, low=lows, high=highs, group=label))
            lines.append(Line(label=f"{label}, exact", x=nums, y=exact, role="predicted", group=label))
    title = "The same N: base-model samples with scores, or demonstrations"
    return Panel(title=title, x_label="N", y_label="V(pi*) - V(pi_hat)", x_scale="log", lines=tuple(lines))


def _reading(
    families: pessimism.Families, rare_N: Array, constant: float, lucky: _Lucky, contests: list[Contest],
    settings: Settings,
) -> tuple[str, ...]:  # fmt: skip
    at = list(settings.rival_nums).index(settings.rival_shown)
    in_num, in_coverage, in_agnostic = _slopes(families, settings)
    first, second = contests
    rare_limit = rare_N[-1] * settings.rare_nums[-1]
    slack = (families.explicit_CN / families.worst_CN).min()
    tail_loss, moment_loss, small_loss = _tail_losses(settings)
    ratio = tail_loss / printed_bound(2.0, 1.0, 1.0, 2, settings.nums[-1])
    return (
        f"At the worst gap the loss falls as N^{in_num:.2f} and grows as C*^{in_coverage:.2f} (C*^{in_agnostic:.2f} if beta "
        f"ignores C*); l rare contexts of mass C/N cost {rare_limit:.2g} / N in a far limit only "
        f"({_rare_slopes(rare_N, settings)}; each N has its own contexts). The printed bound needs a constant of at least "
        f"{constant:.2g}; the derived one, with every constant, is {slack:.2g} times the loss at its tightest.",
        "As printed the bound fails twice: V_max belongs in front of the root, and for students that are not deterministic "
        f"the penalty can be |Y|: with pi* = pi_base, |Y| = {settings.num_tail + 1} and a beta that does not know |Y| the loss "
        f"is {tail_loss:.2g} at N = {settings.nums[-1]}, {ratio:.0f} times the printed bound at constant 1; with beta = 0.1/|Y| "
        f"it is {small_loss:.2g}, and with sum_y pi^2/pi_base, which needs no |Y|, {moment_loss:.2g}.",
        f"Without the penalty the learner takes a rare response seen by luck and loses {lucky.at_zero[0]:.2g} of V_max; "
        f"with beta = {lucky.theory:.2g} it loses {lucky.at_theory[0]:.2g}; with too large a beta {lucky.limit:.2g}, whatever "
        "the data say.",
        "A log score is negative, so without a penalty a response that was never sampled looks perfect: it is taken with "
        f"probability {lucky.unseen_log[0]:.2g}; after subtracting the least f, with probability {lucky.unseen_shifted[0]:.2g}.",
        f"With N = {settings.rival_shown} each: expert coverage bad, imitation loses {first.offline[at][0]:.3f} and pessimism "
        f"{first.pessimistic[at][0]:.3f}; base coverage bad, {second.offline[at][0]:.3f} and {second.pessimistic[at][0]:.3f}. "
        "What decides there is coverage, not the penalty, which is the same for all students.",
    )
