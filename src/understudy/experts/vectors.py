"""What it costs to take one window's tokens for another's, by vectors that a model has for them.

B pairs of windows, I positions of the student's, J of the expert's, U texts that differ, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from understudy.experts.expert import Expert
from understudy.experts.local import LocalExpert
from understudy.experts.noisy import NoisyExpert
from understudy.models import hidden_states, inner_model
from understudy.objectives.transport import cosine_cost, token_cost
from understudy.rollouts.windows import Spot, padded

Embedding = Literal["expert", "student", "expert-hidden"]
"""Rows of either model's input embedding, or the expert's last hidden states behind the prefix and either window."""


class Costs(NamedTuple):
    """The costs of B pairs of windows, padded; zeros and False behind the end of each."""

    cost_BIJ: Tensor
    is_student_BI: Tensor
    is_expert_BJ: Tensor
    expert_token_BJ: Tensor


def language_model(expert: Expert) -> nn.Module | None:
    """The model behind an expert's law, under its noise; None: there is none."""
    clean = expert.clean if isinstance(expert, NoisyExpert) else expert
    return clean.model if isinstance(clean, LocalExpert) else None


@torch.no_grad()
def window_costs(
    model: nn.Module,
    spots: Sequence[Spot],
    student: Sequence[tuple[int, ...]],
    expert: Sequence[tuple[int, ...]],
    *,
    by_hidden_states: bool,
    batch_size: int | None = None,
) -> Costs:
    """1 - cosine between every token of a student's window and every one of the expert's at the same spot.

    Args:
        model: whose vectors; in evaluation mode.
        by_hidden_states: the model's last hidden state at each token, after prefix and window up to it; else the token's row of
            its input embedding.
        batch_size: texts that are read side by side; None: all of them.
    """
    table_VD: Tensor = inner_model(model).get_input_embeddings().weight  # pyright: ignore
    student_token_BI, is_student_BI = padded(student, table_VD.device)
    expert_token_BJ, is_expert_BJ = padded(expert, table_VD.device)
    if by_hidden_states:
        cost_BIJ = cosine_cost(*_hidden(model, spots, student, expert, table_VD.device, batch_size))
    else:
        cost_BIJ = token_cost(student_token_BI, expert_token_BJ, table_VD)
    return Costs(cost_BIJ, is_student_BI, is_expert_BJ, expert_token_BJ)


def _hidden(
    model: nn.Module,
    spots: Sequence[Spot],
    student: Sequence[tuple[int, ...]],
    expert: Sequence[tuple[int, ...]],
    device: torch.device,
    batch_size: int | None,
) -> tuple[Tensor, Tensor]:
    """The vectors of both windows, zeros at padding. A text that both wrote is read once: equal windows then have equal vectors
    to the last bit, and cost nothing."""
    sides = [
        [(spot.prefix_ids, window) for spot, window in zip(spots, windows, strict=True)]
        for windows in (student, expert)
    ]
    wanted = {prefix + window: len(prefix) for side in sides for prefix, window in side}
    texts = sorted(wanted, key=len)
    vectors: dict[tuple[int, ...], Tensor] = {}
    for start in range(0, len(texts), batch_size or len(texts)):
        piece = texts[start : start + (batch_size or len(texts))]
        # In the expert's own precision, whatever the student trains in.
        with torch.autocast(device.type, enabled=False):
            hidden_UTD = hidden_states(model, padded(piece, device)[0])
        vectors |= {ids: hidden_TD[: len(ids)] for ids, hidden_TD in zip(piece, hidden_UTD, strict=True)}
    found = [
        torch.nn.utils.rnn.pad_sequence(
            [vectors[prefix + window][len(prefix) :] for prefix, window in side], batch_first=True
        )
        for side in sides
    ]
    return found[0], found[1]
