"""From hidden states and heads to a loss without holding [N, V]; gradients are formed in the forward pass.

N gated rows of a batch, n rows of one tile, V vocabulary, D width of the hidden state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from understudy.objectives.laws import Head, Law
from understudy.objectives.reduce import weighted_sum
from understudy.objectives.rows import RowLoss, Rows
from understudy.objectives.shapes import require_rows, require_tokens, wide_log_softmax

TILE_BYTES_CPU = 2 * 2**20
"""Size of one [n, V] float32 tile on a CPU: it and its copies fit the cache (flat from 1 to 8 MiB)."""

TILE_BYTES_ACCELERATOR = 256 * 2**20
"""The same on any other device, where a tile must hide the launch of its kernels (not measured)."""

MIN_TILE_ROWS = 128
"""Each tile reads the whole head three times, so a tile of fewer rows costs more than it saves."""


def loss_from_hidden(
    row_loss: RowLoss,
    student_hidden_ND: Tensor,
    student_head: Head,
    *,
    weight_N: Tensor,
    law: Law | None,
    token_N: Tensor | None = None,
    uniform_N: Tensor | None = None,
    rows_per_tile: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The weighted sum of a row loss over N rows, and its value at each row.

        loss = sum_i weight[i] * row_loss(log_softmax(head(hidden[i])), expert law, token, uniform)

    Walks tiles of rows. A tile's logits, its values and the gradient of its part of the sum are made and
    reduced to gradients of hidden states and head at once: three matrix products a tile (logits, d hidden, d
    weight), none in the backward pass, which only multiplies by the incoming scalar. Memory: inputs,
    gradients and a few [n, V] tiles (in half precision also one product of the shape of the weight). A
    gradient that nobody needs - a frozen head, torch.no_grad - costs nothing.

    Logits are made in the dtype of the hidden states (of autocast where that is on), as the model itself
    would make them; everything after them in float32, or float64 for float64. The gradient of the head is
    summed over tiles in float32. The expert's law is asked for outside of autocast. Rows of weight 0 are
    selected out of the gradient even where their value is inf or NaN.

    The backward pass can run once: the gradients are handed over, not copied.

    Args:
        row_loss: what one row costs; a pure function that treats rows independently.
        student_hidden_ND: input of the head at the gated rows, with gradient.
        student_head: its weight and bias get gradients if they require them (tied embeddings: the shared
            parameter).
        weight_N: [N], finite, a constant. 0 leaves a row out. In float16 keep it near 1 and divide the loss
            afterwards, or small gradients underflow.
        law: the expert's law at the same N rows, or None for a loss of tokens alone.
        token_N: [N] ids in 0..V - 1, or None.
        uniform_N: [N] uniform numbers in [0, 1), or None.
        rows_per_tile: rows of one tile; None chooses by V and device. It moves results by rounding only.
    Returns:
        loss: scalar with a graph, 0 where there is nothing to train on; at least float32.
        value_N: [N] in nats, without a graph, unweighted: also at rows of weight 0.
    Raises:
        ValueError: lengths, vocabularies or ids do not fit each other.
    """
    num_rows, vocab_size = student_hidden_ND.shape[0], student_head.weight_VD.shape[0]
    _require_fit(num_rows, vocab_size, weight_N, law, token_N, uniform_N)
    if rows_per_tile is None:
        rows_per_tile = default_rows_per_tile(vocab_size, student_hidden_ND.device)
    if rows_per_tile < 1:
        raise ValueError(f"rows_per_tile must be at least 1, got {rows_per_tile}.")
    walk = _Walk(
        row_loss=row_loss,
        head=student_head,
        weight_N=weight_N.detach(),
        law=law,
        token_N=token_N,
        uniform_N=uniform_N,
        rows_per_tile=rows_per_tile,
        logits_dtype=_logits_dtype(student_hidden_ND),
        is_grad_enabled=torch.is_grad_enabled(),
    )
    loss, value_N = _LossFromHidden.apply(  # pyright: ignore[reportGeneralTypeIssues]
        student_hidden_ND, student_head.weight_VD, student_head.bias_V, walk
    )
    return loss, value_N


def loss_from_logits(
    row_loss: RowLoss,
    student_logits_NV: Tensor,
    *,
    weight_N: Tensor,
    law: Law | None,
    token_N: Tensor | None = None,
    uniform_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`loss_from_hidden` for logits that are held whole: the same two results by plain autograd.

    For small vocabularies, and the definition against which the tiles are tested.

    Args:
        student_logits_NV: any float dtype, with gradient; the others as in `loss_from_hidden`.
    Returns:
        loss: scalar with a graph; at least float32. value_N: [N] in nats, without a graph.
    Raises:
        ValueError: lengths, vocabularies or ids do not fit each other.
    """
    num_rows, vocab_size = student_logits_NV.shape
    _require_fit(num_rows, vocab_size, weight_N, law, token_N, uniform_N)
    # The same numbers everywhere, a gradient only where it counts: 0 * inf inside a row of weight 0 would be
    # NaN.
    trained_NV = student_logits_NV.where(weight_N[:, None] != 0, student_logits_NV.detach())
    rows = _rows(law, token_N, uniform_N, 0, num_rows)
    value_N = row_loss(wide_log_softmax(trained_NV), rows)
    require_rows(num_rows, row_loss=value_N)
    return weighted_sum(value_N, weight_N), value_N.detach()


def default_rows_per_tile(vocab_size: int, device: torch.device) -> int:
    """As many rows as make one float32 tile of the size that suits the device, but not too few."""
    tile_bytes = TILE_BYTES_CPU if device.type == "cpu" else TILE_BYTES_ACCELERATOR
    return max(MIN_TILE_ROWS, tile_bytes // (4 * vocab_size))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Walk:
    """Everything constant that the walk over tiles needs."""

    row_loss: RowLoss
    head: Head
    weight_N: Tensor
    law: Law | None
    token_N: Tensor | None
    uniform_N: Tensor | None
    rows_per_tile: int
    logits_dtype: torch.dtype
    is_grad_enabled: bool


class _LossFromHidden(torch.autograd.Function):
    """Forward walks the tiles and keeps the gradients; backward scales them and hands them over."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, walk: _Walk
    ) -> tuple[Tensor, Tensor]:
        needed = [walk.is_grad_enabled and is_needed for is_needed in ctx.needs_input_grad[:3]]
        # The gradient of a hidden state is written once; those of the head are summed over tiles.
        grads = (
            torch.zeros_like(hidden_ND) if needed[0] else None,
            _wide_zeros(weight_VD) if needed[1] else None,
            _wide_zeros(bias_V) if needed[2] and bias_V is not None else None,
        )
        # One cast of the head here, by hand: autocast would keep a copy without a graph for later layers to
        # find.
        with torch.autocast(hidden_ND.device.type, enabled=False):
            value_N = _walk_tiles(hidden_ND, _cast_head(walk.head, walk.logits_dtype), walk, grads)
            loss = weighted_sum(value_N, walk.weight_N)
        ctx.grads = grads
        ctx.dtypes = (hidden_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        ctx.mark_non_differentiable(value_N)
        return loss, value_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore
        grad_loss, _ = grad_outputs
        if ctx.grads is None:
            raise RuntimeError("the gradients of this loss were already handed over: build the loss again.")
        grads, ctx.grads = ctx.grads, None
        scaled = (
            None if grad is None else grad.mul_(grad_loss).to(dtype)
            for grad, dtype in zip(grads, ctx.dtypes, strict=True)
        )
        return (*scaled, None)


def _walk_tiles(
    hidden_ND: Tensor, head: Head, walk: _Walk, grads: tuple[Tensor | None, Tensor | None, Tensor | None]
) -> Tensor:
    """The value of every row; adds what each tile contributes to the gradients in place."""
    grad_hidden_ND, grad_weight_VD, grad_bias_V = grads
    wants_grad = any(grad is not None for grad in grads)
    num_rows = hidden_ND.shape[0]
    value_N = hidden_ND.new_empty(num_rows, dtype=torch.promote_types(walk.logits_dtype, torch.float32))
    for start in range(0, num_rows, walk.rows_per_tile):
        stop = min(start + walk.rows_per_tile, num_rows)
        hidden_nD = hidden_ND[start:stop].to(walk.logits_dtype)
        weight_n = walk.weight_N[start:stop]
        rows = _rows(walk.law, walk.token_N, walk.uniform_N, start, stop)
        product_nV = linear(hidden_nD, head.weight_VD, head.bias_V)
        if not wants_grad:
            value_N[start:stop] = _values(walk.row_loss, head, product_nV, rows)
            continue
        value_N[start:stop], grad_nV = _values_and_grad(walk.row_loss, head, product_nV, rows, weight_n)
        if grad_hidden_ND is not None:
            grad_hidden_ND[start:stop] = grad_nV @ head.weight_VD
        if grad_weight_VD is not None:
            # Selected, not multiplied by 0: a hidden state of weight 0 may be inf or NaN.
            _add_product(grad_weight_VD, grad_nV, hidden_nD.masked_fill(weight_n[:, None] == 0, 0))
        if grad_bias_V is not None:
            grad_bias_V += grad_nV.sum(dim=0, dtype=grad_bias_V.dtype)
    return value_N


def _values(row_loss: RowLoss, head: Head, product_nV: Tensor, rows: Rows) -> Tensor:
    value_n = row_loss(wide_log_softmax(head.finish(product_nV)), rows)
    require_rows(product_nV.shape[0], row_loss=value_n)
    return value_n


def _values_and_grad(
    row_loss: RowLoss, head: Head, product_nV: Tensor, rows: Rows, weight_n: Tensor
) -> tuple[Tensor, Tensor]:
    """The values of one tile and the gradient of their weighted sum by the product, before scale and cap."""
    with torch.enable_grad():
        product_nV.requires_grad_()
        value_n = _values(row_loss, head, product_nV, rows)
        total = weighted_sum(value_n, weight_n)
    if not total.requires_grad:
        return value_n, torch.zeros_like(product_nV)
    (grad_nV,) = torch.autograd.grad(total, product_nV)
    return value_n.detach(), grad_nV.masked_fill_(weight_n[:, None] == 0, 0)


def _add_product(grad_VD: Tensor, grad_nV: Tensor, hidden_nD: Tensor) -> None:
    """grad_VD += grad_nV^T hidden_nD, in one operation where the dtypes allow it."""
    if grad_VD.dtype == grad_nV.dtype:
        grad_VD.addmm_(grad_nV.t(), hidden_nD)
    else:
        grad_VD += grad_nV.t() @ hidden_nD


def _rows(law: Law | None, token_N: Tensor | None, uniform_N: Tensor | None, start: int, stop: int) -> Rows:
    return Rows(
        expert_logp_nV=None if law is None else law.logp(start, stop),
        token_n=None if token_N is None else token_N[start:stop],
        uniform_n=None if uniform_N is None else uniform_N[start:stop],
    )


def _cast_head(head: Head, dtype: torch.dtype) -> Head:
    bias_V = None if head.bias_V is None else head.bias_V.detach().to(dtype)
    return replace(head, weight_VD=head.weight_VD.detach().to(dtype), bias_V=bias_V)


def _logits_dtype(hidden_ND: Tensor) -> torch.dtype:
    """The dtype in which the model itself would make these logits here and now."""
    device_type = hidden_ND.device.type
    if torch.is_autocast_enabled(device_type) and hidden_ND.dtype != torch.float64:
        return torch.get_autocast_dtype(device_type)
    return hidden_ND.dtype


def _wide_zeros(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))


def _require_fit(
    num_rows: int,
    vocab_size: int,
    weight_N: Tensor,
    law: Law | None,
    token_N: Tensor | None,
    uniform_N: Tensor | None,
) -> None:
    require_rows(num_rows, weight_N=weight_N, token_N=token_N, uniform_N=uniform_N)
    require_tokens(vocab_size, token_N=token_N)
    if law is not None and (law.num_rows, law.vocab_size) != (num_rows, vocab_size):
        raise ValueError(
            f"the expert's law has {law.num_rows} rows over {law.vocab_size} tokens, the student {num_rows} "
            f"rows over {vocab_size}: both need the same positions and the same (padded) vocabulary."
        )
