"""How the regret of a cloner grows with the horizon: the classical statements, and those about log-loss cloning.

H horizon, K candidates. Rewards of a step lie in [0, 1] in the first three statements; the total reward of an episode lies
in [0, R] in the others. D is the squared Hellinger distance of the laws of whole trajectories, with the factor 1/2
(`mdp.trajectory_hellinger_sq`), so D is in [0, 1].
"""

from __future__ import annotations

import math

import numpy as np

from understudy.theory.mdp import Array


def cloning_bound(horizon: int, error_rate: float) -> float:
    """H^2 eps: the regret of a student that errs at rate eps on the states of the expert.

        J(expert) - J(student) <= H^2 eps,    eps = 1/H sum_h P_{s_h ~ expert}(student's action is not the expert's)

    Assumes a deterministic expert and rewards of a step in [0, 1]; nothing about states the expert does not visit. With
    eps an average over steps the constant 1 cannot be improved: put all errors into the first step of a cliff.

    Args:
        horizon: H >= 1.
        error_rate: eps in [0, 1].
    Raises:
        ValueError: an argument outside its range.
    Source: arXiv:1011.0686 Thm 2.1 (after Ross and Bagnell 2010); the paper counts costs, here rewards.
    """
    _require(
        horizon >= 1 and 0 <= error_rate <= 1, "horizon >= 1, error_rate in [0, 1]", (horizon, error_rate)
    )
    return horizon**2 * error_rate


def cloning_bound_by_step(error_rate_H: Array) -> float:
    """The same with the error rates of the steps known: sum_h min(1, eps_1 + ... + eps_h).

    A step loses reward only if an error came before or at it, which has at most the probability of the union. With
    eps_h <= eps at every step this is at most eps H (H + 1) / 2: half of H^2 eps.

    Args:
        error_rate_H: [H], each in [0, 1], on the states of the expert.
    Raises:
        ValueError: an empty array or a rate outside [0, 1].
    Source: DERIVED.
    """
    is_fine = error_rate_H.size > 0 and error_rate_H.min() >= 0 and error_rate_H.max() <= 1 + 1e-12
    _require(bool(is_fine), "error rates [H] in [0, 1]", error_rate_H)
    return float(np.minimum(1, np.cumsum(error_rate_H)).sum())


def interaction_bound(gap: float, horizon: int, error_rate: float) -> float:
    """mu H eps: the regret of a student that errs at rate eps on ITS OWN states.

        J(expert) - J(student) <= mu H eps,    mu = max Q_h(s, expert's action) - Q_h(s, a)

    Q is the expert's reward to go; the maximum is over actions, steps and states that the student visits. It is the
    performance difference lemma with every error charged the largest price. mu = 1 if a mistake costs one step, but H
    on a cliff, where the statement says no more than `cloning_bound`.

    Args:
        gap: mu >= 0.
        horizon: H >= 1.
        error_rate: eps in [0, 1], averaged over steps.
    Raises:
        ValueError: an argument outside its range.
    Source: arXiv:1011.0686 Thm 2.2, u there is mu here.
    """
    is_fine = gap >= 0 and horizon >= 1 and 0 <= error_rate <= 1
    _require(is_fine, "gap >= 0, horizon >= 1, error_rate in [0, 1]", (gap, horizon, error_rate))
    return gap * horizon * error_rate


def log_loss_bound_printed(reward_range: float, hellinger_sq: float) -> float:
    """4 R D: regret against a deterministic expert, as printed. No horizon in it.

    Args:
        reward_range: R >= 0.
        hellinger_sq: D in [0, 1].
    Raises:
        ValueError: an argument outside its range.
    Source: arXiv:2407.15007 (regret decomposition for a deterministic expert), as restated in arXiv:2606.30923 Thm 5.
    """
    _require_distance(reward_range, hellinger_sq)
    return 4 * reward_range * hellinger_sq


def log_loss_bound_sharp(reward_range: float, hellinger_sq: float) -> float:
    """2 R D: the smallest constant of this form.

    Let Z be the product of the student's probabilities of the expert's actions along a trajectory of the expert. The laws
    differ by the factor Z where they agree, so regret <= R E(1 - Z), while D = E(1 - sqrt Z) >= E(1 - Z) / 2. Equality is
    approached as errors become rare. For a deterministic student Z is 0 or 1, and then even regret <= R D.

    Args, Raises: as `log_loss_bound_printed`.
    Source: DERIVED.
    """
    _require_distance(reward_range, hellinger_sq)
    return 2 * reward_range * hellinger_sq


def stochastic_expert_bound(reward_range: float, hellinger_sq: float) -> float:
    """R sqrt(D (2 - D)): any expert. The total variation distance is at most sqrt(D (2 - D)).

    Sharper than the form R sqrt D + R D with a constant; linear in D it cannot be, unlike for a deterministic expert.

    Args, Raises: as `log_loss_bound_printed`.
    Source: DERIVED from Le Cam's inequality; the rate is that of arXiv:2606.30923 Thm 4.
    """
    _require_distance(reward_range, hellinger_sq)
    return reward_range * math.sqrt(hellinger_sq * (2 - hellinger_sq))


def mle_preference_bound(hellinger_sq: float, num_demos: int) -> float:
    """(1 - D)^n: the probability that n demonstrations are at least as likely under a wrong candidate as under the expert.

    P(prod q/p >= 1) <= E prod sqrt(q/p) = (affinity)^n. An equality for deterministic candidates.

    Args:
        hellinger_sq: D between the candidate and the expert.
        num_demos: n >= 0.
    Raises:
        ValueError: an argument outside its range.
    Source: DERIVED (Chernoff); the step inside the log-loss guarantee of arXiv:2407.15007.
    """
    _require(0 <= hellinger_sq <= 1 and num_demos >= 0, "D in [0, 1], n >= 0", (hellinger_sq, num_demos))
    return (1 - hellinger_sq) ** num_demos


def mle_bound(num_candidates: int, num_demos: int, failure: float) -> float:
    """log(K / delta) / n: D of every most likely candidate is at most this with probability 1 - delta.

    A union bound over `mle_preference_bound`. Without the factor 1/2 in D it reads 2 log(K / delta) / n.

    Args:
        num_candidates: K >= 1, the expert among them.
        num_demos: n >= 1.
        failure: delta in (0, 1].
    Raises:
        ValueError: an argument outside its range.
    Source: DERIVED; the rate log(K / delta) / n is that of arXiv:2407.15007.
    """
    is_fine = num_candidates >= 1 and num_demos >= 1 and 0 < failure <= 1
    _require(is_fine, "K >= 1, n >= 1, delta in (0, 1]", (num_candidates, num_demos, failure))
    return (math.log(num_candidates) - math.log(failure)) / num_demos


def mle_mean_bound(num_candidates: int, num_demos: int) -> float:
    """(log K + 1) / n: the mean of D over the demonstrations, `mle_bound` integrated over delta.

    Args, Raises: as `mle_bound`.
    Source: DERIVED.
    """
    return mle_bound(num_candidates, num_demos, 1.0) + 1 / num_demos


def _require(is_fine: bool, expected: str, found: object) -> None:
    if not is_fine:
        raise ValueError(f"{expected} expected, got {found}.")


def _require_distance(reward_range: float, hellinger_sq: float) -> None:
    is_fine = reward_range >= 0 and 0 <= hellinger_sq <= 1
    _require(is_fine, "R >= 0, D in [0, 1]", (reward_range, hellinger_sq))
