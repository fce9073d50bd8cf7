"""How far the pessimistic learner falls short of the best student, from samples of the base model."""

from __future__ import annotations

import math


def printed_bound(
    class_coverage: float,
    best_coverage: float,
    v_max: float,
    num_policies: int,
    num_samples: int,
    constant: float = 1.0,
) -> float:
    """The printed rate with a constant in the place of O(.):

        J_on(pi*) - J_on(pi_hat) <= c (C_base(Pi) V_max ln|Pi| / N + sqrt(C_base* V_max ln|Pi| / N))

    Theorem (as printed): |f| <= V_max, pi_hat = argmax J_ipw - beta PL over a finite Pi, C_base* = sup pi*/pi_base,
    C_base(Pi) the largest such coverage in Pi. The scale of beta is not stated in what we restate, nor is c.
    Two things are wrong with it as printed (both DERIVED, both shown by the experiment). V_max stands inside the root: if f
    is doubled with everything else the loss doubles and the root does not, so no c serves every V_max; read it with
    V_max = 1, or use `scaled_bound`. And for students that are not deterministic PL can be as large as |Y| at coverage 1,
    so that with a beta that does not know |Y| no c serves every |Y| (one far below 1/|Y| may); sum_y pi^2/pi_base is at most
    the coverage and needs no such knowledge.

    Args:
        class_coverage, best_coverage: >= 1.
        v_max: > 0.
        num_policies: |Pi| >= 2.
        num_samples: N >= 1.
        constant: > 0.
    Returns:
        the bound, in units of f.
    Raises:
        ValueError: an argument out of its range.
    Source: arXiv:2606.30445 Thm 5, restated there from Wang et al. 2024 (arXiv:2306.07923).
    """
    _require(best_coverage, v_max, num_policies, num_samples, 0.5)
    if class_coverage < best_coverage or constant <= 0:
        raise ValueError(
            f"class_coverage >= best_coverage and constant > 0 expected, got {class_coverage}, {best_coverage}, {constant}."
        )
    share = math.log(num_policies) / num_samples
    return constant * (class_coverage * v_max * share + math.sqrt(best_coverage * v_max * share))


def scaled_bound(
    class_coverage: float, best_coverage: float, v_max: float, num_policies: int, num_samples: int
) -> float:
    """The same with V_max in front of the root: V_max times `printed_bound` at V_max = 1. DERIVED."""
    return v_max * printed_bound(class_coverage, best_coverage, 1.0, num_policies, num_samples)


def theory_beta(
    best_coverage: float, v_max: float, num_policies: int, num_samples: int, failure: float
) -> float:
    """The beta that makes `explicit_bound` least when PL(pi*) = C_base*. DERIVED.

        beta = V_max sqrt(L / (2 N C_base*)),    L = ln(4 |Pi| / failure)

    It needs C_base*, which is not known; with 1 in its place the bound is linear in C_base*, not a root.
    """
    _require(best_coverage, v_max, num_policies, num_samples, failure)
    return v_max * math.sqrt(math.log(4 * num_policies / failure) / (2 * num_samples * best_coverage))


def explicit_bound(
    beta: float,
    best_penalty: float,
    class_coverage: float,
    v_max: float,
    num_policies: int,
    num_samples: int,
    failure: float,
    is_one_context: bool = False,
) -> float:
    """A bound with every constant, exceeded with probability at most `failure`. DERIVED.

        2 beta PL(pi*) + V^2 L / (beta N) + 2 (C + 1) V L / (3 N) + [2 V sqrt(2 L' / N) unless there is one context]
        L = ln(4 |Pi| / failure),    L' = ln(2 |Pi| / failure),    C = C_base(Pi)

    Given the contexts, the N terms of J_ipw(pi) are independent, at most C V, of variance at most V^2 sum_y pi^2/pi_base,
    whose mean over the contexts is at most PL(pi) (equal to it for the second-moment penalty and for deterministic
    students). Bernstein for all of Pi, both sides, and sqrt(2 V^2 PL L / N) <= beta PL + V^2 L / (2 beta N) bound
    |J_ipw - J_N| by beta PL + V^2 L / (2 beta N) + (C + 1) V L / (3 N), J_N the mean of E_pi f over the seen contexts.
    The learner's objective then loses at most twice the last two terms and 2 beta PL(pi*). Hoeffding over contexts, one
    side, for the differences of students, in [-2 V, 2 V], passes from J_N to J_on.

    Args:
        beta: > 0.
        best_penalty: PL(pi*) on the sample (or a bound on it, such as C_base* for deterministic students).
        class_coverage: C_base(Pi) >= 1.
        v_max: V >= |f|.
    Raises:
        ValueError: an argument out of its range.
    """
    _require(class_coverage, v_max, num_policies, num_samples, failure)
    if beta <= 0 or best_penalty <= 0:
        raise ValueError(f"beta > 0 and best_penalty > 0 expected, got {beta} and {best_penalty}.")
    log_term = math.log(4 * num_policies / failure)
    context = (
        0.0
        if is_one_context
        else 2 * v_max * math.sqrt(2 * math.log(2 * num_policies / failure) / num_samples)
    )
    linear = 2 * (class_coverage + 1) * v_max * log_term / (3 * num_samples)
    return 2 * beta * best_penalty + v_max**2 * log_term / (beta * num_samples) + linear + context


def _require(coverage: float, v_max: float, num_policies: int, num_samples: int, failure: float) -> None:
    if coverage < 1 or v_max <= 0 or num_policies < 2 or num_samples < 1 or not 0 < failure < 1:
        raise ValueError(
            "coverage >= 1, v_max > 0, num_policies >= 2, num_samples >= 1 and failure in (0, 1) expected, got "
            f"{coverage}, {v_max}, {num_policies}, {num_samples} and {failure}."
        )
