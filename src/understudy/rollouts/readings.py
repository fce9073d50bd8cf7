"""What the student computed while it checked drafts, kept for the loss: the same forward pass need not run twice.

A hidden state depends on the weights and on the tokens before it alone. So while the weights are those that wrote a
response, the pass that read prompt and draft has made the hidden states of every trajectory whose tokens, all but the
last, it read: those whose draft was right up to where the response ends.

B rows read, T tokens of the longest, D width.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from understudy.records import Trajectory

_PAYS_FROM = 2 / 3
"""Least share of a reading that must be of use. What is of use saves one pass forward, but the way back, twice that,
leads through all of it."""


@dataclass(frozen=True, eq=False)
class Reading:
    """One pass over prompts and drafts: the tokens of each row, and their hidden states with the graph behind them."""

    row_ids: Sequence[tuple[int, ...]]
    hidden_BTD: Tensor

    def places(self, trajectories: Sequence[Trajectory]) -> list[int | None]:
        """The row that begins with all tokens of each trajectory but the last; None where there is none."""
        # In the order of a dictionary the rows that begin alike are neighbours, and the beginning itself comes first.
        ordered = sorted((ids, row) for row, ids in enumerate(self.row_ids))
        found: list[int | None] = []
        for trajectory in trajectories:
            needed = (trajectory.prompt.token_ids + trajectory.response_ids)[:-1]
            place = bisect_left(ordered, (needed,))
            is_found = place < len(ordered) and ordered[place][0][: len(needed)] == needed
            found.append(ordered[place][1] if is_found else None)
        return found

    def pays(self, trajectories: Sequence[Trajectory]) -> bool:
        """Whether these trajectories, all found in it, are enough of it that its graph costs less than a pass anew."""
        used = sum(len(t.prompt.token_ids) + len(t.response_ids) for t in trajectories)
        return used > _PAYS_FROM * self.hidden_BTD.shape[0] * self.hidden_BTD.shape[1]
