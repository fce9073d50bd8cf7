"""Who writes what, when expert and student share a round: a plan drawn from each trajectory's own stream."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from understudy.randomness import uniforms


def expert_writes_sequence(names: Sequence[tuple[object, ...]], expert_share: float) -> np.ndarray:
    """[B] bool: the whole response is the expert's, with probability `expert_share`."""
    if expert_share == 0:
        return np.zeros(len(names), dtype=bool)
    return uniforms([(*name, "author") for name in names], 1)[:, 0] < expert_share


def expert_writes_tokens(names: Sequence[tuple[object, ...]], expert_share: float, count: int) -> np.ndarray:
    """[B, count] bool: each token is the expert's, independently, with probability `expert_share`."""
    return uniforms([(*name, "author") for name in names], count) < expert_share
