"""Heads multiply gated positions alone: the rows of every product that has a vocabulary are counted, forward and backward.

B sequences, T positions, N gated positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from small import make_model
from understudy.experts.local import LocalExpert
from understudy.models import new_model
from understudy.objectives.divergences import against_expert, forward_kl_from_logp, reverse_kl_from_logp
from understudy.objectives.estimators import single_label_forward_kl
from understudy.records import TrainBatch
from understudy.schema import NewModel
from understudy.trainer.loss import Labels, StudentLoss, Term, position_values

V, STUDENT, EXPERT = 101, 16, 24
"""Unlike any other size here: a product with the vocabulary is known by it, and whose it is by the width."""
SHAPE = (3, 19)
GATED = [(0, 4), (0, 5), (1, 18), (2, 1), (2, 11)]
OPERANDS = {"mm": 0, "addmm": 1, "addmm_": 1, "bmm": 0, "baddbmm": 1}
"""Products, and where the first of their two matrices stands."""


class ProjectedRows(TorchDispatchMode):
    """Rows of all products between hidden states of some width and logits, whatever their order and split."""

    def __init__(self):
        super().__init__()
        self.rows: Counter[int] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        first = OPERANDS.get(func.overloadpacket.__name__)
        if first is not None:
            a, b = args[first : first + 2]
            sizes = [*a.shape, b.shape[-1]]
            if V in sizes:
                (width,) = {STUDENT, EXPERT} & set(sizes)
                self.rows[width] += math.prod(sizes) // (V * width)
        return func(*args, **(kwargs or {}))


def student() -> StudentLoss:
    return StudentLoss(make_model("gpt2", vocab=V), V)


def gated_batch() -> tuple[TrainBatch, torch.Tensor]:
    gate_BT = torch.zeros(SHAPE, dtype=torch.bool)
    gate_BT[tuple(zip(*GATED, strict=True))] = True
    token_BT = torch.randint(V, SHAPE, generator=torch.Generator().manual_seed(0))
    every_BT = torch.ones(SHAPE, dtype=torch.bool)
    batch = TrainBatch(token_BT=token_BT, is_response_BT=every_BT, is_student_BT=every_BT, trajectories=())
    return batch, gate_BT


def labels_of(batch: TrainBatch, gate_BT: torch.Tensor, *, from_expert: bool) -> Labels:
    sizes = NewModel(family="llama", layers=1, width=EXPERT, heads=2, max_positions=32)
    expert = LocalExpert(new_model(sizes, vocab_size=V, eos_ids=frozenset(), seed=1), V)
    law = expert.law(batch, gate_BT) if from_expert else None
    return Labels(gate_BT=gate_BT, law=law, token_N=batch.token_BT[gate_BT], uniform_N=None)


LOSSES = {
    "reverse KL": (against_expert(reverse_kl_from_logp), True),
    "forward KL": (against_expert(forward_kl_from_logp), True),
    "one label": (single_label_forward_kl, False),
    # No closed form: by autograd, from the same logits.
    "entropy": (lambda logp_nV, rows: -(logp_nV.exp() * logp_nV).sum(-1), False),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gated_positions_alone_are_projected(name):
    """Logits, gradient by hidden state, gradient by head: three products of N rows, and one of the expert's.

    Fails if either model projects a position outside the gate, or the backward pass multiplies once more.
    """
    row_loss, from_expert = LOSSES[name]
    batch, gate_BT = gated_batch()
    loss_of, n = student(), len(GATED)
    weight_N = torch.ones(n)
    with ProjectedRows() as forward:
        labels = labels_of(batch, gate_BT, from_expert=from_expert)
        ((loss, value_N),) = loss_of(batch.token_BT, [Term(labels, row_loss, weight_N)])
    assert value_N.shape == (n,)
    assert forward.rows == {STUDENT: 3 * n} | ({EXPERT: n} if from_expert else {})
    with ProjectedRows() as backward:
        loss.backward()
    assert backward.rows == {}
    assert all(p.grad is not None for p in loss_of.parameters())


def test_every_term_projects_its_own_positions():
    """Two terms on one pass: the sum of their gates, not the gate of one for both."""
    batch, gate_BT = gated_batch()
    few_BT = gate_BT.clone()
    few_BT[2] = False
    terms = [
        Term(labels_of(batch, g, from_expert=False), single_label_forward_kl, torch.ones(int(g.sum())))
        for g in (gate_BT, few_BT)
    ]
    with ProjectedRows() as seen:
        student()(batch.token_BT, terms)
    assert seen.rows == {STUDENT: 3 * (5 + 3)}


def test_values_without_a_gradient_cost_one_product():
    """Logged values: one product of N rows a head for each of them, none for gradients nobody asks for."""
    batch, gate_BT = gated_batch()
    labels, loss_of = labels_of(batch, gate_BT, from_expert=True), student()
    chosen = {name: LOSSES[name][0] for name in ("reverse KL", "forward KL")}
    with ProjectedRows() as seen:
        position_values(loss_of.model, V, batch, labels, chosen)
    assert seen.rows == {STUDENT: 2 * len(GATED), EXPERT: 2 * len(GATED)}
    for p in loss_of.parameters():
        p.requires_grad_(False)
    with ProjectedRows() as seen:
        loss_of(batch.token_BT, [Term(labels, chosen["reverse KL"], torch.ones(len(GATED)))])
    assert seen.rows == {STUDENT: len(GATED), EXPERT: len(GATED)}
