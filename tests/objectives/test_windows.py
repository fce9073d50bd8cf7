"""Targets of a student's window and the loss on them, against dense laws written out in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from chunked_cases import HEADS, randn
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_oracles import INF, TOLERANCES, assert_close, leaf_grad, relative_entropy, softmax

from understudy.objectives.chunked import loss_from_hidden, loss_from_logits
from understudy.objectives.laws import Head
from understudy.objectives.rows import Rows
from understudy.objectives.transport import exact_plan
from understudy.objectives.windows import (
    Targets,
    given_targets,
    heaviest,
    listed_cross_entropy,
    listed_kl,
    soft_target_cross_entropy,
    soft_target_kl,
    soft_targets,
)

F64 = torch.float64


def dense(targets: Targets, vocab_size: int) -> torch.Tensor:
    """[B, I, V] by adding up the list: shares no code with how it was made."""
    law = torch.zeros(*targets.token_BIK.shape[:2], vocab_size, dtype=F64)
    for b, i, k in torch.cartesian_prod(*(torch.arange(size) for size in targets.token_BIK.shape)).tolist():
        law[b, i, targets.token_BIK[b, i, k]] += targets.weight_BIK[b, i, k]
    return law


def written_out(plan, token, vocab_size: int) -> list[list[float]]:
    """The definition for one pair, in Python floats."""
    rows = []
    for row in plan:
        law = [0.0] * vocab_size
        for mass, v in zip(row, token, strict=True):
            law[v] += mass
        total = math.fsum(row)
        rows.append([x / total if total > 0 else 0.0 for x in law])
    return rows


# --- targets ----------------------------------------------------------------------------------------------------------


def test_rows_are_the_students_positions():
    """A plan of 2 x 3, not symmetric: read the other way round it would not even fit."""
    plan = torch.tensor([[[0.3, 0.1, 0.1], [0.0, 0.25, 0.25]]], dtype=F64)
    targets = soft_targets(plan, torch.tensor([[7, 5, 7]]))
    assert targets.token_BIK.tolist() == [[[7, 5, 0], [7, 5, 0]]]
    assert targets.weight_BIK[0, 0].tolist() == pytest.approx([0.8, 0.2, 0])
    assert targets.weight_BIK[0, 1].tolist() == pytest.approx([0.5, 0.5, 0])
    with pytest.raises(ValueError, match="the plan has the student's positions first"):
        soft_targets(plan, torch.tensor([[7, 5]]))


def test_rows_and_columns_of_a_square_plan():
    """Student token 0 goes with expert token 1, 1 with 2, 2 with 0; the transposed plan would give 9, 7, 8."""
    plan = torch.eye(3, dtype=F64)[[1, 2, 0]][None] / 3
    targets = heaviest(soft_targets(plan, torch.tensor([[7, 8, 9]])))
    assert targets.token_BIK[0, :, 0].tolist() == [8, 9, 7]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_definition_over_any_plan(data):
    num_student, num_expert = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    mass = st.sampled_from([0.0, 0.1, 0.25, 0.5])
    plan = data.draw(
        st.lists(
            st.lists(mass, min_size=num_expert, max_size=num_expert),
            min_size=num_student,
            max_size=num_student,
        )
    )
    token = data.draw(st.lists(st.integers(0, 3), min_size=num_expert, max_size=num_expert))
    targets = soft_targets(torch.tensor([plan], dtype=F64), torch.tensor([token]))
    expected = written_out(plan, token, 4)
    torch.testing.assert_close(
        dense(targets, 4)[0], torch.tensor(expected, dtype=F64), rtol=1e-12, atol=1e-15
    )
    for i, law in enumerate(expected):
        listed = targets.token_BIK[0, i][targets.weight_BIK[0, i] > 0].tolist()
        assert sorted(listed) == [v for v, y in enumerate(law) if y > 0]  # one entry a token
        one = heaviest(targets)
        if max(law) == 0:
            assert one.weight_BIK[0, i].tolist() == [0]
        else:
            first = next(v for v in token if law[v] >= max(law) - 1e-12)
            ties = [y for y in set(law) if abs(y - max(law)) < 1e-12]
            assert one.weight_BIK[0, i].tolist() == [1]
            if len(ties) == 1:
                assert one.token_BIK[0, i].tolist() == [first]


def test_padding_has_no_target_and_its_ids_are_not_looked_at():
    is_student, is_expert = torch.tensor([[True, True, False]]), torch.tensor([[True, False, True]])
    plan = exact_plan(torch.zeros(1, 3, 3), is_student, is_expert)
    targets = soft_targets(plan, torch.tensor([[4, -100, 6]]))
    assert targets.weight_BIK.sum(2).tolist() == [[1, 1, 0]]
    assert targets.token_BIK.min() == 0
    assert sorted(heaviest(targets).token_BIK[0, :2, 0].tolist()) == [4, 6]
    forced = given_targets(torch.tensor([[4, -100, 6]]), is_expert)
    assert forced.token_BIK.tolist() == [[[4], [0], [6]]]
    assert forced.weight_BIK.tolist() == [[[1], [0], [1]]]
    with pytest.raises(ValueError, match=r"token_BI \(1, 3\), is_real_BI \(1, 2\)"):
        given_targets(torch.tensor([[4, -100, 6]]), is_expert[:, :2])


def test_a_tie_goes_to_the_token_that_came_first():
    """Five tokens of equal weight, many times: whichever entry `max` names."""
    plan = torch.full((1, 40, 5), 1 / 200, dtype=F64)
    targets = heaviest(soft_targets(plan, torch.tensor([[9, 3, 8, 1, 7]])))
    assert set(targets.token_BIK.flatten().tolist()) == {9}
    # Two light places of one token together outweigh one heavy place of another.
    twice = torch.tensor([[[0.4, 0.3, 0.3]]], dtype=F64)
    assert heaviest(soft_targets(twice, torch.tensor([[5, 2, 2]]))).token_BIK.tolist() == [[[2]]]


# --- the loss of a position -------------------------------------------------------------------------------------------

V = 7
rows_of_logits = st.lists(st.floats(-20, 20), min_size=V, max_size=V)


@settings(deadline=None)
@given(rows_of_logits, st.lists(st.integers(0, 8), min_size=3, max_size=3))
def test_value_and_gradient(logits_row, shares):
    """Tokens 5, 0 and 2 with these shares: KL, cross-entropy, and p - y by logit."""
    total = sum(shares)
    weight = [x / total if total else 0.0 for x in shares]
    token = [5, 0, 2]
    y = [0.0] * V
    for v, w in zip(token, weight, strict=True):
        y[v] = w
    p = softmax(logits_row)
    rows = Rows(target_token_nK=torch.tensor([token]), target_weight_nK=torch.tensor([weight], dtype=F64))
    kl = relative_entropy(y, p)
    entropy = -math.fsum(w * math.log(w) for w in weight if w > 0)
    for loss, expected in ((soft_target_kl, kl), (soft_target_cross_entropy, kl + entropy)):
        logits = torch.tensor([logits_row], dtype=F64, requires_grad=True)
        value = loss(logits.log_softmax(-1), rows)
        assert value.tolist() == pytest.approx([expected], rel=1e-9, abs=1e-12)
        value.sum().backward()
        share = 1.0 if total else 0.0
        slope = [share * a - b for a, b in zip(p, y, strict=True)]
        assert leaf_grad(logits)[0].tolist() == pytest.approx(slope, rel=1e-9, abs=1e-12)


def test_by_hand():
    """y = (3/4, 1/4) on p = (1/2, 1/4, 1/4): 3/4 log(3/2) + 1/4 log 1."""
    logp = torch.tensor([[0.5, 0.25]], dtype=F64).log()
    weight = torch.tensor([[0.75, 0.25]], dtype=F64)
    assert listed_kl(logp, weight).item() == pytest.approx(0.75 * math.log(1.5), rel=1e-12)
    expected = 0.75 * math.log(2) + 0.25 * math.log(4)
    assert listed_cross_entropy(logp, weight).item() == pytest.approx(expected, rel=1e-12)


def test_forbidden_tokens():
    """Without weight they count for nothing; with weight the value is inf, and the gradient by logit still p - y."""
    logits = torch.tensor([[1.0, 0.0, -INF]], dtype=F64, requires_grad=True)
    token = torch.tensor([[0, 2]])

    def kl(weight):
        rows = Rows(target_token_nK=token, target_weight_nK=torch.tensor([weight], dtype=F64))
        return soft_target_kl(logits.log_softmax(-1), rows)

    p = softmax([1.0, 0.0])
    assert kl([1.0, 0.0]).item() == pytest.approx(-math.log(p[0]), rel=1e-12)
    value = kl([0.5, 0.5])
    assert value.item() == INF
    value.sum().backward()
    assert leaf_grad(logits)[0].tolist() == pytest.approx([p[0] - 0.5, p[1], -0.5], rel=1e-12)


def test_half_precision_weights_do_not_widen_the_value():
    logp = torch.randn(2, 3).log_softmax(-1)
    assert listed_kl(logp, torch.full((2, 3), 1 / 3, dtype=F64)).dtype is torch.float32


def test_weights_are_constants():
    weight = torch.full((2, 3), 1 / 3, dtype=F64, requires_grad=True)
    for loss in (listed_kl, listed_cross_entropy):
        logp = torch.randn(2, 3, dtype=F64).requires_grad_()
        loss(logp, weight).sum().backward()
        assert weight.grad is None


def test_what_the_loss_needs():
    logp = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"rows\.target_token_nK"):
        soft_target_kl(logp, Rows())
    with pytest.raises(ValueError, match=r"rows\.target_weight_nK"):
        soft_target_cross_entropy(logp, Rows(target_token_nK=torch.tensor([[0]])))
    with pytest.raises(ValueError, match=r"logp_NK \(1, 2\), weight_NK \(1, 1\)"):
        listed_kl(logp, torch.zeros(1, 1))


# --- from hidden states -----------------------------------------------------------------------------------------------


def batch_of_targets() -> tuple[Targets, torch.Tensor]:
    """Two windows of five positions over seven expert tokens, the second with gaps; and the gate of real positions."""
    generator = torch.Generator().manual_seed(0)
    plan = torch.rand(2, 5, 7, generator=generator, dtype=F64).square()
    plan[plan < 0.05] = 0
    gate = torch.tensor([[True] * 5, [True, False, True, False, True]])
    plan[~gate] = 0
    return soft_targets(plan, torch.tensor([[0, 1, 2, 1, 4, 3, 4], [5, 6, 5, 5, 5, 2, 0]])), gate


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("head_name", list(HEADS))
@pytest.mark.parametrize("path", ["logits", "tile-3", "tile-100"])
def test_every_path_gives_the_dense_law(path, head_name, dtype):
    """The weighted sum, the value at each row and all gradients, as autograd of the dense formula in float64."""
    targets, gate = batch_of_targets()
    rows = int(gate.sum())
    hidden, weight_VD = (randn(size, 4, seed=size).to(dtype).requires_grad_() for size in (rows, V))
    shape = dict(HEADS[head_name])
    bias_V = randn(V, seed=1).to(dtype).requires_grad_() if shape.pop("has_bias", False) else None
    head = Head(weight_VD, bias_V, **shape)
    weight = torch.linspace(0, 2, rows, dtype=F64)
    given = targets.given(gate)
    inputs = [t for t in (hidden, weight_VD, bias_V) if t is not None]
    if path == "logits":
        loss, value = loss_from_logits(
            soft_target_kl, head.logits(hidden), weight_N=weight, law=None, given_N=given
        )
    else:
        loss, value = loss_from_hidden(
            soft_target_kl,
            hidden,
            head,
            weight_N=weight,
            law=None,
            given_N=given,
            rows_per_tile=int(path[5:]),
        )
    found = torch.autograd.grad(loss, inputs)

    wide = [t.detach().double().requires_grad_() for t in inputs]
    logits = wide[0] @ wide[1].T + (wide[2] if len(wide) > 2 else 0)
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    y = dense(targets, V)[gate]
    entropy = -(y * y.clamp_min(1e-300).log()).sum(-1)
    expected = -(y * (logits - logits.logsumexp(-1, keepdim=True))).sum(-1) - entropy
    total = (weight * expected).sum()
    slopes = torch.autograd.grad(total, wide)
    assert_close(value, expected.detach(), dtype)
    assert_close(loss, total, dtype)
    for grad, slope in zip(found, slopes, strict=True):
        assert_close(grad, slope, dtype)


def test_targets_that_do_not_fit_the_rows():
    targets, gate = batch_of_targets()
    logits, weight = torch.zeros(8, V), torch.ones(8)
    given = dict(targets.given(gate))

    def loss(**change):
        return loss_from_logits(
            soft_target_kl, logits, weight_N=weight, law=None, given_N={**given, **change}
        )

    loss()
    token = given["target_token_nK"]
    for bad in (token[:7], token[:, :6], token[:, 0]):
        with pytest.raises(ValueError, match=r"expected K entries for each of 8 rows, got .*target_token_nK"):
            loss(target_token_nK=bad)
    with pytest.raises(ValueError, match=r"target_token_nK must be in 0\.\.6, got ids from 7 to 7"):
        loss(target_token_nK=torch.full_like(token, 7))
    with pytest.raises(ValueError, match=r"loss_n must hold one entry a row"):
        loss(loss_n=torch.zeros(8, 2))
