"""From hidden states and heads to a loss without holding [N, V]; gradients are formed in the forward pass.

N gated rows of a batch, n rows of one tile, V vocabulary, D width of the hidden state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from understudy.objectives.laws import Head, Law
from understudy.objectives.reduce import weighted_sum
from understudy.objectives.rows import Given, RowLoss, loss_column, require_values
from understudy.objectives.shapes import require_lists, require_rows, require_tokens, wide_log_softmax
from understudy.objectives.tiles import Walk, default_rows_per_tile, rows_between, walk_tiles, wide_zeros


def loss_from_hidden(
    row_loss: RowLoss,
    student_hidden_ND: Tensor,
    student_head: Head,
    *,
    weight_N: Tensor,
    law: Law | None,
    token_N: Tensor | None = None,
    uniform_N: Tensor | None = None,
    given_N: Given | None = None,
    rows_per_tile: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The weighted sum of a row loss over N rows, and its value at each row.

        loss = sum_i weight[i] * row_loss(log_softmax(head(hidden[i])), expert law, token, uniform)

    Walks tiles of rows. A tile's logits, its values and the gradient of its part of the sum are made and
    reduced to gradients of hidden states and head at once: three matrix products a tile (logits, d hidden, d
    weight), none in the backward pass, which only multiplies by the incoming scalar. Losses with a closed
    form (`closed_forms.closed_form`) go from logits to gradient in a few passes; any other one is
    differentiated by autograd, tile by tile. Memory: inputs, gradients (float32), one [n, V] tile of the
    student and one of the expert, and for other losses a few tiles more. A gradient that nobody needs - a
    frozen head, torch.no_grad - costs nothing.

    Precision: hidden states and head enter the products in the dtype of the hidden states (of autocast where
    that is on), each model in its own. Everything made of them is float32, or float64 for float64: logits -
    the model itself would round them to its dtype -, values, gradients and their sums over tiles, which are
    rounded once, to the dtype of what they belong to. One exception: where the device multiplies
    half-precision operands itself (CUDA), the gradient by logit is rounded to that dtype for its two
    products. The expert's law is asked for outside of autocast. Rows of weight 0 are selected out of the
    gradient even where their value is inf or NaN.

    The backward pass can run once: the gradients are handed over, not copied.

    Args:
        row_loss: what one row costs; a pure function that treats rows independently.
        student_hidden_ND: input of the head at the gated rows, with gradient.
        student_head: its weight and bias get gradients if they require them (tied embeddings: the shared
            parameter). A sharded one is gathered, see `Head.gathered`.
        weight_N: [N], finite, a constant. 0 leaves a row out. In float16 keep it near 1 and divide the loss
            afterwards, or small gradients underflow.
        law: the expert's law at the same N rows, or None for a loss of tokens alone.
        token_N: [N] ids in 0..V - 1, or None.
        uniform_N: [N] uniform numbers in [0, 1), or None.
        given_N: more fields of `Rows`, each [N], or [N, K] for those of a target; constants.
        rows_per_tile: rows of one tile; None chooses by V and device. It moves results by rounding only.
    Returns:
        loss: scalar with a graph, 0 where there is nothing to train on; at least float32.
        value_N: [N] in nats, without a graph, unweighted: also at rows of weight 0. [N, 1 + K] for a
            `rows.Watched` loss: the value and its reports.
    Raises:
        ValueError: lengths, vocabularies or ids do not fit each other.
    """
    student_head = student_head.gathered()
    num_rows, vocab_size = student_hidden_ND.shape[0], student_head.weight_VD.shape[0]
    given_N = _require_given(num_rows, vocab_size, given_N)
    _require_fit(num_rows, vocab_size, weight_N, law, token_N, uniform_N)
    if rows_per_tile is None:
        rows_per_tile = default_rows_per_tile(vocab_size, student_hidden_ND.device)
    if rows_per_tile < 1:
        raise ValueError(f"rows_per_tile must be at least 1, got {rows_per_tile}.")
    walk = Walk(
        row_loss=row_loss,
        head=student_head,
        weight_N=weight_N.detach(),
        law=law,
        token_N=token_N,
        uniform_N=uniform_N,
        given_N=given_N,
        rows_per_tile=rows_per_tile,
        operand_dtype=_operand_dtype(student_hidden_ND),
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
    given_N: Given | None = None,
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
    given_N = _require_given(num_rows, vocab_size, given_N)
    _require_fit(num_rows, vocab_size, weight_N, law, token_N, uniform_N)
    # The same numbers everywhere, a gradient only where it counts: 0 * inf inside a row of weight 0 would be
    # NaN.
    trained_NV = student_logits_NV.where(weight_N[:, None] != 0, student_logits_NV.detach())
    rows = rows_between(law, token_N, uniform_N, given_N, 0, num_rows)
    value_N = row_loss(wide_log_softmax(trained_NV), rows)
    require_values(row_loss, value_N, num_rows)
    return weighted_sum(loss_column(value_N), weight_N), value_N.detach()


class _LossFromHidden(torch.autograd.Function):
    """Forward walks the tiles and keeps the gradients; backward scales them and hands them over."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, walk: Walk
    ) -> tuple[Tensor, Tensor]:
        needed = [walk.is_grad_enabled and is_needed for is_needed in ctx.needs_input_grad[:3]]
        # Wide until `backward` has scaled them, so that they are rounded once.
        grads = (
            wide_zeros(hidden_ND) if needed[0] else None,
            wide_zeros(weight_VD) if needed[1] else None,
            wide_zeros(bias_V) if needed[2] and bias_V is not None else None,
        )
        # One cast of the head here, by hand: autocast would keep a copy without a graph for later layers to
        # find.
        with torch.autocast(hidden_ND.device.type, enabled=False):
            value_N = walk_tiles(hidden_ND, walk, grads)
            loss = weighted_sum(loss_column(value_N), walk.weight_N)
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


def _operand_dtype(hidden_ND: Tensor) -> torch.dtype:
    """The dtype in which the model itself would multiply hidden states and head here and now."""
    device_type = hidden_ND.device.type
    if torch.is_autocast_enabled(device_type) and hidden_ND.dtype != torch.float64:
        return torch.get_autocast_dtype(device_type)
    return hidden_ND.dtype


def _require_given(num_rows: int, vocab_size: int, given_N: Given | None) -> Given:
    given_N = {} if given_N is None else {name: value_N.detach() for name, value_N in given_N.items()}
    lists = {name for name in given_N if name.endswith("_nK")}
    require_rows(num_rows, **{name: value_N for name, value_N in given_N.items() if name not in lists})
    require_lists(num_rows, **{name: given_N[name] for name in sorted(lists)})
    require_tokens(vocab_size, target_token_nK=given_N.get("target_token_nK"))
    return given_N


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
