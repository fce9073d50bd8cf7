"""From a student to numbers on held-out prompts: accuracy, likelihood, and the exact distance to its expert.

B sequences, T positions, N gated positions, n rows of a tile, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from understudy.evaluation.sample import rollouts
from understudy.evaluation.statistics import Estimate, ratio_interval, wilson
from understudy.experts.expert import Expert
from understudy.objectives.divergences import against_expert, forward_kl_from_logp, reverse_kl_from_logp
from understudy.objectives.estimators import single_label_forward_kl
from understudy.objectives.rows import Rows
from understudy.records import Prompt, Trajectory
from understudy.rollouts.drafts import DraftBook
from understudy.rollouts.hf import evaluating
from understudy.rollouts.offline import as_trajectory, reference_response
from understudy.rollouts.sampler import Limits
from understudy.tasks.task import Grade, Task
from understudy.trainer.collate import collate
from understudy.trainer.loss import Labels, position_values

Gather = Callable[[list[Any]], list[Any]]
"""Joins every process's list, in an order that is the same everywhere."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure, on what."""

    task: Task
    prompts: Sequence[Prompt]
    limits: Limits
    vocab_size: int
    expert: Expert | None
    sampled: bool
    expert_kl: bool
    samples_per_prompt: int
    batch_size: int
    seed: int
    drafts: DraftBook | None = None
    """Responses of earlier evaluations, as guesses of these; None: none are tried. It changes no number."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """`metrics` with 95 % intervals; `by_position`: means over the trajectories that have the position; a few rollouts."""

    metrics: dict[str, Estimate]
    by_position: dict[str, list[float]]
    rollouts: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return {
            "metrics": {name: estimate.to_json() for name, estimate in self.metrics.items()},
            "by_position": self.by_position,
        }


@dataclass(frozen=True)
class _Record:
    """What one trajectory contributes; small, so that processes can exchange it."""

    key: tuple[str, int]
    correct: dict[str, bool]
    position: dict[str, list[float]]
    shown: dict[str, Any] | None


def evaluate(
    model: nn.Module,
    plan: Plan,
    *,
    process: int = 0,
    num_processes: int = 1,
    gather: Gather = lambda items: items,
    num_shown: int = 8,
    advance: Callable[[str], None] = lambda what: None,
) -> Evaluation:
    """Measure a student. Metrics that the task cannot give (no grader, no reference, no expert) are absent.

        accuracy_greedy, accuracy_sampled   share of responses that the task's grader calls correct; Wilson interval
        teacher_forced_accuracy             share of reference tokens that are the student's argmax on reference prefixes
        validation_loss_nats                mean -log p(reference token), nats a token, on reference prefixes
        expert_kl_nats                      mean KL(expert || student) a token, exact, on the student's own T=1 prefixes
        reverse_expert_kl_nats              mean KL(student || expert) there; inf where the expert forbids a token

    The means per token have a ratio-of-sums interval with the trajectory as the unit. All processes get the result.
    """
    mine = list(plan.prompts[process::num_processes])
    records: list[_Record] = []
    with evaluating(model):
        greedy = _roll(model, plan, mine, temperature=0.0, samples=1)
        records += [_graded(plan.task, t, "greedy", show=i < num_shown) for i, t in enumerate(greedy)]
        advance("greedy rollouts")
        if plan.sampled:
            drawn = _roll(model, plan, mine, temperature=1.0, samples=plan.samples_per_prompt)
            records += [_graded(plan.task, t, "sampled", show=False) for t in drawn]
            advance("sampled rollouts")
            if plan.expert_kl and plan.expert is not None:
                records += _expert_distance(model, plan, drawn)
                advance("expert")
        records += _on_references(model, plan, mine)
        advance("references")
    return _summary(sorted(gather(records), key=lambda r: r.key))


def _roll(
    model: nn.Module, plan: Plan, prompts: Sequence[Prompt], *, temperature: float, samples: int
) -> list[Trajectory]:
    return rollouts(
        model,
        prompts,
        vocab_size=plan.vocab_size,
        limits=plan.limits,
        temperature=temperature,
        samples_per_prompt=samples,
        batch_size=plan.batch_size,
        seed=plan.seed,
        drafts=plan.drafts,
    )


def _graded(task: Task, trajectory: Trajectory, kind: str, *, show: bool) -> _Record:
    grade: Grade | None = task.grade(trajectory.prompt, trajectory.response_ids)
    tokens = task.token_grades(trajectory.prompt, trajectory.response_ids)
    shown = None
    if show:
        shown = {
            "prompt": trajectory.prompt.text or task.decode(trajectory.prompt.token_ids),
            "response": task.decode(trajectory.response_ids),
            "reference": trajectory.prompt.reference,
            "score": None if grade is None else grade.score,
            "finish": trajectory.finish,
        }
    return _Record(
        key=(trajectory.prompt.id, trajectory.sample_index),
        correct={} if grade is None else {f"accuracy_{kind}": grade.is_correct},
        position={} if tokens is None else {f"accuracy_{kind}": [float(ok) for ok in tokens]},
        shown=shown,
    )


def _argmax_is_token(student_logp_nV: Tensor, rows: Rows) -> Tensor:
    assert rows.token_n is not None
    return (student_logp_nV.argmax(-1) == rows.token_n).to(student_logp_nV.dtype)


def _expert_distance(model: nn.Module, plan: Plan, drawn: Sequence[Trajectory]) -> list[_Record]:
    losses = {
        "expert_kl_nats": against_expert(forward_kl_from_logp),
        "reverse_expert_kl_nats": against_expert(reverse_kl_from_logp),
    }
    return _position_records(model, plan, drawn, losses, with_law=True)


def _on_references(model: nn.Module, plan: Plan, prompts: Sequence[Prompt]) -> list[_Record]:
    rows = [as_trajectory(p, 0, reference_response(p), round=0) for p in prompts if p.reference_ids]
    losses = {"validation_loss_nats": single_label_forward_kl, "teacher_forced_accuracy": _argmax_is_token}
    return _position_records(model, plan, rows, losses, with_law=False)


def _position_records(
    model: nn.Module,
    plan: Plan,
    trajectories: Sequence[Trajectory],
    losses: dict[str, Any],
    *,
    with_law: bool,
) -> list[_Record]:
    device = next(model.parameters()).device
    ordered = sorted(trajectories, key=lambda t: len(t.prompt.token_ids) + len(t.response_ids))
    records = []
    for start in range(0, len(ordered), plan.batch_size):
        batch = collate(ordered[start : start + plan.batch_size], device)
        gate_BT = batch.is_response_BT
        law = plan.expert.law(batch, gate_BT) if with_law and plan.expert is not None else None
        labels = Labels(gate_BT=gate_BT, law=law, token_N=batch.token_BT[gate_BT], uniform_N=None)
        values = position_values(model, plan.vocab_size, batch, labels, losses)
        lengths = [len(t.response_ids) for t in batch.trajectories]
        split = {name: v.double().cpu().split(lengths) for name, v in values.items()}
        for i, t in enumerate(batch.trajectories):
            position = {name: pieces[i].tolist() for name, pieces in split.items()}
            records.append(_Record((t.prompt.id, t.sample_index), {}, position, None))
    return records


_SUMMED = ("expert_kl_nats", "reverse_expert_kl_nats", "validation_loss_nats", "teacher_forced_accuracy")


def _summary(records: Sequence[_Record]) -> Evaluation:
    metrics: dict[str, Estimate] = {}
    for name in ("accuracy_greedy", "accuracy_sampled"):
        graded = [(r.key[0], r.correct[name]) for r in records if name in r.correct]
        if graded:
            metrics[name] = _accuracy(graded)
    by_position: dict[str, list[float]] = {}
    for name in ("accuracy_greedy", "accuracy_sampled", *_SUMMED):
        rows = [r.position[name] for r in records if name in r.position]
        if not any(rows):
            continue
        if name in _SUMMED:
            metrics[name] = ratio_interval([sum(row) for row in rows], [len(row) for row in rows])
        by_position[name] = _mean_by_position(rows)
    return Evaluation(
        metrics=metrics, by_position=by_position, rollouts=[r.shown for r in records if r.shown is not None]
    )


def _accuracy(graded: Sequence[tuple[str, bool]]) -> Estimate:
    """One response a prompt: Wilson. Several: the prompt is the independent unit."""
    right: dict[str, list[bool]] = {}
    for prompt_id, is_correct in graded:
        right.setdefault(prompt_id, []).append(is_correct)
    if len(right) == len(graded):
        return wilson(sum(ok for _, ok in graded), len(graded))
    shares = {sum(oks) / len(oks) for oks in right.values()}
    if shares == {0.0} or shares == {1.0}:
        # All right or all wrong: a variance of 0 would claim certainty. Each prompt counts as one trial.
        return wilson(len(right) if shares == {1.0} else 0, len(right))
    return ratio_interval([sum(oks) for oks in right.values()], [len(oks) for oks in right.values()])


def _mean_by_position(rows: Sequence[Sequence[float]]) -> list[float]:
    padded = np.full((len(rows), max(map(len, rows))), np.nan)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return np.nanmean(padded, axis=0).tolist()
