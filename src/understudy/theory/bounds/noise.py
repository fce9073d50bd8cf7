"""Bounds between clean and noised policies: what labels with noise say about the policies behind them.

All distances are squared Hellinger distances D^2 = 1/2 sum (sqrt p - sqrt q)^2 in [0, 1]. The noised policy is
pi_eta = (1 - eta) pi + eta nu. The noise is dominated with `kappa` by two policies if nu(a) <= kappa (pi(a) + pi'(a)) on
the union of their supports. All functions take numbers or arrays that broadcast, and return the right-hand side; a bound
above 1 says nothing.
"""

from __future__ import annotations

import numpy as np

Number = float | np.ndarray


def _require_rate(eta: Number) -> None:
    if np.min(eta) < 0 or np.max(eta) >= 1:
        raise ValueError(f"eta must be in [0, 1), got values from {np.min(eta):g} to {np.max(eta):g}.")


def _require_at_least(low: float, **named: Number) -> None:
    for name, value in named.items():
        if not np.min(value) >= low:
            raise ValueError(f"{name} must be at least {low:g}, got {np.min(value):g}.")


def step_factor(kappa: Number, eta: Number) -> Number:
    """The factor of Lemma 2: D^2(pi, pi') <= factor * D^2(pi_eta, pi'_eta).

        factor = 2 (1 + eta (2 kappa - 1)) / (1 - eta)^2

    Assumes: nu dominated with kappa; its mass outside both supports does not count.
    Source: arXiv:2606.30923 Lemma 2, constants as printed.
    """
    _require_rate(eta)
    _require_at_least(0, kappa=kappa)
    return 2 * (1 + eta * (2 * kappa - 1)) / (1 - eta) ** 2


def sharp_step_factor(kappa: Number, eta: Number) -> Number:
    """The least factor that Lemma 2 can have, reached in the limit of two policies that differ by a small leak.

        factor = (sqrt(1 - eta + eta kappa) + sqrt(eta kappa))^2 / (1 - eta)^2

    Each action's share of D^2 shrinks by (sqrt p_eta + sqrt q_eta)^2 / ((1 - eta)^2 (sqrt p + sqrt q)^2), which grows with
    nu <= kappa (p + q) and is then largest where p or q is 0. Between a half and all of `step_factor`.

    Source: DERIVED, replacing Lemma 2 of arXiv:2606.30923.
    """
    _require_rate(eta)
    _require_at_least(0, kappa=kappa)
    return (np.sqrt(1 - eta + eta * kappa) + np.sqrt(eta * kappa)) ** 2 / (1 - eta) ** 2


def step_bound(noisy: Number, eta: Number) -> Number:
    """D^2(pi, pi') <= sqrt(2) / (1 - eta) * sqrt(noisy), for any noise.

    Args:
        noisy: D^2(pi_eta, pi'_eta).
    Source: arXiv:2606.30923 Lemma 3, constants as printed.
    """
    _require_rate(eta)
    return np.sqrt(2 * noisy) / (1 - eta)


LABEL_FACTOR = 4.5
"""D^2(P^pi, P^pi') <= LABEL_FACTOR * D^2(P^{pi', pi}, P^{pi', pi'}) at every horizon: labels at the student's states are
enough (arXiv:2606.30923 Lemma 4, as printed)."""

LABEL_FACTOR_DETERMINISTIC = 3.0
"""DERIVED: the least such factor when pi, the expert, is deterministic; reached as the horizon grows.

With y, g the affinities of the augmented and of the clean laws, 3 y <= 2 + g holds after the last step and survives a
step on which the student follows the expert with probability b, for sqrt(b) (3 - b) <= 2.
"""


def offline_bound_dominated(noisy: Number, kappa: Number, eta: Number, horizon: Number) -> Number:
    """D^2(P^pi, P^pi') <= 2 (1 + eta (2 kappa - 1)) (1 - eta)^-(H + 2) * noisy.

    Args:
        noisy: D^2(P^{pi_eta}, P^{pi'_eta}) of whole trajectories whose noise is rolled in.
    Source: arXiv:2606.30923 Thm 6 with domination, constants as printed.
    """
    _require_at_least(1, horizon=horizon)
    return step_factor(kappa, eta) * (1 - eta) ** -(1.0 * horizon) * noisy


def offline_bound_sharp(noisy: Number, kappa: Number, eta: Number, horizon: Number) -> Number:
    """D^2(P^pi, P^pi') <= sharp_step_factor * (1 - eta)^-(H - 1) * noisy.

    The distance to go obeys d_h = x_h + sum_a sqrt(pi pi') P d_{h+1}, with x_h the distance of the step. With noise, x_h is
    at least x_h / sharp_step_factor and sqrt(pi_eta pi'_eta) >= (1 - eta) sqrt(pi pi'): one factor a transition. The
    combination lock meets it with equality at every horizon and rate.

    Source: DERIVED, replacing Thm 6 of arXiv:2606.30923 with domination.
    """
    _require_at_least(1, horizon=horizon)
    return sharp_step_factor(kappa, eta) * (1 - eta) ** -(horizon - 1.0) * noisy


def offline_bound(noisy: Number, eta: Number, horizon: Number) -> Number:
    """D^2(P^pi, P^pi') <= sqrt( 2 ((1 - eta)^-H - 1) / (eta (1 - eta)) * noisy ), for any noise.

    At eta = 0 the limit sqrt(2 H noisy).

    Source: arXiv:2606.30923 Thm 6 without domination, constants as printed.
    """
    _require_rate(eta)
    _require_at_least(1, horizon=horizon)
    rate = np.maximum(eta, 1e-300)
    growth = np.expm1(-horizon * np.log1p(-rate)) / rate
    return np.sqrt(2 * growth / (1 - eta) * noisy)


def online_bound_dominated(noisy: Number, kappa: Number, eta: Number) -> Number:
    """D^2(P^expert, P^student) <= 9/2 * step_factor * noisy: no horizon in it.

    The paper prints (1 + eta kappa) / (1 - eta)^2 up to a constant. This one is Lemma 4 after Lemma 2 at every state of a
    path: 1 - prod(1 - C y_h) <= C (1 - prod(1 - y_h)) for C >= 1 and C y_h <= 1, by induction on the path.

    Args:
        noisy: D^2(P^{student, expert_eta}, P^{student, student_eta}), of noisy labels at the student's states.
    Source: the form is arXiv:2606.30923 Thm 7; the constant is DERIVED.
    """
    return LABEL_FACTOR * step_factor(kappa, eta) * noisy


def online_bound(noisy: Number, eta: Number, horizon: Number) -> Number:
    """D^2(P^expert, P^student) <= 9/2 sqrt(2 H noisy) / (1 - eta), for any noise.

    The paper prints sqrt(H) / (1 - eta) sqrt(noisy) up to a constant. This one is Lemma 4 after Lemma 3 at every state of a
    path: with x_h = min(1, B sqrt(y_h)) >= y_h, Cauchy-Schwarz gives 1 - prod(1 - x_h) <= B sqrt(H (1 - prod(1 - y_h)))
    step by step, and Jensen takes the mean over paths inside the root.

    Source: the form is arXiv:2606.30923 Thm 7; the constant is DERIVED.
    """
    _require_at_least(1, horizon=horizon)
    return LABEL_FACTOR * np.sqrt(horizon) * step_bound(noisy, eta)


def divergence_bound(forward_kl: Number, reverse_kl: Number) -> Number:
    """D^2(P, Q) <= min(KL(P || Q), KL(Q || P)) / 2, for D^2 <= 1 - exp(-KL / 2).

    Args:
        forward_kl, reverse_kl: nats; of augmented laws the sum over steps of E_{s_h ~ student} KL(label laws).
    Source: the step from a distance to the loss in arXiv:2606.30923 Cor 1; the constant 1/2 is DERIVED.
    """
    return 0.5 * np.minimum(forward_kl, reverse_kl)


def nail_bound(log_num_policies: Number, num: Number, eta: Number, horizon: Number) -> Number:
    """E D^2(P^expert, P^student) <= 9/2 * H / (1 - eta) * sqrt(log|Pi| / num) after `num` episodes of NAIL, for any noise.

    `online_bound` of E noisy <= E KL / 2 <= H log|Pi| / (2 num). The paper prints it up to a constant.

    Source: the form is arXiv:2606.30923 Thm 8; the constant is DERIVED.
    """
    _require_at_least(1, num=num)
    return online_bound(0.5 * horizon * log_num_policies / num, eta, horizon)


def regret_bound_deterministic(distance: Number, reward_range: Number = 1.0) -> Number:
    """J(expert) - J(student) <= 4 R D^2(P^expert, P^student) for a deterministic expert, reward of a trajectory in [0, R].

    Source: arXiv:2407.15007 (Foster et al.), quoted in arXiv:2606.30923 Thm 4-5, as printed.
    """
    return 4 * reward_range * distance


def regret_bound_deterministic_sharp(distance: Number, reward_range: Number = 1.0) -> Number:
    """J(expert) - J(student) <= R TV <= R (1 - (1 - D^2)^2) <= 2 R D^2 for a deterministic expert; returns the last.

    The laws differ by a factor w <= 1 on the expert's trajectories: TV = E(1 - w) = E(1 - sqrt w)(1 + sqrt w) <= 2 D^2.
    Source: DERIVED.
    """
    return 2 * reward_range * distance


def regret_bound(distance: Number, reward_range: Number = 1.0) -> Number:
    """J(expert) - J(student) <= R TV <= R sqrt(D^2 (2 - D^2)) for any expert.

    The paper prints R sqrt(D^2) + R D^2 up to a constant: sqrt(2) is enough for it, and needed.
    Source: the form is arXiv:2606.30923 Thm 4-5; the constant is the classical TV bound, DERIVED here.
    """
    return reward_range * np.sqrt(distance * (2 - distance))
