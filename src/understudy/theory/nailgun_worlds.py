"""NAILGUN run for real on random worlds, and the vote of two policies under noise that aims or does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from understudy.theory import learners, mdp, voting
from understudy.theory.intervals import bounded_mean_interval, mean_interval


class Sizes(Protocol):
    """What a run needs to know; eta is at most alpha, and alpha (1 + rho) below 1."""

    @property
    def num_runs(self) -> int: ...
    @property
    def num_episodes(self) -> int: ...
    @property
    def num_policies(self) -> int: ...
    @property
    def eta(self) -> float: ...
    @property
    def alpha(self) -> float: ...
    @property
    def rho(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class WorldRuns:
    """Many runs on one random world."""

    untrained: float
    """P(mistake) of the vote before any label."""
    mistakes: tuple[float, float, float]
    """(mean, low, high) of mistaken episodes in all."""
    distance: tuple[float, float, float]
    """(mean, low, high) of D_H^2 of the returned vote."""
    identity: float
    """Largest |D_H^2 - P(mistake)| of the returned votes."""


def run_world(horizon: int, sizes: Sizes, generator: np.random.Generator) -> WorldRuns:
    """NAILGUN on one `hidden_centre_world` of this horizon; it is told alpha and rho, not eta and nu."""
    world, pi_KHSA, nu_HSA = voting.hidden_centre_world(horizon, sizes.num_policies, sizes.rho, generator)
    noisy_HSA = mdp.noised(pi_KHSA[0], sizes.eta, nu_HSA)
    history = learners.nailgun(
        world, pi_KHSA, np.broadcast_to(noisy_HSA, (sizes.num_runs, *noisy_HSA.shape)), sizes.alpha,
        sizes.rho, sizes.num_episodes, generator,
    )  # fmt: skip
    untrained = learners.vote(np.exp(history.logw_TRK[0, 0]), pi_KHSA)
    drawn = generator.integers(sizes.num_episodes, size=sizes.num_runs)
    votes = [learners.vote(np.exp(history.logw_TRK[t, r]), pi_KHSA) for r, t in enumerate(drawn)]
    distance_R = np.array([mdp.trajectory_hellinger_sq(world, pi_KHSA[0], vote) for vote in votes])
    mistake_R = np.array([voting.mistake_probability(world, pi_KHSA[0], vote) for vote in votes])
    return WorldRuns(
        untrained=voting.mistake_probability(world, pi_KHSA[0], untrained),
        mistakes=mean_interval(learners.mistaken_episodes(history, pi_KHSA, 0).sum(0).astype(float)),
        distance=bounded_mean_interval(np.clip(distance_R, 0, 1), 0, 1),
        identity=float(np.abs(distance_R - mistake_R).max()),
    )


def aimed_error(num: int, eta: float, rho: float) -> float:
    """P(wrong vote) of two policies after `num` labels, nu = rho on the wrong action and nothing on the right."""
    return voting.vote_error(num, 1 - eta, eta * rho)


def uniform_error(num: int, eta: float, num_actions: int) -> float:
    """The same, nu even on all actions; labels of the others count for nobody."""
    right, wrong, *_ = mdp.noised(np.eye(num_actions)[0], eta, np.full(num_actions, 1 / num_actions))
    return voting.vote_error(num, float(right), float(wrong))
