"""Which positions count. A gate is a bool selection of target tokens: by position, never by token id.

B sequences, T positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from understudy.objectives.shapes import require_same_shape


def response_gate(is_response_BT: Tensor, is_student_BT: Tensor) -> Tensor:
    """Every token an agent emitted, whoever it was: expert, data set or student."""
    _require_masks(is_response_BT, is_student_BT)
    return is_response_BT


def student_gate(is_response_BT: Tensor, is_student_BT: Tensor) -> Tensor:
    """Only the tokens of the response that the student itself emitted."""
    _require_masks(is_response_BT, is_student_BT)
    return is_response_BT & is_student_BT


def require_student_only(gate_BT: Tensor, is_student_BT: Tensor) -> None:
    """Raise ValueError if a gated token was not emitted by the student: no policy gradient stands on it."""
    _require_masks(gate_BT, is_student_BT)
    outside_BT = gate_BT & ~is_student_BT
    if bool(outside_BT.any()):
        row, position = outside_BT.nonzero()[0].tolist()
        raise ValueError(
            f"a policy gradient needs tokens the student emitted, got {int(outside_BT.sum())} gated "
            f"tokens of another origin (first: sequence {row}, position {position}): "
            "gate with student_gate or use an exact divergence."
        )


def _require_masks(mask_BT: Tensor, is_student_BT: Tensor) -> None:
    require_same_shape(mask_BT=mask_BT, is_student_BT=is_student_BT)
    if mask_BT.dtype != torch.bool or is_student_BT.dtype != torch.bool:
        raise ValueError(
            f"masks must be bool, got {mask_BT.dtype} and {is_student_BT.dtype}: compare, do not cast."
        )
