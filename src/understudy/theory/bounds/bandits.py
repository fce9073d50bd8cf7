"""The offline lower bound for experts outside the student's class, and the constants its construction gives."""

from __future__ import annotations

import math

PRINTED_FAMILY_CONSTANT = 1 / (16 * math.log(2))
"""c for the printed context law, every K = 2^l >= 4. DERIVED; see `offline_lower_bound`."""

SHARP_FAMILY_CONSTANT = 1 / (8 * math.log(2))
"""c for the context law with all secrets rare, every K = 2^l >= 2. DERIVED; attained at K = 2, C = N = 1."""


def offline_lower_bound(num_policies: float, coverage: float, num_demos: int, constant: float) -> float:
    """Least risk that some instance forces on every offline student of the class:

        1 - E V(pi_hat) >= c min{1, C ln|Pi| / N}

    Theorem (as printed): for every K >= 2, C >= 1 and every offline learner with N demonstrations there is an instance
    with |Pi| = K, V(pi_e) = 1, a pi* in Pi with V(pi*) = 1 and sup pi*/pi_e = C on which this holds, for a universal
    c > 0. It is about students in Pi: a learner that may leave the class can be better.

    The constants are DERIVED, with l = log2 K an integer, from the exact risk 1/2 sum_x D(x) (1 - D(x)/C)^N.
    Printed law, zeta = min(C/N, 1/l), l >= 2: if N >= l C the l - 1 rare contexts cost (l-1) C/(2N) (1 - 1/N)^N, where
    (1 - 1/N)^N >= 1/4 and (l-1)/l >= 1/2; otherwise the risk is 1/2 (1 - 1/(lC))^N >= 1/8. So c = 1/(16 ln 2).
    All l secrets at zeta = min(C/(N+1), 1/l): if N + 1 >= l C the risk is (l C/(2N)) (N/(N+1))^(N+1), where the power is
    >= 1/4; otherwise it is >= 1/(2e). So c = 1/(8 ln 2).

    Args:
        num_policies: K >= 2.
        coverage: C >= 1.
        num_demos: N >= 1.
        constant: c > 0.
    Returns:
        the bound, in [0, c].
    Raises:
        ValueError: an argument out of its range.
    Source: arXiv:2606.30445 Thm 1. Theirs has an unspecified c.
    """
    _require(num_policies, coverage, num_demos)
    if constant <= 0:
        raise ValueError(f"constant must be > 0, got {constant}.")
    return constant * min(1.0, coverage * math.log(num_policies) / num_demos)


def last_display_scale(num_policies: float, coverage: float, num_demos: int) -> float:
    """ln|Pi| / (C N): what the last displayed line of the printed proof ends in.

    As C >= 1 it is smaller than C ln|Pi| / N: no false lower bound, but it does not give the theorem, and it falls with C
    where the risk of the construction rises.

    Source: arXiv:2606.30445, proof of Thm 1.
    """
    _require(num_policies, coverage, num_demos)
    return math.log(num_policies) / (coverage * num_demos)


def _require(num_policies: float, coverage: float, num_demos: int) -> None:
    if num_policies < 2 or coverage < 1 or num_demos < 1:
        raise ValueError(
            "num_policies >= 2, coverage >= 1 and num_demos >= 1 expected, got "
            f"{num_policies}, {coverage} and {num_demos}."
        )
