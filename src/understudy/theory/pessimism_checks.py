"""Checks of the pessimistic learner on drawn logs: its estimates, its explicit bound, and its rival from demonstrations.

X contexts, Y responses, K students, R repetitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from understudy.theory import pessimism
from understudy.theory.alignment import random_students
from understudy.theory.bounds.pessimism import explicit_bound, theory_beta
from understudy.theory.intervals import bounded_mean_interval, proportion_interval
from understudy.theory.outcome import Row

Interval = tuple[float, float, float]
"""(mean, low, high)."""

RANDOM_NUM = 20_000
"""Samples in the random worlds: enough for the explicit bound to lie below the loss of a bad student."""


def row(
    claim: str, relation: Literal["<=", ">=", "="], bound: float, measured: float | Interval, num: int,
    tolerance: float = 0.0, source: str = "DERIVED", note: str = "", is_refuted: bool = False,
) -> Row:  # fmt: skip
    """A row from a number, or from (mean, low, high)."""
    mean, low, high = measured if isinstance(measured, tuple) else (measured, None, None)
    return Row(
        claim=claim, source=source, relation=relation, bound=bound, measured=mean, low=low, high=high, num=num,
        tolerance=tolerance, note=note, is_refuted=is_refuted,
    )  # fmt: skip


def unbiased_row(generator: np.random.Generator) -> Row:
    """Exact means over all logs of three samples."""
    context_X, base_XY = generator.dirichlet(np.ones(2)), generator.dirichlet(np.full(3, 2.0), 2)
    student_KXY = random_students(4, 2, 3, generator)
    world = pessimism.LoggedBandit(context_X, base_XY, generator.uniform(-1, 1, (2, 3)), student_KXY)
    counts_RXY, prob_R = pessimism.every_log(world.context_X, base_XY, 3)
    ipw_error = np.abs(prob_R @ pessimism.ipw_estimate(world, counts_RXY) - world.online_K).max()
    expected_K = world.penalty_KX("printed") @ world.context_X
    penalty_error = np.abs(prob_R @ pessimism.penalty_estimate(world, counts_RXY) - expected_K).max()
    return row("J_ipw and PL (of E_x sum_y pi/pi_base) are unbiased: largest |bias|", "=", 0.0,
               float(max(ipw_error, penalty_error)), len(prob_R), 1e-9, note="over all logs of 3 samples, exactly")  # fmt: skip


def random_row(generator: np.random.Generator, num_worlds: int, num_reps: int, failure: float) -> Row:
    """The explicit bound with the penalty of the drawn contexts, on random stochastic classes and both penalties."""
    violations, num_breakable, worst, most = 0, 0, 0.0, 0.0
    for _ in range(num_worlds):
        base_XY = 0.9 * generator.dirichlet(np.full(5, 0.5), 3) + 0.02
        context_X = generator.dirichlet(np.ones(3))
        score_XY = generator.uniform(-1, 1, (3, 5))
        world = pessimism.LoggedBandit(context_X, base_XY, score_XY, random_students(12, 3, 5, generator))
        best = int(np.argmax(world.online_K))
        coverage, range_ = float(world.coverage_K.max()), float(np.ptp(world.online_K))
        beta = theory_beta(float(world.coverage_K[best]), world.v_max, 12, RANDOM_NUM, failure)
        counts_RXY = pessimism.draw_counts(context_X, base_XY, RANDOM_NUM, num_reps, generator)
        for kind in ("printed", "second moment"):
            loss_R = pessimism.shortfall(world, pessimism.pessimistic_choice(world, counts_RXY, beta, kind))
            penalty_R = pessimism.penalty_estimate(world, counts_RXY, kind)[:, best]
            bound_R = np.array(
                [explicit_bound(beta, p, coverage, world.v_max, 12, RANDOM_NUM, failure) for p in penalty_R]
            )
            violations += int((loss_R > bound_R).sum())
            num_breakable += bool(range_ > bound_R.max())
            worst, most = (
                max(worst, float((loss_R / bound_R).max())),
                max(most, range_ / float(bound_R.min())),
            )
    total = 2 * num_worlds * num_reps
    measured = (violations / total, *proportion_interval(violations, total))
    note = f"N = {RANDOM_NUM}; the worst student would exceed it in {num_breakable} of {2 * num_worlds} worlds and penalties; "
    return row("Random stochastic classes: P(loss > explicit bound) within its failure rate", "<=", failure, measured, total,
               note=note + f"largest loss / bound {worst:.2g}, of the worst student {most:.2g}")  # fmt: skip


class Contest(NamedTuple):
    """Mean value losses (mean, low, high) by N, and the closed forms."""

    pessimistic: list[Interval]
    offline: list[Interval]
    pessimistic_exact: list[float]
    offline_exact: list[float]
    beta_effect: float
    """Largest difference that another beta (0, or 10) makes to the loss on any log."""


def contest(
    generator: np.random.Generator,
    world: pessimism.Rivals,
    nums: Sequence[int],
    num_reps: int,
    failure: float,
) -> Contest:
    """Both learners on `num_reps` logs of N samples each; the pessimistic one with the theory's beta."""
    logged, pessimistic, offline, effects = world.logged, [], [], []
    base_coverage = float(logged.coverage_K.max())
    expert_coverage = 1 / float(world.expert_XY[0, 1])
    for num in nums:
        theory = theory_beta(base_coverage, 1.0, len(logged.student_KXY), num, failure)
        counts_RXY = pessimism.draw_counts(logged.context_X, logged.base_XY, num, num_reps, generator)
        demos_RXY = pessimism.draw_counts(logged.context_X, world.expert_XY, num, num_reps, generator)
        choices = (pessimism.pessimistic_choice(logged, counts_RXY, beta) for beta in (theory, 0.0, 10.0))
        at_theory_R, at_zero_R, at_ten_R = (world.value_loss(choice_RK) for choice_RK in choices)
        offline_R = world.value_loss(pessimism.imitation_choice(logged.student_KXY, demos_RXY))
        pessimistic.append(bounded_mean_interval(at_theory_R, 0, 1))
        offline.append(bounded_mean_interval(offline_R, 0, 1))
        effects += [np.abs(at_zero_R - at_theory_R).max(), np.abs(at_ten_R - at_theory_R).max()]
    pessimistic_exact, offline_exact = (
        [pessimism.unseen_risk(logged.context_X, coverage, num) for num in nums]
        for coverage in (base_coverage, expert_coverage)
    )
    return Contest(pessimistic, offline, pessimistic_exact, offline_exact, float(max(effects)))
