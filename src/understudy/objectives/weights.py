"""How much a gated position counts.

N gated positions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def uniform_weight(gate_N: Tensor) -> Tensor:
    """1 where the bool gate is open and 0 elsewhere, float32, in the shape of the gate."""
    return gate_N.to(torch.float32)
