"""Worlds that answer in text: one object an episode, an expert where there is one, played in worker processes."""

from understudy.tasks.environments.environment import Environment, Episode, Family, Outcome
from understudy.tasks.environments.errands import Errands
from understudy.tasks.environments.workers import EpisodeFailure, EpisodeSpec, Reply, WorkerPool

__all__ = [
    "Environment",
    "Episode",
    "EpisodeFailure",
    "EpisodeSpec",
    "Errands",
    "Family",
    "Outcome",
    "Reply",
    "WorkerPool",
]
