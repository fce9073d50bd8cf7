"""Shape checks and the one place where logits become log-probabilities.

N rows, K tokens listed at each, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def require_same_shape(**named: Tensor) -> None:
    """Raise ValueError naming every argument and its shape unless all shapes are equal."""
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    if len(set(shapes.values())) > 1:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"expected equal shapes, got {found}: same positions, same tokenizer, same vocabulary."
        )


def require_rows(num_rows: int, **named: Tensor | None) -> None:
    """Raise ValueError unless every given tensor has shape (num_rows,); None is passed over."""
    for name, tensor in named.items():
        if tensor is not None and tuple(tensor.shape) != (num_rows,):
            raise ValueError(
                f"{name} must hold one entry a row, shape ({num_rows},), got {tuple(tensor.shape)}: "
                "select it with the same gate as the hidden states."
            )


def require_lists(num_rows: int, **named: Tensor) -> None:
    """Raise ValueError unless all given tensors have one shape (num_rows, K)."""
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    if len(set(shapes.values())) > 1 or any(len(s) != 2 or s[0] != num_rows for s in shapes.values()):
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"expected K entries for each of {num_rows} rows, got {found}: "
            "select them with the same gate as the hidden states."
        )


def require_tokens(vocab_size: int, **named: Tensor | None) -> None:
    """Raise ValueError unless every given token id is in 0..vocab_size - 1; there is no ignored id."""
    for name, token in named.items():
        if token is None or token.numel() == 0:
            continue
        if token.is_floating_point() or token.dtype == torch.bool:
            raise ValueError(f"{name} must hold integer token ids, got {token.dtype}.")
        low, high = (int(bound) for bound in torch.aminmax(token))
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"{name} must be in 0..{vocab_size - 1}, got ids from {low} to {high}: "
                "leave positions out with a gate, not with a special id."
            )


def wide_log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities over the last axis in float32, or in float64 for float64; -inf stays -inf."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
