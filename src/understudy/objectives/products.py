"""The three matrix products between hidden states and logits, in float32 even where the operands are narrower.

N rows, V vocabulary, D width of the hidden state. Half-precision operands are taken as they are; sums and
results are float32. Rounding a logit of 8 to bfloat16 moves it by up to 0.016, which is 1.6 % of a
probability and of its gradient: more than everything else in half precision together.
"""

from __future__ import annotations

import torch
from torch import Tensor

SLICE_BYTES = 2**20
"""Size of the float32 copy of a part of the head: it should still be in the cache when it is multiplied."""

MIN_SLICE_ROWS = 256
"""Thinner slices of a wide head would make slow products."""


def has_wide_products(device: torch.device) -> bool:
    """Whether the device multiplies half-precision operands into a float32 result by itself.

    Elsewhere their float32 copies are multiplied, a slice of the head at a time. The copies are exact, so
    `torch.backends.mkldnn.matmul.fp32_precision = "bf16"` costs no digit in the logits, and saves time on
    processors with bfloat16 tiles.
    """
    at_least_2_8 = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8)
    return device.type == "cuda" and torch.version.cuda is not None and at_least_2_8


def gradient_dtype(operand_dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """In what the gradient by logit is kept until both products with it are made.

    The products of a device are made of operands of one dtype, so there it is rounded once, to theirs.
    """
    is_rounded = has_wide_products(device) and operand_dtype.itemsize < 4
    return operand_dtype if is_rounded else torch.promote_types(operand_dtype, torch.float32)


def logits_into(out_NV: Tensor, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> None:
    """out = hidden W^T + bias."""
    if hidden_ND.dtype == out_NV.dtype:
        if bias_V is None:
            torch.mm(hidden_ND, weight_VD.t(), out=out_NV)
        else:
            torch.addmm(bias_V, hidden_ND, weight_VD.t(), out=out_NV)
        return
    if has_wide_products(hidden_ND.device):
        _wide_mm(out_NV, hidden_ND, weight_VD.t())
    else:
        wide_hidden_ND = hidden_ND.to(out_NV.dtype)
        for part in _slices(weight_VD):
            torch.mm(wide_hidden_ND, weight_VD[part].to(out_NV.dtype).t(), out=out_NV[:, part])
    if bias_V is not None:
        out_NV += bias_V


def hidden_grad_into(out_ND: Tensor, grad_NV: Tensor, weight_VD: Tensor) -> None:
    """out = grad W. The operands have one dtype, or the gradient that of the result."""
    if weight_VD.dtype == out_ND.dtype:
        torch.mm(grad_NV, weight_VD, out=out_ND)
    elif grad_NV.dtype == weight_VD.dtype:
        _wide_mm(out_ND, grad_NV, weight_VD)
    else:
        for part in _slices(weight_VD):
            out_ND.addmm_(grad_NV[:, part], weight_VD[part].to(out_ND.dtype), beta=int(part.start > 0))


def add_weight_grad(grad_VD: Tensor, grad_NV: Tensor, hidden_ND: Tensor, *, is_first: bool) -> None:
    """sum += grad^T hidden. The first product need not read the zeros it is added to."""
    if grad_NV.dtype == grad_VD.dtype:
        grad_VD.addmm_(grad_NV.t(), hidden_ND.to(grad_VD.dtype), beta=0 if is_first else 1)
    else:
        _wide_addmm(grad_VD, grad_NV.t(), hidden_ND)


def _wide_mm(out: Tensor, a: Tensor, b: Tensor) -> None:
    torch.mm(a, b, out_dtype=out.dtype, out=out)


def _wide_addmm(out: Tensor, a: Tensor, b: Tensor) -> None:
    torch.addmm(out, a, b, out_dtype=out.dtype, out=out)


def _slices(weight_VD: Tensor) -> list[slice]:
    vocab_size, width = weight_VD.shape
    rows = max(MIN_SLICE_ROWS, SLICE_BYTES // (4 * width))
    return [slice(start, min(start + rows, vocab_size)) for start in range(0, vocab_size, rows)]
