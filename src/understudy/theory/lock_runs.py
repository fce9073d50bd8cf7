"""The real learners on the lock of two policies, run beside the exact probability that they return the wrong one.

R runs, T episodes. The true code is drawn anew in every run, so that no rule for ties can help.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from understudy.theory import learners, lock, mdp
from understudy.theory.intervals import CONFIDENCE, bounded_mean_interval

Array = np.ndarray

LEARNERS = ("noised cloning", "NAIL, likeliest policy", "NAILGUN, returned vote", "NEIL, survivor")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much the simulated learners see, and what they are told."""

    num_runs: int = 2000
    """Independent runs of every simulated learner."""
    num_demos: int = 100
    """Demonstrations of the offline learners."""
    num_episodes: int = 3
    """Episodes of NAIL and NAILGUN: few, so that their errors can be seen. Odd, so that no vote is tied."""
    num_neil: int = 5
    """Episodes a policy of NEIL; it returns a coin where they are too few to pass its threshold."""
    alpha: float = 0.3
    """What NAILGUN is told of the rate, with rho = 1: alpha (1 + rho) must be below 1."""
    delta: float = 0.1
    """NEIL's failure probability."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A simulated probability beside the exact one."""

    exact: float
    mean: float
    low: float
    high: float

    @property
    def strain(self) -> float:
        """How far the exact value is from the mean, in half widths of the interval on its side: above 1 it is outside."""
        half = self.high - self.mean if self.exact >= self.mean else self.mean - self.low
        return abs(self.exact - self.mean) / half if half > 0 else float(self.exact != self.mean)


def probability(exact: float, share_R: Array, generator: np.random.Generator, num_cases: int = 1) -> Found:
    """From each run's probability of a failure (0 or 1, shares at ties): every tie is decided by a coin, then counted.

    Clopper-Pearson; where the worst of `num_cases` is shown, so wide that all of them together cover with `CONFIDENCE`.
    """
    num = int((generator.random(len(share_R)) < share_R).sum())
    found = stats.binomtest(num, len(share_R)).proportion_ci(1 - (1 - CONFIDENCE) / num_cases, method="exact")
    return Found(exact=exact, mean=num / len(share_R), low=float(found.low), high=float(found.high))


def exact_errors(horizon: int, eta: float, sizes: Sizes) -> dict[str, float]:
    """P(wrong policy) of each of `LEARNERS`."""
    errors = (
        lock.cloning_error(sizes.num_demos, horizon, eta),
        lock.online_error(sizes.num_episodes, eta),
        lock.nailgun_error(sizes.num_episodes, eta),
        lock.neil_error(sizes.num_neil, eta, sizes.delta),
    )
    return dict(zip(LEARNERS, errors, strict=True))


def simulate(
    horizon: int, eta: float, sizes: Sizes, generator: np.random.Generator, num_cases: int = 1
) -> dict[str, Found]:
    """Each of `LEARNERS` on the lock of this horizon and rate, one of `num_cases` probabilities that are shown at once."""
    world, pi_KHSA, nu_HSA = lock.lock_world(horizon)
    run_R, num = np.arange(sizes.num_runs), sizes.num_episodes
    code_R = generator.integers(2, size=sizes.num_runs)
    noisy_KHSA = mdp.noised(pi_KHSA, eta, nu_HSA)
    labels_RHSA = noisy_KHSA[code_R]
    cloned_RK = learners.noised_cloning(
        learners.demonstrations(world, noisy_KHSA[0], sizes.num_demos, sizes.num_runs, generator),
        pi_KHSA, eta, nu_HSA,
    )  # fmt: skip
    nail = learners.nail(world, pi_KHSA, labels_RHSA, eta, nu_HSA, num, generator)
    nailgun = learners.nailgun(world, pi_KHSA, labels_RHSA, sizes.alpha, 1.0, num, generator)
    returned_RK = np.exp(nailgun.logw_TRK[generator.integers(num, size=sizes.num_runs), run_R])
    played_R = np.array([np.argmax(learners.vote(weight_K, pi_KHSA)[-1, 0]) for weight_K in returned_RK])
    neil_RK = learners.neil(world, pi_KHSA, labels_RHSA, eta, nu_HSA, sizes.num_neil, sizes.delta, generator)
    wrong = (
        cloned_RK[:, 1],
        learners.winners(nail.logw_TRK[-1])[run_R, 1 - code_R],
        (played_R != code_R).astype(float),
        neil_RK[run_R, 1 - code_R],
    )
    exact = exact_errors(horizon, eta, sizes)
    return {
        name: probability(exact[name], share_R, generator, num_cases)
        for name, share_R in zip(LEARNERS, wrong, strict=True)
    }


def mixture_distance(
    horizon: int, eta: float, num: int, num_runs: int, generator: np.random.Generator
) -> Found:
    """E D_H^2 of the mixture that NAIL returns after `num` episodes, from real runs and by binomial sums."""
    world, pi_KHSA, nu_HSA = lock.lock_world(horizon)
    noisy_HSA = mdp.noised(pi_KHSA[0], eta, nu_HSA)
    labels_RHSA = np.broadcast_to(noisy_HSA, (num_runs, *noisy_HSA.shape))
    history = learners.nail(world, pi_KHSA, labels_RHSA, eta, nu_HSA, num, generator)
    returned_RK = np.exp(history.logw_TRK[generator.integers(num, size=num_runs), np.arange(num_runs)])
    distance_R = np.array([
        mdp.trajectory_hellinger_sq(world, pi_KHSA[0], learners.mixture(weight_K, pi_KHSA))
        for weight_K in returned_RK
    ])  # fmt: skip
    exact = float(lock.nail_by_episode(num, horizon, eta)[0].mean())
    mean, low, high = bounded_mean_interval(np.clip(distance_R, 0, 1), 0, 1)
    return Found(exact=exact, mean=mean, low=low, high=high)
