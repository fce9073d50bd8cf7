"""Divergences in value and gradient. p student, q expert; gradients are by student logit."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_oracles import (
    INF,
    TOLERANCES,
    assert_close,
    forward,
    forward_grad,
    jsd,
    jsd_grad,
    leaf_grad,
    reverse,
    reverse_grad,
    softmax,
)
from torch import Tensor

from understudy.objectives.divergences import (
    against_expert,
    cross_entropy,
    forward_kl,
    forward_kl_from_logp,
    generalized_jsd,
    generalized_jsd_from_logp,
    mixed_kl,
    mixed_kl_from_logp,
    reverse_kl,
    reverse_kl_from_logp,
)
from understudy.objectives.rows import Rows

BETAS = (0.1, 0.5, 0.9)
logit_rows = st.lists(st.floats(-20, 20), min_size=4, max_size=4)


def mixed(p, q, beta):
    return (1 - beta) * forward(p, q) + beta * reverse(p, q)


def mixed_grad(p, q, beta):
    return [(1 - beta) * f + beta * r for f, r in zip(forward_grad(p, q), reverse_grad(p, q), strict=True)]


Contract = tuple[Callable[[Tensor, Tensor], Tensor], Callable, Callable]
CONTRACTS: dict[str, Contract] = {
    "forward": (forward_kl, forward, forward_grad),
    "reverse": (reverse_kl, reverse, reverse_grad),
    **{
        f"jsd-{b}": (partial(generalized_jsd, beta=b), partial(jsd, beta=b), partial(jsd_grad, beta=b))
        for b in BETAS
    },
    **{
        f"mixed-{b}": (partial(mixed_kl, beta=b), partial(mixed, beta=b), partial(mixed_grad, beta=b))
        for b in (0.0, 0.3, 1.0)
    },
}
every_contract = pytest.mark.parametrize(
    ("divergence", "oracle", "oracle_grad"), list(CONTRACTS.values()), ids=list(CONTRACTS)
)


def leaf(rows, dtype=torch.float64):
    return torch.tensor(rows, dtype=dtype).requires_grad_()


def grad_of(value: Tensor, student: Tensor) -> Tensor:
    return torch.autograd.grad(value.sum(), student)[0]


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [
        # student (1/4, 3/4), expert (1/2, 1/2)
        (forward_kl, 0.143841),  # 1/2 log 2 + 1/2 log(2/3)
        (reverse_kl, 0.130812),  # 1/4 log(1/2) + 3/4 log(3/2)
        # middle law (5/16, 11/16): 1/4 (1/2 log 8/5 + 1/2 log 8/11) + 3/4 (1/4 log 4/5 + 3/4 log 12/11)
        (partial(generalized_jsd, beta=0.25), 0.026048),
        (partial(mixed_kl, beta=0.25), 0.140584),  # 3/4 of the first, 1/4 of the second
    ],
)
def test_by_hand(divergence, expected):
    student, expert = torch.tensor([0.25, 0.75]).log(), torch.tensor([0.5, 0.5]).log()
    assert divergence(student, expert).item() == pytest.approx(expected, abs=2e-6)


def test_cross_entropy_by_hand():
    logits = leaf([[math.log(1), math.log(3)], [0.0, 0.0]])
    value = cross_entropy(logits, torch.tensor([1, 0]))
    torch.testing.assert_close(value, torch.tensor([math.log(4 / 3), math.log(2)], dtype=torch.float64))
    expected = torch.tensor([[0.25, -0.25], [-0.5, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(grad_of(value, logits), expected)


@every_contract
@settings(deadline=None, max_examples=40)
@given(student_row=logit_rows, expert_row=logit_rows)
def test_value_and_gradient(divergence, oracle, oracle_grad, student_row, expert_row):
    student, expert = leaf([[student_row]]), leaf([[expert_row]])
    value = divergence(student, expert)
    p, q = softmax(student_row), softmax(expert_row)
    assert value.shape == (1, 1)
    # A difference of logs of 40 nats and less, in float64.
    assert value.item() == pytest.approx(oracle(p, q), rel=1e-9, abs=1e-12)
    value.sum().backward()
    assert_close(
        leaf_grad(student)[0, 0], torch.tensor(oracle_grad(p, q), dtype=torch.float64), torch.float64
    )
    assert expert.grad is None


@every_contract
def test_gradient_is_the_finite_difference(divergence, oracle, oracle_grad):
    student = leaf(torch.randn(2, 5, generator=torch.Generator().manual_seed(1)).tolist())
    expert = torch.randn(2, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: divergence(s, expert), (student,))


@every_contract
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
def test_equal_laws_give_zero_and_no_gradient(divergence, oracle, oracle_grad, dtype):
    logits = (4 * torch.randn(3, 7, generator=torch.Generator().manual_seed(0))).to(dtype)
    logits[1, 2] = -INF
    student = logits.clone().requires_grad_()
    value = divergence(student, logits)
    # In float32, whatever the dtype of the logits: rounding of numbers of order one.
    atol = 1e-14 if dtype == torch.float64 else 1e-6
    assert value.abs().max() < atol
    assert grad_of(value, student).abs().max() < atol


@every_contract
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_half_precision_is_widened(divergence, oracle, oracle_grad, dtype):
    generator = torch.Generator().manual_seed(3)
    student = (3 * torch.randn(2, 3, 5, generator=generator)).to(dtype).requires_grad_()
    expert = (3 * torch.randn(2, 3, 5, generator=generator)).to(dtype)
    value = divergence(student, expert)
    assert value.dtype == torch.float32
    assert value.shape == (2, 3)
    exact = [oracle(softmax(s), softmax(e)) for s, e in zip(rows_of(student), rows_of(expert), strict=True)]
    # The logits are what they are: only arithmetic after them may round, and that is float32.
    assert_close(value.flatten(), torch.tensor(exact), torch.float32)
    grads = [
        oracle_grad(softmax(s), softmax(e)) for s, e in zip(rows_of(student), rows_of(expert), strict=True)
    ]
    assert_close(grad_of(value, student).view(-1, 5), torch.tensor(grads), dtype)


def rows_of(logits: Tensor) -> list[list[float]]:
    return logits.detach().double().view(-1, logits.shape[-1]).tolist()


@every_contract
def test_a_token_both_forbid_is_as_if_absent(divergence, oracle, oracle_grad):
    student, expert = leaf([[1.0, 0.0, -INF, 2.0]]), leaf([[0.0, 1.0, -INF, -1.0]])
    value = divergence(student, expert)
    short_student, short_expert = [1.0, 0.0, 2.0], [0.0, 1.0, -1.0]
    assert value.item() == pytest.approx(oracle(softmax(short_student), softmax(short_expert)), rel=1e-12)
    grad = grad_of(value, student)[0].tolist()
    expected = oracle_grad(softmax(short_student), softmax(short_expert))
    assert grad == pytest.approx([expected[0], expected[1], 0.0, expected[2]], abs=1e-12)


def test_forbidden_by_the_expert_alone():
    student, expert = leaf([[0.0, 0.0, 0.0]]), leaf([[0.0, 1.0, -INF]])
    assert reverse_kl(student, expert).item() == INF
    assert mixed_kl(student, expert, beta=0.5).item() == INF
    p, q = softmax([0.0, 0.0, 0.0]), [*softmax([0.0, 1.0]), 0.0]
    for divergence, value, grad in [
        (forward_kl, forward(p, q), forward_grad(p, q)),
        (partial(mixed_kl, beta=0.0), forward(p, q), forward_grad(p, q)),
        (partial(generalized_jsd, beta=0.3), jsd(p, q, 0.3), jsd_grad(p, q, 0.3)),
    ]:
        result = divergence(student, expert)
        assert result.item() == pytest.approx(value, rel=1e-12)
        assert grad_of(result, student)[0].tolist() == pytest.approx(grad, rel=1e-12)


def test_forbidden_to_the_student_alone():
    student, expert = leaf([[0.0, 1.0, -INF]]), leaf([[0.0, 0.0, 0.0]])
    p, q = [*softmax([0.0, 1.0]), 0.0], softmax([0.0, 0.0, 0.0])
    value = forward_kl(student, expert)
    assert value.item() == INF
    # The value is truly infinite; the gradient p - q is not.
    assert grad_of(value, student)[0].tolist() == pytest.approx(forward_grad(p, q), rel=1e-12)
    for divergence, number, grad in [
        (reverse_kl, reverse(p, q), reverse_grad(p, q)),
        (partial(mixed_kl, beta=1.0), reverse(p, q), reverse_grad(p, q)),
        (partial(generalized_jsd, beta=0.3), jsd(p, q, 0.3), jsd_grad(p, q, 0.3)),
    ]:
        result = divergence(student, expert)
        assert result.item() == pytest.approx(number, rel=1e-12)
        assert grad_of(result, student)[0].tolist() == pytest.approx(grad, rel=1e-12)


def test_mass_that_underflows_is_no_mass():
    value = reverse_kl(leaf([800.0, 0.0]), leaf([0.0, -INF]))
    assert value.item() == 0
    student = leaf([800.0, 0.0])
    value = generalized_jsd(student, leaf([0.0, -INF]), beta=0.5)
    assert value.item() == pytest.approx(0, abs=1e-15)
    assert torch.isfinite(grad_of(value, student)).all()


@pytest.mark.parametrize("beta", BETAS)
def test_jsd_is_bounded_by_the_entropy_of_beta(beta):
    apart = generalized_jsd(leaf([0.0, -INF]), leaf([-INF, 0.0]), beta=beta)
    assert apart.item() == pytest.approx(-beta * math.log(beta) - (1 - beta) * math.log(1 - beta), rel=1e-12)


def test_jsd_tends_to_each_kl():
    student, expert = leaf([0.3, -1.0, 0.5]), leaf([1.0, 0.0, -0.5])
    small = 1e-6
    forward_limit = generalized_jsd(student, expert, beta=small) / small
    reverse_limit = generalized_jsd(student, expert, beta=1 - small) / small
    assert forward_limit.item() == pytest.approx(forward_kl(student, expert).item(), rel=1e-5)
    assert reverse_limit.item() == pytest.approx(reverse_kl(student, expert).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("beta", "wanted"),
    [
        (0.0, "beta = 0 use forward_kl"),
        (1, "beta = 1 use reverse_kl"),
        (-0.1, "forward_kl"),
        (1.5, "reverse_kl"),
    ],
)
def test_jsd_refuses_an_end_and_names_the_function_wanted(beta, wanted):
    with pytest.raises(ValueError, match=rf"beta must be in \(0, 1\), got {beta}.*{wanted}"):
        generalized_jsd(torch.zeros(2), torch.zeros(2), beta=beta)


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_mixed_kl_refuses_a_share_outside_the_unit_interval(beta):
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\]"):
        mixed_kl(torch.zeros(2), torch.zeros(2), beta=beta)


@every_contract
def test_shape_error_names_both_arguments(divergence, oracle, oracle_grad):
    with pytest.raises(ValueError, match=r"student_logits \(1, 3\).*expert_logits \(1, 4\)"):
        divergence(torch.zeros(1, 3), torch.zeros(1, 4))


@every_contract
def test_no_positions(divergence, oracle, oracle_grad):
    student = torch.zeros(0, 3, requires_grad=True)
    value = divergence(student, torch.zeros(0, 3))
    assert value.shape == (0,)
    assert value.requires_grad


def test_cross_entropy_refuses_what_is_not_a_token():
    logits = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"leading shape of student_logits \(2, 3\), got \(3,\)"):
        cross_entropy(logits, torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"token must be in 0\.\.2, got ids from -100 to 1"):
        cross_entropy(logits, torch.tensor([1, -100]))
    with pytest.raises(ValueError, match=r"token must be in 0\.\.2, got ids from 0 to 3"):
        cross_entropy(logits, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="integer token ids"):
        cross_entropy(logits, torch.zeros(2))


@pytest.mark.parametrize(
    ("on_logits", "on_logp"),
    [
        (forward_kl, forward_kl_from_logp),
        (reverse_kl, reverse_kl_from_logp),
        (partial(generalized_jsd, beta=0.3), partial(generalized_jsd_from_logp, beta=0.3)),
        (partial(mixed_kl, beta=0.3), partial(mixed_kl_from_logp, beta=0.3)),
    ],
)
def test_a_row_loss_has_the_same_value_and_spares_the_expert(on_logits, on_logp):
    student, expert = leaf([[0.3, -1.0, 0.5], [0.0, 2.0, -INF]]), leaf([[1.0, 0.0, -0.5], [1.0, 0.5, -INF]])
    rows = Rows(expert_logp_nV=expert.log_softmax(-1))
    value = against_expert(on_logp)(student.log_softmax(-1), rows)
    assert_close(value, on_logits(student, expert), torch.float64)
    value.sum().backward()
    assert_close(leaf_grad(student), grad_of(on_logits(student, expert), student), torch.float64)
    assert expert.grad is None


def test_a_row_loss_without_a_law_says_so():
    with pytest.raises(ValueError, match="expert_logp_nV"):
        against_expert(forward_kl_from_logp)(torch.zeros(1, 2), Rows())
