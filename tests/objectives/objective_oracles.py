"""What the tests of this folder compare with: definitions in Python floats, and one table of tolerances.

Nothing here shares code with the package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

Row = Sequence[float]
INF = math.inf


@dataclass(frozen=True)
class Tolerance:
    rtol: float
    atol: float


TOLERANCES = {
    torch.float64: Tolerance(1e-9, 1e-12),
    torch.float32: Tolerance(2e-5, 2e-6),
    # One bfloat16 rounding is 4e-3 relative; a gradient meets up to three of them, and its entries cancel.
    torch.bfloat16: Tolerance(2e-2, 2e-2),
}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=tolerance.rtol, atol=tolerance.atol, check_dtype=False
    )


def leaf_grad(tensor: torch.Tensor) -> torch.Tensor:
    assert tensor.grad is not None, "no gradient arrived"
    return tensor.grad


def softmax(logits: Row) -> list[float]:
    top = max(logits)
    mass = [math.exp(x - top) for x in logits]
    return [x / math.fsum(mass) for x in mass]


def relative_entropy(a: Row, b: Row) -> float:
    """KL(a || b) of two probability rows, with 0 log 0 = 0."""
    terms = [x * (math.log(x) - math.log(y)) if y > 0 else INF for x, y in zip(a, b, strict=True) if x > 0]
    return math.fsum(terms)


def forward(student: Row, expert: Row) -> float:
    return relative_entropy(expert, student)


def reverse(student: Row, expert: Row) -> float:
    return relative_entropy(student, expert)


def jsd(student: Row, expert: Row, beta: float) -> float:
    middle = [beta * q + (1 - beta) * p for p, q in zip(student, expert, strict=True)]
    return beta * relative_entropy(expert, middle) + (1 - beta) * relative_entropy(student, middle)


def forward_grad(student: Row, expert: Row) -> list[float]:
    """By student logit, in closed form."""
    return [p - q for p, q in zip(student, expert, strict=True)]


def reverse_grad(student: Row, expert: Row) -> list[float]:
    kl = reverse(student, expert)
    return [p * (math.log(p / q) - kl) if p > 0 else 0.0 for p, q in zip(student, expert, strict=True)]


def jsd_grad(student: Row, expert: Row, beta: float) -> list[float]:
    middle = [beta * q + (1 - beta) * p for p, q in zip(student, expert, strict=True)]
    kl = relative_entropy(student, middle)
    return [
        (1 - beta) * p * (math.log(p / m) - kl) if p > 0 else 0.0
        for p, m in zip(student, middle, strict=True)
    ]
