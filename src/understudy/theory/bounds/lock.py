"""What arXiv:2606.30923 says that the combination lock can measure: Thm 6, Prop 1, Thm 7, Thm 8.

D_H^2 is half the sum of squared differences of square roots: in [0, 1].
"""

from __future__ import annotations

import math


def noisy_hellinger_sq(horizon: int, eta: float) -> float:
    """Prop 1's instance as printed: demonstrations of the two locks have D_H^2 <= (1 - eta)^(H + 1)."""
    return (1 - eta) ** (horizon + 1)


def clean_hellinger_sq(noisy: float, horizon: int, eta: float, kappa: float) -> float:
    """Thm 6 with domination: clean D_H^2 <= 2 (1 + eta (2 kappa - 1)) (1 - eta)^-(H + 2) noisy D_H^2.

    kappa: nu(a|s) <= kappa (pi(a|s) + pi'(a|s)) wherever one of the two policies puts mass.
    """
    return 2 * (1 + eta * (2 * kappa - 1)) * (1 - eta) ** -(horizon + 2) * noisy


def demonstrations_enough(horizon: int, eta: float, num_policies: int, epsilon: float) -> float:
    """Thm 6: noised maximum likelihood needs (1 - eta)^-(H + 2) log|Pi| / epsilon demos, up to a constant (here 1)."""
    return (1 - eta) ** -(horizon + 2) * math.log(num_policies) / epsilon


def demonstrations_lower(horizon: int, eta: float, kappa: float, epsilon: float) -> float:
    """Props 1, 12-15: every offline learner needs eta kappa / ((1 - eta)^(H + 1) epsilon) demos, up to a constant (here 1)."""
    return eta * kappa / ((1 - eta) ** (horizon + 1) * epsilon)


def error_upper(noisy: float, num: int) -> float:
    """1/2 (1 - D_H^2)^n: the Bayes error between two equally likely laws from n draws is at most this (Bhattacharyya)."""
    return 0.5 * math.exp(num * math.log1p(-noisy)) if noisy < 1 else 0.5 * float(num == 0)


def error_lower(noisy: float, num: int) -> float:
    """1/2 (1 - sqrt(1 - (1 - D_H^2)^(2 n))): no learner errs less between two equally likely laws (Le Cam)."""
    affinity_sq = (2 * error_upper(noisy, num)) ** 2
    return 0.5 * affinity_sq / (1 + math.sqrt(1 - affinity_sq))


def augmented_kl(horizon: int, num_policies: int, num_episodes: int) -> float:
    """Thm 8's first step: E KL(P^{mu_T, expert_eta} || P^{mu_T, mu_T,eta}) <= H log|Pi| / n with learning rate 1/H."""
    return horizon * math.log(num_policies) / num_episodes


def nail_hellinger_sq(horizon: int, eta: float, num_policies: int, num_episodes: int) -> float:
    """Thm 8: E D_H^2(P^expert, P^mu_T) <= H/(1 - eta) sqrt(log|Pi| / n), up to a constant (here 1); any known noise."""
    return horizon / (1 - eta) * math.sqrt(math.log(num_policies) / num_episodes)


def nail_hellinger_sq_dominated(
    horizon: int, eta: float, kappa: float, num_policies: int, num_episodes: int
) -> float:
    """Thm 7 with domination after Thm 8's first step: (1 + eta kappa)/(1 - eta)^2 H log|Pi| / n, constant 1 (not printed)."""
    return (1 + eta * kappa) / (1 - eta) ** 2 * augmented_kl(horizon, num_policies, num_episodes)
