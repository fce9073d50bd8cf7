"""Tabular softmax students, trained with the library's own losses on exact expected batches.

Every prefix is a row, weighted by its probability under whoever writes it; where a loss takes one token a row, every token is
a row, weighted by its probability. What is imported from the package is what the trainer uses: the table of methods, the
gates, the draws and the losses. The worlds come from the theory, which shares no code with those.

P prompts, H positions, V vocabulary, M all prefixes of all prompts and positions, N weighted rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from understudy.methods import Estimator, LossSettings, Method
from understudy.objectives.chunked import loss_from_logits
from understudy.objectives.gates import require_student_only
from understudy.objectives.laws import DenseLaw
from understudy.objectives.rows import RowLoss
from understudy.records import TrainBatch
from understudy.rollouts.draws import draw
from understudy.theory.method_optima import World
from understudy.trainer.loss import draw_labels, gate_of


@dataclass(frozen=True, eq=False)
class Part:
    """Prefixes of one writer: their probabilities [M], and the law [M, V] of the token that follows in the data."""

    weight_M: Tensor
    next_MV: Tensor
    is_student: bool


@dataclass(eq=False)
class Student:
    """A table of logits: one row a prefix, or one row a position in offsets to the clean token."""

    world: World
    is_tied: bool
    logits: Tensor = field(init=False)

    def __post_init__(self) -> None:
        world, shapes = self.world, []
        for t in range(world.horizon):
            shapes.append((world.num_prompts, world.num_tokens**t))
        self.shapes = shapes
        clean = [torch.from_numpy(world.clean_token(t)).flatten() for t in range(world.horizon)]
        self.clean_M = torch.cat(clean)
        self.position_M = torch.cat([torch.full_like(c, t) for t, c in enumerate(clean)])
        laws = [torch.from_numpy(world.expert_law(t).copy()).flatten(0, 1) for t in range(world.horizon)]
        self.expert_MV = torch.cat(laws)
        num_rows = world.horizon if self.is_tied else len(self.clean_M)
        self.logits = torch.zeros(num_rows, world.num_tokens, dtype=torch.float64, requires_grad=True)

    def logits_MV(self) -> Tensor:
        if not self.is_tied:
            return self.logits
        offset_MV = (torch.arange(self.world.num_tokens) - self.clean_M[:, None]) % self.world.num_tokens
        return self.logits[self.position_M].gather(-1, offset_MV)

    def policy(self) -> tuple[np.ndarray, ...]:
        return tuple(law.numpy() for law in self.split(self.logits_MV().detach().softmax(-1)))

    def split(self, value_MV: Tensor) -> list[Tensor]:
        """[M, ...] to one [P, N, ...] a position."""
        parts = value_MV.split([p * n for p, n in self.shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def rows_of(self, value_M: Tensor) -> Tensor:
        """The sum of [M] over the prefixes that share a row of the table."""
        if not self.is_tied:
            return value_M
        return torch.zeros(len(self.logits), dtype=value_M.dtype).index_add(0, self.position_M, value_M)


def written_by(student: Student, law_MV: Tensor) -> Tensor:
    """Probability of every prefix when this law writes all tokens, [M]."""
    weight_PN = torch.ones(student.world.num_prompts, 1, dtype=torch.float64) / student.world.num_prompts
    weights = []
    for law_PNV in student.split(law_MV):
        weights.append(weight_PN.flatten())
        weight_PN = (weight_PN[..., None] * law_PNV).flatten(1)
    return torch.cat(weights)


@torch.no_grad()
def parts_of(student: Student, method: Method, options: dict[str, float], round: int = 0) -> list[Part]:
    """What a round of this method would hold, in expectation; no gradient passes to who writes."""
    prefixes, expert_MV = method.prefixes, student.expert_MV
    share = prefixes.expert_share(round, options)
    law_MV = student.logits_MV().log_softmax(-1)
    if prefixes.temperature == 0:
        token_M = draw(law_MV, torch.zeros(len(law_MV), dtype=torch.float64), 0)
        own_MV = torch.nn.functional.one_hot(token_M, law_MV.shape[-1]).double()
    else:
        own_MV = law_MV.exp()
    if prefixes.unit == "token":
        weight_M = written_by(student, share * expert_MV + (1 - share) * own_MV)
        by_expert_M = by_student_M = weight_M
    else:
        by_expert_M, by_student_M = written_by(student, expert_MV), written_by(student, own_MV)
    parts = [Part(share * by_expert_M, expert_MV, False), Part((1 - share) * by_student_M, own_MV, True)]
    return [part for part in parts if bool(part.weight_M.any())]


def midpoints(prob_MV: Tensor) -> Tensor:
    """A uniform number a token, from which inverting the distribution function draws that token."""
    return prob_MV.cumsum(-1) - prob_MV / 2


def expected_loss(
    student: Student, method: Method, estimator: Estimator, row_loss: RowLoss, parts: Sequence[Part]
) -> tuple[Tensor, Tensor]:
    """(expected loss with graph, gated weight of every prefix [M]); sampled tokens are enumerated."""
    objective, num_tokens = method.objective(estimator), student.world.num_tokens
    total, gated_M = torch.zeros((), dtype=torch.float64), torch.zeros(len(student.clean_M)).double()
    logits_MV, expert_logp_MV = student.logits_MV(), student.expert_MV.log()
    for part in parts:
        batch = TrainBatch(
            token_BT=torch.zeros(len(part.weight_M), 1, dtype=torch.long),
            is_response_BT=torch.ones(len(part.weight_M), 1, dtype=torch.bool),
            is_student_BT=torch.full((len(part.weight_M), 1), part.is_student),
            trajectories=(),
        )
        gate_BT = gate_of(method, batch)
        if objective.needs_student_tokens:
            require_student_only(gate_BT, batch.is_student_BT)
        weight_M = part.weight_M * gate_BT[:, 0]
        gated_M = gated_M + weight_M
        law = DenseLaw(expert_logp_MV) if objective.law else None
        if objective.token is None and not objective.uniform:
            total = total + loss_from_logits(row_loss, logits_MV, weight_N=weight_M, law=law)[0]
            continue
        own_MV = logits_MV.detach().softmax(-1)
        drawn_from_MV = own_MV if objective.uniform else student.expert_MV
        drawn_from_MV = part.next_MV if objective.token == "response" else drawn_from_MV
        weight_N = (weight_M[:, None] * drawn_from_MV).flatten()
        uniform_N = midpoints(drawn_from_MV).flatten()
        expert_N = DenseLaw(expert_logp_MV.repeat_interleave(num_tokens, 0))
        token_N = None
        if objective.token == "expert":
            token_N = draw_labels(expert_N, uniform_N)
        elif objective.token == "response":
            token_N = torch.arange(num_tokens).repeat(len(weight_M))
        loss, _ = loss_from_logits(
            row_loss,
            logits_MV.repeat_interleave(num_tokens, 0),
            weight_N=weight_N,
            law=expert_N if objective.law else None,
            token_N=token_N,
            uniform_N=uniform_N if objective.uniform else None,
        )
        total = total + loss
    return total, gated_M


def natural_step(student: Student, gated_M: Tensor, rate: float, length: float) -> None:
    """One step of Fisher scoring in every row of the table, in the metric of the law that the loss sees.

    It only rescales the library's gradient: rare prefixes and tokens would otherwise take very long.
    """
    prob_KV = student.logits.detach().softmax(-1)
    seen_KV = (1 - rate) * prob_KV + rate / prob_KV.shape[-1]
    slope_KVV = (1 - rate) * (torch.diag_embed(prob_KV) - prob_KV[:, :, None] * prob_KV[:, None, :])
    # Logits are free up to a constant; the damping stops rows that have reached the boundary.
    fisher_KVV = slope_KVV @ (slope_KVV / seen_KV[:, :, None]) + 1 + 1e-15 * torch.eye(prob_KV.shape[-1])
    weight_K = student.rows_of(gated_M)
    is_trained_K = weight_K > 1e-14
    grad = student.logits.grad
    assert grad is not None
    scaled_KV = torch.where(is_trained_K[:, None], grad / weight_K.clamp_min(1e-14)[:, None], 0.0)
    step_KV = torch.linalg.solve(fisher_KVV, scaled_KV[..., None])[..., 0]
    with torch.no_grad():
        student.logits -= (length * step_KV).clamp(-1, 1)
    student.logits.grad = None


def train(
    student: Student,
    method: Method,
    estimator: Estimator,
    settings: LossSettings,
    options: dict[str, float],
    *,
    steps: int,
    rounds: int = 1,
    given: Sequence[Part] = (),
) -> float:
    """Train until nothing moves: strictly on-policy, or on `given` prefixes, or `steps` on each pool of rounds so far.

    Returns the last loss in nats, summed over positions.
    """
    row_loss = method.objective(estimator).build(settings)
    rate = settings.channel.eta if settings.channel is not None and method.uses_channel else 0.0
    # At its minimum the generalised JSD is beta (1 - beta) times as curved as a KL; three quarters of a full step.
    length = 0.75 / (options["beta"] * (1 - options["beta"])) if method.name == "gkd" else 1.0
    pool: list[Part] = []
    loss = torch.tensor(float("nan"))
    for round in range(rounds if method.prefixes.aggregate else 1):
        pool += parts_of(student, method, options, round) if method.prefixes.aggregate else []
        for _ in range(steps):
            mean = [Part(p.weight_M / (round + 1), p.next_MV, p.is_student) for p in pool]
            parts = given or mean or parts_of(student, method, options)
            loss, gated_M = expected_loss(student, method, estimator, row_loss, parts)
            loss.backward()
            natural_step(student, gated_M, rate, length)
    return loss.item()
