"""The only place that sums or averages over positions.

N rows: positions of a batch, gated or not.
"""

from __future__ import annotations

from torch import Tensor

from understudy.objectives.shapes import require_same_shape


def weighted_sum(value_N: Tensor, weight_N: Tensor) -> Tensor:
    """The sum of weight * value over the rows whose weight is not 0.

        sum over i with w[i] != 0 of  w[i] * value[i]

    Rows of weight 0 are left out by selection: inf or NaN there enters neither the sum nor the gradient with
    respect to value_N. Nothing to sum gives 0 with a graph.

    Args:
        value_N: [N], at least float32 (what row losses return).
        weight_N: [N], finite; a constant.
    Returns:
        scalar in the dtype of value_N.
    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape(value_N=value_N, weight_N=weight_N)
    weight_N = weight_N.detach().to(value_N.dtype)
    return (value_N.where(weight_N != 0, 0) * weight_N).sum()


def token_mean(value_N: Tensor, weight_N: Tensor, denominator: float) -> Tensor:
    """`weighted_sum` over a denominator that belongs to the whole optimiser step.

    The denominator is counted once, over all ranks and micro-batches; dividing each part by it and adding the
    parts gives the same loss and gradient however the batch is split.

    Args:
        value_N: [N], at least float32.
        weight_N: [N], finite; a constant.
        denominator: trained tokens of the optimiser step, > 0; 0 is right only where every weight is 0.
    Returns:
        scalar; 0 with a graph where there is nothing to train on.
    Raises:
        ValueError: the shapes differ, the denominator is negative or NaN, or it is 0 while a weight is not.
    """
    total = weighted_sum(value_N, weight_N)
    if denominator > 0:
        return total / denominator
    if denominator == 0 and not bool((weight_N != 0).any()):
        return total
    raise ValueError(
        f"denominator must be > 0 where something is trained, got {denominator}: "
        "count the trained tokens of the whole optimiser step."
    )
