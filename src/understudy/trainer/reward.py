"""Grades of a round's trajectories and what they are worth against each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from understudy.errors import ConfigError, TrainingError
from understudy.objectives.policy import AdvantageRule, group_advantage, has_no_variance
from understudy.records import Prompt, Trajectory
from understudy.tasks.task import Task

CHECKED_PROMPTS = 64
"""Training prompts that are graded before a run begins."""


def require_grader(task: Task, method: str) -> None:
    """Refuse a task that grades nothing, or not all, before anything is trained; looks at the first prompts.

    Raises:
        ConfigError: it has no grader, no training prompt, or a prompt among the first that it cannot grade.
    """
    size = task.size("train")
    prompts = task.prompts("train", 0, CHECKED_PROMPTS if size is None else min(CHECKED_PROMPTS, size))
    try:
        ungraded = [p for p in prompts if _score(task, p, p.reference_ids or ()) is None]
    except TrainingError as error:
        raise ConfigError(str(error)) from error
    if len(ungraded) == len(prompts):
        raise ConfigError(
            f"{method} learns from the grades of responses and the task {task.name} has no grader. Give it one, or use a "
            "method that imitates an expert."
        )
    if ungraded:
        raise ConfigError(
            f"{method} learns from the grades of responses and the task {task.name} cannot grade prompt {ungraded[0].id} "
            f"({len(ungraded)} of the first {len(prompts)}): give it a reference, or leave it out."
        )


def _score(task: Task, prompt: Prompt, response_ids: Sequence[int]) -> float | None:
    """The grader's score, None where it has none.

    Raises:
        TrainingError: no number in [0, 1].
    """
    try:
        grade = task.grade(prompt, response_ids)
    except ValueError as error:
        raise TrainingError(
            f"the grader of the task {task.name} failed at prompt {prompt.id}: {error} Correct the grader."
        ) from error
    if grade is not None and not 0 <= grade.score <= 1:
        raise TrainingError(
            f"the grader of the task {task.name} must give scores in [0, 1], got {grade.score} at prompt {prompt.id}. "
            "Correct the grader."
        )
    return None if grade is None else grade.score


def credited(
    trajectories: Sequence[Trajectory], task: Task, samples_per_prompt: int, rule: AdvantageRule
) -> list[Trajectory]:
    """The same with reward and advantage. The samples of a prompt stand in a row, as `collect` returns them.

    Raises:
        TrainingError: a prompt that the task cannot grade, or a score outside [0, 1].
    """
    rewards = []
    for t in trajectories:
        score = _score(task, t.prompt, t.response_ids)
        if score is None:
            raise TrainingError(
                f"prompt {t.prompt.id} cannot be graded by the task {task.name}: give it a reference."
            )
        rewards.append(score)
    if not rewards:
        return []
    reward_PG = torch.tensor(rewards, dtype=torch.float64).view(-1, samples_per_prompt)
    advantages = group_advantage(reward_PG, rule).flatten().tolist()
    return [
        replace(t, reward=r, advantage=a) for t, r, a in zip(trajectories, rewards, advantages, strict=True)
    ]


def reward_summary(trajectories: Sequence[Trajectory], samples_per_prompt: int) -> dict[str, float]:
    """What is logged of a round's rewards; empty where nothing was graded."""
    rewards = [t.reward for t in trajectories if t.reward is not None]
    if not rewards:
        return {}
    reward_N = torch.tensor(rewards, dtype=torch.float64)
    no_variance_P = has_no_variance(reward_N.view(-1, samples_per_prompt))
    return {
        "reward_mean": reward_N.mean().item(),
        "reward_std": reward_N.std().item(),
        "zero_variance_rate": no_variance_P.double().mean().item(),
    }


@dataclass(frozen=True)
class ScoreBook:
    """The expert's scores of whole responses, each asked for once: fixed data come again round after round."""

    ask: Callable[[Sequence[Trajectory]], list[float]]
    known: dict[tuple[str, tuple[int, ...]], float] = field(default_factory=dict, repr=False)
    """(prompt id, response) -> score."""

    def scored(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
        """The same with their scores."""
        new = {_key(t): t for t in trajectories if _key(t) not in self.known}
        if new:
            self.known.update(zip(new, self.ask(list(new.values())), strict=True))
        return [replace(t, score=self.known[_key(t)]) for t in trajectories]


def _key(t: Trajectory) -> tuple[str, tuple[int, ...]]:
    return t.prompt.id, t.response_ids
