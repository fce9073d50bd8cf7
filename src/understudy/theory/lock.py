"""The combination lock: demonstrations with noise almost never reach the step that matters, the learner always does.

H steps, of which the last L ("digits") hold the code; K = 2^L policies, one a code. Two states are enough, for policies may
depend on the step: 0 is "on the path" (s_h of the paper), 1 is the absorbing bottom. Actions a1, a2, a3 are 0, 1, 2.

- steps before the code: every policy plays a1, which advances; a2 and a3 fall. nu = a3.
- the code: policies play a1 or a2, as their code says; both advance, a3 falls. nu = 1/2 a1 + 1/2 a2, so noise does not fall.
- bottom: every policy plays a3 and nu = a3, at every step: nothing can be learned there.

L = 1 is the paper's instance (arXiv:2606.30923, B.2). q = 1 - eta throughout. The noise is dominated with kappa = 1/2.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import integrate, optimize, special, stats

from understudy.theory.learners import (
    elimination_threshold,
    log_likelihood,
    mixture,
    one_hot_policies,
    visit_counts,
)
from understudy.theory.mdp import MDP, noised, occupancy
from understudy.theory.voting import binomials, majority_error, vote_error, votes_needed

Array = np.ndarray

KAPPA = 0.5
"""Least kappa with nu <= kappa (pi + pi') on the support, everywhere in the lock of two policies."""


def lock_world(horizon: int, num_digits: int = 1) -> tuple[MDP, Array, Array]:
    """The lock as (MDP, pi_KHSA, nu_HSA); policy k has the binary digits of k as its code, policy 0 plays a1 only.

    Raises:
        ValueError: no digit, or more digits than steps.
    """
    if not 1 <= num_digits <= horizon:
        raise ValueError(
            f"1 <= num_digits <= horizon expected, got {num_digits} digits and horizon {horizon}."
        )
    plain = horizon - num_digits
    step_H = np.arange(horizon)
    advances_HA = np.stack([np.ones(horizon), step_H >= plain, np.zeros(horizon)], axis=-1)[: horizon - 1]
    transition_HSAS = np.zeros((horizon - 1, 2, 3, 2))
    transition_HSAS[:, 0, :, 0] = advances_HA
    transition_HSAS[:, 0, :, 1] = 1 - advances_HA
    transition_HSAS[:, 1, :, 1] = 1
    nu_HSA = np.zeros((horizon, 2, 3))
    nu_HSA[:plain, 0, 2] = 1
    nu_HSA[plain:, 0, :2] = 0.5
    nu_HSA[:, 1, 2] = 1
    action_KHS = np.zeros((2**num_digits, horizon, 2), dtype=int)
    action_KHS[:, :, 1] = 2
    codes = np.arange(2**num_digits)
    for digit in range(num_digits):
        action_KHS[:, plain + digit, 0] = codes >> digit & 1
    return MDP(np.array([1.0, 0.0]), transition_HSAS), one_hot_policies(action_KHS, 3), nu_HSA


def reach(horizon: int, eta: float, num_digits: int = 1) -> float:
    """P(a demonstration reaches the code) = (1 - eta)^(H - L)."""
    return (1 - eta) ** (horizon - num_digits)


def noisy_hellinger_sq(horizon: int, eta: float) -> float:
    """D_H^2 between demonstrations of the two locks, exactly: q^(H-1) (1 - sqrt(1 - q^2)).

    At the code the labels are (1 - eta/2, eta/2) and swapped, with affinity sqrt(eta (2 - eta)) = sqrt(1 - q^2). The printed
    q^(H+1) is larger by the factor 1 + sqrt(1 - q^2), which is in [1, 2].
    """
    q = 1 - eta
    return q ** (horizon - 1) * q**2 / (1 + math.sqrt(1 - q**2))


def cloning_error(num: int, horizon: int, eta: float, num_digits: int = 1) -> float:
    """P(noised maximum likelihood returns another code) from `num` demonstrations, ties split.

    Every demonstration that reaches the code votes on each digit, rightly with probability 1 - eta/2. With equally likely
    codes this is the Bayes rule: no offline learner errs less.
    """
    arrives = reach(horizon, eta, num_digits)
    return vote_error(num, arrives * (1 - eta / 2), arrives * eta / 2, num_digits)


def plain_cloning_error(num: int, horizon: int, eta: float) -> float:
    """P(maximum likelihood that ignores the noise returns the other of two locks), ties split.

    One fallen demonstration, or both labels, rules out both policies and leaves a coin:
    1/2 (1 - (q^(H-1) (1 - eta/2))^n + (q^(H-1) eta/2)^n) for n >= 1. More demonstrations make it worse.
    """
    arrives = reach(horizon, eta)
    agree = (arrives * (1 - eta / 2)) ** num - (arrives * eta / 2) ** num
    return 0.5 * (1 - agree)


def demonstrations_needed(target: float, horizon: int, eta: float) -> int:
    """The least n with `cloning_error` <= target."""
    return votes_needed(target, reach(horizon, eta) * (1 - eta / 2), reach(horizon, eta) * eta / 2)


def arrivals_needed(target: float, eta: float) -> float:
    """lambda: with Poisson(lambda) votes at the code the error is `target`, so n ~ lambda / q^(H-1) at long horizons.

    sum_m e^-lambda lambda^m / m! majority_error(m, 1 - eta/2) = target, the limit of rare arrivals.
    """

    def excess(mean: float) -> float:
        arrived = np.arange(int(mean + 12 * math.sqrt(mean)) + 40)
        return float(stats.poisson.pmf(arrived, mean) @ majority_error(arrived, 1 - eta / 2)) - target

    return optimize.root_scalar(excess, bracket=(1e-9, 1e3), xtol=1e-12).root


def online_error(num: int, eta: float, num_digits: int = 1) -> float:
    """P(the likeliest code after `num` episodes of labels on the learner's own path is wrong), ties split; no H in it.

    Every policy of the class, and so every mixture and vote of them, arrives at the code with probability 1.
    """
    return vote_error(num, 1 - eta / 2, eta / 2, num_digits)


def nailgun_error(num: int, eta: float, num_digits: int = 1) -> float:
    """E D_H^2 of NAILGUN's mubar_T, T uniform in 1..n (T - 1 labels seen), codes equally likely: the mean `online_error`."""
    return float(np.mean([online_error(t, eta, num_digits) for t in range(num)]))


def nail_by_episode(
    num: int, horizon: int, eta: float, num_digits: int = 1, rate: float | None = None
) -> tuple[Array, Array]:
    """E D_H^2(expert, mu_t) and E KL_aug(expert || mu_t) for t = 1..n, both [n], exactly.

    The digits' weights are independent: after t labels with x right ones, the odds of the right digit are
    ((1 - eta/2)/(eta/2))^(rate (2x - t)), x ~ Bin(t, 1 - eta/2). The mixture plays the right digit with w, hence

        D_H^2 = 1 - E[sqrt w]^L,      KL_aug = L E KL(1 - eta/2 || w (1 - eta/2) + (1 - w) eta/2)

    Args:
        eta: in (0, 1).
        rate: 1/H if None, as published.
    Raises:
        ValueError: eta outside (0, 1).
    """
    if not 0 < eta < 1:
        raise ValueError(f"eta must be in (0, 1), got {eta}: without noise one label settles a digit.")
    right = 1 - eta / 2
    exponent = (1 / horizon if rate is None else rate) * math.log(right / (1 - right))
    distance_T, kl_T = np.empty(num), np.empty(num)
    for t, (right_X, prob_X) in enumerate(binomials(num, right)):
        weight_X = special.expit(exponent * (2 * right_X - t))
        distance_T[t] = 1 - (prob_X @ np.sqrt(weight_X)) ** num_digits
        kl_T[t] = num_digits * (prob_X @ _label_kl(weight_X, right))
    return distance_T, kl_T


def nail_kl_in_world(num: int, horizon: int, eta: float, rate: float) -> Array:
    """E KL_aug(expert || mu_t) of two locks for t = 1..n, [n], from likelihoods and occupancies of the whole world.

    The slow way of `nail_by_episode`: a history is its number x of right labels at the code; the steps before it show a1
    and a3 in turn, which every policy finds equally likely.

        KL_aug = sum_h sum_s P(mu_t visits s at h) KL(expert_eta,h(.|s) || mu_t,eta,h(.|s))
    """
    world, pi_KHSA, nu_HSA = lock_world(horizon)
    noisy_KHSA = noised(pi_KHSA, eta, nu_HSA)
    step_H, divergence_X = np.arange(horizon), {}
    kl_T = np.zeros(num)
    for t, (right_X, prob_X) in enumerate(binomials(num, 1 - eta / 2)):
        for right, prob in zip(right_X.tolist(), prob_X, strict=True):
            # Only the lead counts: (t, x) and (t + 2, x + 1) leave the same weights.
            if (lead := 2 * right - t) not in divergence_X:
                label_NH = np.where(step_H < horizon - 1, 2 * (np.arange(t)[:, None] % 2), 0)
                label_NH[right:, -1] = 1
                counts = visit_counts(np.zeros((1, t, horizon), dtype=int), label_NH[None], 2, 3)
                weight_K = special.softmax(rate * log_likelihood(counts, noisy_KHSA)[0])
                mu_HSA = mixture(weight_K, pi_KHSA)
                kl_HS = special.rel_entr(noisy_KHSA[0], noised(mu_HSA, eta, nu_HSA)).sum(-1)
                divergence_X[lead] = float((occupancy(world, mu_HSA) * kl_HS).sum())
            kl_T[t] += prob * divergence_X[lead]
    return kl_T


def _label_kl(weight: Array, right: float) -> Array:
    """KL between the expert's label law at a digit and the noised mixture's, nats."""
    mixed = weight * right + (1 - weight) * (1 - right)
    return right * np.log(right / mixed) + (1 - right) * np.log((1 - right) / (1 - mixed))


def nail_kl_limit(eta: float) -> float:
    """Limit over long horizons of (sum of all E KL_aug) / (H log|Pi|) on the lock, in (0, 1].

    At rate 1/H the log odds l move with drift (1 - eta) log(right/wrong) / H and hardly fluctuate, so the sum is an
    integral over l from 0; log|Pi| is the same integral with (1 - w) KL(right || wrong), which convexity puts above.
    """
    right = 1 - eta / 2
    drift = (1 - eta) * math.log(right / (1 - right))

    def density(log_odds: float) -> float:
        return float(_label_kl(special.expit(np.array(log_odds)), right))

    total, _ = integrate.quad(density, 0, 60, epsabs=1e-12, epsrel=1e-12, limit=200)
    return total / (drift * math.log(2))


def neil_error(num_each: int, eta: float, delta: float) -> float:
    """P(NEIL returns the wrong one of two locks): m episodes a policy, survivors share evenly.

    Rolling out either policy shows m labels; with x right ones the right policy leads by (2x - m) log(right/wrong).
    """
    right = 1 - eta / 2
    lead_X = (2 * np.arange(num_each + 1) - num_each) * math.log(right / (1 - right))
    prob_X = stats.binom.pmf(np.arange(num_each + 1), num_each, right)
    beta = elimination_threshold(2, delta)
    right_out, wrong_out = float(prob_X @ (-lead_X > beta)), float(prob_X @ (lead_X > beta))
    # The two rollouts are independent. Both in, or both out: shared.
    return right_out * (1 - wrong_out) + 0.5 * (right_out * wrong_out + (1 - right_out) * (1 - wrong_out))
