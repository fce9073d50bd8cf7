"""How much a gated position counts, and what the sum over a step is divided by.

B sequences, T positions, N gated positions in row-major order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor


def uniform_weight(gate_N: Tensor) -> Tensor:
    """1 where the bool gate is open and 0 elsewhere, float32, in the shape of the gate."""
    return gate_N.to(torch.float32)


class Weights(NamedTuple):
    """Weights of the gated positions, and this batch's part of the denominator, which is summed over the whole step."""

    weight_N: Tensor
    amount: int


Weigh = Callable[[Tensor], Weights]
"""gate_BT -> the weights of its open positions. A pure function of the gate: splitting a batch by rows splits it."""

LossNorm = Literal["token", "sequence", "constant"]


def weigh_tokens(gate_BT: Tensor) -> Weights:
    """Every token of the step counts alike: weight 1, denominator the number of gated tokens.

    Source: DAPO, arXiv:2503.14476, eq. 8.
    """
    weight_N = uniform_weight(gate_BT[gate_BT])
    return Weights(weight_N, len(weight_N))


def weigh_sequences(gate_BT: Tensor, *, max_tokens: int) -> Weights:
    """Every sequence counts alike, and so does every token within one.

        sum over t of  w[b, t] value[b, t] / denominator = 1/sequences * 1/n_b sum over t of value[b, t]
        w[b, t] = max_tokens / n_b,   denominator = max_tokens * sequences,   n_b gated tokens of b

    The common factor keeps weights at 1 and above, where float16 does not lose small gradients. A sequence without a
    gated token is no sequence. The longer a sequence, the less each of its tokens counts.

    Args:
        gate_BT: bool.
        max_tokens: > 0; cancels.
    Source: GRPO as published, arXiv:2402.03300, eq. 3.
    """
    length_B = gate_BT.sum(dim=1)
    weight_BT = (max_tokens / length_B.clamp_min(1))[:, None].expand(gate_BT.shape)
    return Weights(weight_BT[gate_BT].to(torch.float32), max_tokens * int((length_B > 0).sum()))


def weigh_constant(gate_BT: Tensor, *, max_tokens: int) -> Weights:
    """Every token counts alike, whatever the lengths: weight 1, denominator max_tokens * sequences with a gated token.

    Source: Dr. GRPO, arXiv:2503.20783, section 3.2.
    """
    return Weights(uniform_weight(gate_BT[gate_BT]), max_tokens * int(gate_BT.any(dim=1).sum()))


def weighing(norm: LossNorm, *, max_tokens: int) -> Weigh:
    """The rule of that name; `max_tokens`: the longest response that the step can hold."""

    def weigh(gate_BT: Tensor) -> Weights:
        if norm == "token":
            return weigh_tokens(gate_BT)
        rule = weigh_sequences if norm == "sequence" else weigh_constant
        return rule(gate_BT, max_tokens=max_tokens)

    return weigh
