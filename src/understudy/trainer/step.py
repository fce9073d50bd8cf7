"""One optimiser step: label, loss, gradient, AdamW. One denominator over micro-batches and processes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import DistributedType
from torch import Tensor

from understudy.errors import TrainingError
from understudy.objectives.rows import Watched, loss_column
from understudy.records import TrainBatch, Trajectory
from understudy.rollouts.pieces import MIN_PIECE_TOKENS_ACCELERATOR, MIN_PIECE_TOKENS_CPU
from understudy.trainer.budget import within_budget
from understudy.trainer.checkpoint import Progress
from understudy.trainer.collate import by_length, collate, micro_batches
from understudy.trainer.loss import gate_of, label
from understudy.trainer.schedule import learning_rate_at
from understudy.trainer.setup import Clock, Setup

MAX_OVERFLOWED_STEPS = 20
"""In a row, with fp16: the scaler halves its factor at each, so more of them are no matter of scale."""
FREE_TO_SPLIT = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
"""Where processes may differ in their number of forward passes; sharded weights are gathered by all at each."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one optimiser step did, over all processes; `padding_rate` and `read_rate` in the main process."""

    loss_nats: float
    grad_norm: float
    learning_rate: float
    trained_tokens: int
    padding_rate: float
    """Share of the cells of the batches that was padding."""
    read_rate: float
    """Share of the tokens whose forward pass was the one that had checked their drafts."""
    watched: Mapping[str, float]
    """Means over the trained tokens of what the loss reports."""


def optimizer_step(
    s: Setup, trajectories: Sequence[Trajectory], progress: Progress, clock: Clock
) -> StepResult:
    """One step of AdamW on the weighted mean of the loss over the whole step, over all micro-batches and processes.

    Raises:
        TrainingError: a loss or gradient norm that is not finite; nothing has been changed by then.
    """
    accelerator, recipe = s.accelerator, s.recipe
    # A policy gradient is one of the law that drew the tokens, and that law had no dropout.
    s.student.train(not s.objective.weighs_by_ratio)
    pieces = _pieces(s, trajectories)
    batches, was_read = [p.batch for p in pieces], [p.known_BSD is not None for p in pieces]
    gates = [gate_of(s.method, p.batch) & (not p.is_placeholder) for p in pieces]
    weights = [s.weigh(gate_BT) for gate_BT in gates]
    counts = [sum(int(g.sum()) for g in gates), len(trajectories)]
    counts += [sum(len(t.response_ids) for t in trajectories), sum(w.amount for w in weights)]
    sums = torch.tensor(counts, device=accelerator.device)
    num_tokens, num_trajectories, num_response, denominator = accelerator.reduce(
        sums, reduction="sum"
    ).tolist()  # pyright: ignore
    names = s.row_loss.names if isinstance(s.row_loss, Watched) else ()
    total_C = torch.zeros(1 + len(names), dtype=torch.float64, device=accelerator.device)
    for i, (batch, gate_BT) in enumerate(zip(batches, gates, strict=True)):
        with clock.phase("label"):
            labels = label(batch, gate_BT, s.objective, s.expert, recipe.seed)
            if s.reference is not None:
                near_N = s.reference(batch, labels)
                labels = replace(labels, given_N={**labels.given_N, "reference_logp_n": near_N})
        # Gradients are averaged over processes once, at the last micro-batch.
        joined = contextlib.nullcontext() if i + 1 == len(batches) else accelerator.no_sync(s.student)
        with clock.phase("train"), joined:
            weight_N = weights[i].weight_N
            loss, value_N = s.student(batch.token_BT, labels, s.row_loss, weight_N, pieces[i].known_BSD)
            _require_finite(value_N, gate_BT, batch, progress)
            accelerator.backward(loss * (accelerator.num_processes / max(denominator, 1)))
            total_C[0] += (loss_column(value_N).double() * weight_N.double()).sum()
            if names:
                total_C[1:] += value_N[:, 1:].double().sum(dim=0)
    with clock.phase("train"):
        rate = learning_rate_at(progress.step, recipe.train.steps, recipe.optimizer)
        norm = _apply(s, rate, progress, trajectories, has_gradient=num_tokens > 0)
    progress.trajectories += num_trajectories
    progress.response_tokens += num_response
    if _asks_expert(s):
        progress.expert_queries += num_tokens
    loss_sum, *seen = accelerator.reduce(total_C, reduction="sum").tolist()  # pyright: ignore
    cells = sum(b.token_BT.numel() for b in batches)
    filled = [sum(len(t.prompt.token_ids) + len(t.response_ids) for t in b.trajectories) for b in batches]
    return StepResult(
        loss_nats=loss_sum / max(denominator, 1),
        grad_norm=norm,
        learning_rate=rate,
        trained_tokens=num_tokens,
        padding_rate=1 - sum(filled) / cells,
        read_rate=sum(n for n, is_read in zip(filled, was_read, strict=True) if is_read) / sum(filled),
        watched={name: value / max(num_tokens, 1) for name, value in zip(names, seen, strict=True)},
    )


@dataclass(frozen=True)
class _Piece:
    """A part of the step's batch that goes through the student at once; see `StudentLoss.forward` for what is known."""

    batch: TrainBatch
    known_BSD: Tensor | None = None
    is_placeholder: bool = False
    """One token, gate shut: nothing to train on, but a forward and a backward pass that other processes wait for."""


def _pieces(s: Setup, trajectories: Sequence[Trajectory]) -> list[_Piece]:
    """This process's share of the step, cut. Gradients are exchanged at each process's last piece, so there is at least one;
    sharded weights are gathered at every one, so all processes then have as many as the one that has most."""
    pieces = _cut(s, trajectories) if trajectories else []
    least = 1
    if s.accelerator.distributed_type not in FREE_TO_SPLIT:
        counts = s.accelerator.gather(torch.tensor([len(pieces)], device=s.accelerator.device))
        least = max(1, int(counts.max()))  # pyright: ignore[reportAttributeAccessIssue]
    if len(pieces) < least:
        batch = collate([_placeholder(s)], s.accelerator.device)
        pieces += [_Piece(batch, is_placeholder=True)] * (least - len(pieces))
    return pieces


def _cut(s: Setup, trajectories: Sequence[Trajectory]) -> list[_Piece]:
    device, train = s.accelerator.device, s.recipe.train
    read, rest = _already_read(s, trajectories)
    if not rest:
        return read
    if train.micro_batch_size is not None or s.accelerator.distributed_type not in FREE_TO_SPLIT:
        parts = micro_batches(rest, train.micro_batch_size)
    else:
        is_cpu = device.type == "cpu"
        parts = by_length(rest, MIN_PIECE_TOKENS_CPU if is_cpu else MIN_PIECE_TOKENS_ACCELERATOR)
    if train.micro_batch_tokens is not None:
        parts = within_budget(parts, train.micro_batch_tokens)
    return read + [_Piece(collate(part, device)) for part in parts]


def _already_read(s: Setup, trajectories: Sequence[Trajectory]) -> tuple[list[_Piece], list[Trajectory]]:
    """What can be trained from the passes that checked this round's drafts, and what is left."""
    pieces, rest = [], list(trajectories)
    readings = s.sources.readings or []
    while readings:
        reading = readings.pop()
        places = reading.places(rest)
        known = [(t, row) for t, row in zip(rest, places, strict=True) if row is not None]
        if not known or not reading.pays([t for t, _ in known]):
            continue
        batch = collate([t for t, _ in known], s.accelerator.device)
        row_B = torch.tensor([row for _, row in known], device=s.accelerator.device)
        known_BSD = reading.hidden_BTD[row_B, : batch.token_BT.shape[1] - 1]
        pieces.append(_Piece(batch, known_BSD))
        rest = [t for t, row in zip(rest, places, strict=True) if row is None]
    return pieces, rest


def _placeholder(s: Setup) -> Trajectory:
    prompt = s.sources.task.prompts("train", 0, 1)[0]
    return Trajectory(
        prompt=prompt,
        sample_index=0,
        response_ids=(0,),
        is_student=(True,),
        logp=(0.0,),
        temperature=1.0,
        finish="length",
        round=0,
        student_version=0,
        advantage=0.0,
        score=0.0,
    )


def _asks_expert(s: Setup) -> bool:
    """Every trained position costs a query where the expert labels it, or wrote it for data that was asked for."""
    if s.objective.asks_labels:
        return True
    prefixes = s.method.prefixes
    return prefixes.is_fixed_data and prefixes.writer == "expert" and s.recipe.data.offline == "expert"


def _require_finite(value_N: Tensor, gate_BT: Tensor, batch: TrainBatch, progress: Progress) -> None:
    bad_N = ~torch.isfinite(loss_column(value_N))
    if bad_N.any():
        row_N = gate_BT.nonzero()[:, 0]
        ids = sorted({batch.trajectories[r].id for r in row_N[bad_N].tolist()})
        raise TrainingError(
            f"the loss of step {progress.step} is not finite at {int(bad_N.sum())} positions of trajectories "
            f"{', '.join(ids[:5])}{' ...' if len(ids) > 5 else ''}. No step was taken. Lower optimizer.learning_rate, or "
            "look at these prompts."
        )


def _apply(
    s: Setup, rate: float, progress: Progress, trajectories: Sequence[Trajectory], *, has_gradient: bool
) -> float:
    norm = s.accelerator.clip_grad_norm_(s.student.parameters(), s.recipe.optimizer.clip_norm)
    norm = float(norm) if norm is not None else 0.0
    # With fp16 a scaled gradient may overflow; the scaler then skips the step by itself, but not for ever.
    is_finite = norm < float("inf")
    progress.overflowed_steps = 0 if is_finite else progress.overflowed_steps + 1
    allowed = MAX_OVERFLOWED_STEPS if s.recipe.train.mixed_precision == "fp16" else 0
    if progress.overflowed_steps > allowed:
        ids = ", ".join(t.id for t in trajectories[:5])
        raise TrainingError(
            f"the gradient norm of step {progress.step} is {norm} (trajectories {ids} ...). No step was taken. "
            "Lower optimizer.learning_rate."
        )
    for group in s.optimizer.param_groups:
        group["lr"] = rate
    if has_gradient:
        s.optimizer.step()
    s.optimizer.zero_grad(set_to_none=True)
    return norm
