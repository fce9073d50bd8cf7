"""Half-precision hidden states and heads: what float32 in between leaves is the rounding of the results.

Everything is compared with the definitions in float64 on the same (already rounded) operands.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from chunked_cases import own, randn
from objective_oracles import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from understudy.objectives import products
from understudy.objectives.channel import NoiseChannel, through_channel
from understudy.objectives.chunked import loss_from_hidden, loss_from_logits
from understudy.objectives.divergences import (
    against_expert,
    forward_kl_from_logp,
    generalized_jsd_from_logp,
    mixed_kl_from_logp,
    reverse_kl_from_logp,
)
from understudy.objectives.estimators import (
    auxiliary_token_reverse_kl,
    policy_gradient_reverse_kl,
    single_label_forward_kl,
)
from understudy.objectives.laws import DenseLaw, Head, HeadLaw

N, V, D, EXPERT_D = 50, 700, 32, 48
UPSTREAM = 1 / 3  # no power of two: scaling a rounded gradient would round it again
CHANNEL = NoiseChannel(0.25, torch.full((V,), 1 / V))
LOSSES = {
    "forward": against_expert(forward_kl_from_logp),
    "reverse": against_expert(reverse_kl_from_logp),
    "jsd": against_expert(partial(generalized_jsd_from_logp, beta=0.3)),
    "mixed": against_expert(partial(mixed_kl_from_logp, beta=0.3)),
    "forward-floored": against_expert(forward_kl_from_logp, floor_prob=1e-4),
    "reverse-floored": against_expert(reverse_kl_from_logp, floor_prob=1e-4),
    "mixed-floored": against_expert(partial(mixed_kl_from_logp, beta=0.3), floor_prob=1e-4),
    "label": single_label_forward_kl,
    "policy": policy_gradient_reverse_kl,
    "auxiliary": auxiliary_token_reverse_kl,
    "noised": through_channel(against_expert(forward_kl_from_logp), CHANNEL),
    "noised-label": through_channel(single_label_forward_kl, CHANNEL),
}
HEADS: dict[str, dict[str, Any]] = {"plain": {}, "all": {"scale": 1.7, "softcap": 9.0}}
ROWS = {
    "weight_N": torch.linspace(0.2, 2, N).index_fill(0, torch.tensor([4]), 0),
    "token_N": torch.arange(N) * 13 % V,
    "uniform_N": torch.linspace(0.01, 0.99, N, dtype=torch.float64),
}


@pytest.fixture(autouse=True)
def _several_slices(monkeypatch):
    """Of the head, the last one shorter."""
    monkeypatch.setattr(products, "SLICE_BYTES", 0)
    monkeypatch.setattr(products, "MIN_SLICE_ROWS", 300)


def operands(dtype, head_name, device="cpu"):
    """Hidden states and heads of student and expert, logits of several units."""
    made = [(N, D), (V, D), (V,), (N, EXPERT_D), (V, EXPERT_D), (V,)]
    factors = [1.0, 2 / D**0.5, 1.0, 1.0, 2 / EXPERT_D**0.5, 1.0]
    hidden, weight, bias, *expert = (
        randn(*shape, seed=i).mul(f).to(device, dtype)
        for i, (shape, f) in enumerate(zip(made, factors, strict=True))
    )
    leaves = [
        x.requires_grad_() for x in ((hidden, weight, bias) if head_name == "all" else (hidden, weight))
    ]
    return leaves, expert if head_name == "all" else expert[:2], HEADS[head_name]


def head_of(weight, bias, settings):
    return Head(weight, bias[0] if bias else None, **settings)


def heads_of(leaves, expert, settings):
    hidden, weight, *bias = leaves
    expert_hidden, expert_weight, *expert_bias = expert
    law = HeadLaw(expert_hidden, head_of(expert_weight, expert_bias, settings))
    return hidden, head_of(weight, bias, settings), law


def exact_outcome(loss_name, leaves, expert, settings):
    """Value and gradients in float64, by autograd of the definition."""
    leaves = [x.detach().double().requires_grad_() for x in leaves]
    hidden, head, law = heads_of(leaves, [x.double() for x in expert], settings)
    logp = law.head.logits(law.hidden_ND).log_softmax(-1)
    rows = {name: tensor.to(hidden.device) for name, tensor in ROWS.items()}
    loss, value = loss_from_logits(LOSSES[loss_name], head.logits(hidden), law=DenseLaw(logp), **rows)
    return value, torch.autograd.grad(UPSTREAM * loss, leaves)


def our_outcome(row_loss, leaves, expert, settings, rows_per_tile=16):
    hidden, head, law = heads_of(leaves, expert, settings)
    rows = {name: tensor.to(hidden.device) for name, tensor in ROWS.items()}
    loss, value = loss_from_hidden(row_loss, hidden, head, law=law, rows_per_tile=rows_per_tile, **rows)
    return value, torch.autograd.grad(UPSTREAM * loss, leaves)


def error(found, wanted):
    return float((found.double() - wanted).norm() / wanted.norm())


def assert_rounded_once(grads, expected, *, at_most):
    """The error of each gradient as a multiple of what rounding the exact one to its dtype costs."""
    for grad, wanted in zip(grads, expected, strict=True):
        unavoidable = error(wanted.to(grad.dtype), wanted)
        assert unavoidable > 1e-5, "a dtype that rounds"
        assert error(grad, wanted) <= at_most * unavoidable


@pytest.mark.parametrize("way", ["closed form", "autograd"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_name", list(HEADS))
@pytest.mark.parametrize("loss_name", list(LOSSES))
def test_nothing_is_rounded_but_the_result(loss_name, head_name, dtype, way):
    """Rounded logits give 5 to 15 times the error of a rounded result; a rounded gradient by logit 1.4 times,
    one more rounding of what is scaled or summed over tiles 1.2 to 1.7 times."""
    case = operands(dtype, head_name)
    value, expected = exact_outcome(loss_name, *case)
    row_loss = LOSSES[loss_name] if way == "closed form" else own(LOSSES[loss_name])
    found, grads = our_outcome(row_loss, *case)
    assert found.dtype == torch.float32
    assert_close(found, value, torch.float32)
    assert all(grad.dtype == dtype for grad in grads)
    assert_rounded_once(grads, expected, at_most=1.1)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loss_name", list(LOSSES))
def test_a_device_rounds_the_gradient_by_logit_too(loss_name, dtype):
    case = operands(dtype, "all", "cuda")
    value, expected = exact_outcome(loss_name, *case)
    found, grads = our_outcome(LOSSES[loss_name], *case)
    assert_close(found.cpu(), value.cpu(), torch.float32)
    assert_rounded_once(grads, expected, at_most=2)


@pytest.mark.parametrize("way", ["closed form", "autograd"])
@pytest.mark.parametrize("head_name", list(HEADS))
@pytest.mark.parametrize("loss_name", list(LOSSES))
def test_products_of_a_device_that_widens_them_itself(loss_name, head_name, way, monkeypatch):
    """Its products take operands of one half-precision dtype; here they are stood in for."""

    calls = []

    def wide_mm(out, a, b):
        calls.append(out.shape)
        assert a.dtype == b.dtype == torch.bfloat16
        assert out.dtype == torch.float32
        out.copy_(a.float() @ b.float())

    def wide_addmm(out, a, b):
        before = out.clone()
        wide_mm(out, a, b)
        out += before

    monkeypatch.setattr(products, "has_wide_products", lambda device: True)
    monkeypatch.setattr(products, "_wide_mm", wide_mm)
    monkeypatch.setattr(products, "_wide_addmm", wide_addmm)
    case = operands(torch.bfloat16, head_name)
    value, expected = exact_outcome(loss_name, *case)
    row_loss = LOSSES[loss_name] if way == "closed form" else own(LOSSES[loss_name])
    found, grads = our_outcome(row_loss, *case)
    assert_close(found, value, torch.float32)
    assert_rounded_once(grads, expected, at_most=1.7)
    needs_expert = way == "autograd" or "label" not in loss_name
    assert len(calls) == 4 * (3 + needs_expert), "all products of 4 tiles"


@pytest.mark.parametrize("head_name", list(HEADS))
@pytest.mark.parametrize("loss_name", ["forward", "reverse", "jsd", "mixed", "label", "noised"])
def test_autocast_rounds_the_operands_alone(loss_name, head_name):
    """The gradients of float32 parameters are float32 to the last digits, but for the rounded operands."""
    (hidden, weight, *bias), expert, settings = operands(torch.float32, head_name)
    rounded = [hidden.bfloat16(), weight.bfloat16(), *bias]
    value, expected = exact_outcome(loss_name, rounded, expert, settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, grads = our_outcome(LOSSES[loss_name], [hidden, weight, *bias], expert, settings)
    assert_close(found, value, torch.float32)
    for grad, wanted in zip(grads, expected, strict=True):
        assert grad.dtype == torch.float32
        assert error(grad, wanted) < 1e-5


@pytest.mark.parametrize("head_name", list(HEADS))
def test_the_law_of_an_expert_in_half_precision(head_name):
    _, expert, settings = operands(torch.bfloat16, head_name)
    hidden, weight, *bias = expert
    found = HeadLaw(hidden, head_of(weight, bias, settings)).logp(3, 20)
    wanted = head_of(weight.double(), [b.double() for b in bias], settings).logits(hidden.double())
    assert found.dtype == torch.float32
    assert_close(found, wanted.log_softmax(-1)[3:20], torch.float32)


class Largest(TorchDispatchMode):
    """The number of bytes of the largest tensor made."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("loss_name", ["forward", "reverse", "jsd"])
def test_no_wide_copy_of_a_head_and_no_whole_logits(loss_name):
    """A float32 copy of a head or all logits would be larger than anything that is seen."""
    (hidden, weight), expert, settings = operands(torch.bfloat16, "plain")
    hidden, head, law = heads_of([hidden, weight.detach()], expert, settings)
    with Largest() as seen:
        loss, _ = loss_from_hidden(LOSSES[loss_name], hidden, head, law=law, rows_per_tile=4, **ROWS)
        loss.backward()
    # The largest is the expert's head itself, of which parts are taken.
    assert seen.bytes == 2 * V * EXPERT_D
    assert seen.bytes < min(4 * V * D, 4 * N * V)
