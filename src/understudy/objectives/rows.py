"""What a loss of one position may look at, and the type of such a loss.

n rows of one tile, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Everything besides the student's law that the loss of n rows may depend on; all of it constant.

    `expert_logp_nV`: the expert's law. `token_n`: a given token (of the data, of the rollout, or drawn from
    the expert). `uniform_n`: a number in [0, 1) a row, for losses that draw a token from the student itself.
    """

    expert_logp_nV: Tensor | None = None
    token_n: Tensor | None = None
    uniform_n: Tensor | None = None

    def required(self, name: str) -> Tensor:
        """The tensor of that name. ValueError if it was not given."""
        tensor = getattr(self, name)
        if tensor is None:
            raise ValueError(
                f"this loss needs rows.{name}, got None: give it to the call that walks the rows."
            )
        return tensor


RowLoss = Callable[[Tensor, Rows], Tensor]
"""(student_logp_nV with gradient, rows) -> value_n in nats: one number a row, ungated and unreduced."""
