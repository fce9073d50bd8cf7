"""A transformers model as a source of next-token laws, with a key-value cache.

Not `model.generate`: that draws from one stream for the whole batch, so a trajectory would depend on its neighbours,
and it applies whatever a generation config says (top-k, top-p, temperature) to what must be the model's own law.

B sequences, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from understudy.errors import DataError
from understudy.models import backbone, context_length, head_of, inner_model
from understudy.records import Prompt


class HFDecoder:
    """One batch of growing prefixes. The model must be in evaluation mode (see `evaluating`).

    `padding`: the side on which shorter prompts are filled. Both give the same laws, but models whose attention has a
    window need left: the window counts places of the cache, and right leaves a gap there.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        vocab_size: int,
        padding: Literal["left", "right"] = "left",
        ignores_autocast: bool = False,
    ) -> None:
        self.ignores_autocast = ignores_autocast
        self.backbone = backbone(model)
        self.head = head_of(model, vocab_size)
        self.cache = DynamicCache(config=inner_model(model).config)
        self.padding = padding
        self.device = self.head.weight_VD.device
        self.mask_BT: Tensor | None = None
        self.length_B = torch.empty(0)
        self.context = context_length(model)

    @torch.no_grad()
    def start(self, prompts: Sequence[Prompt]) -> Tensor:
        rows = [p.token_ids for p in prompts]
        longest = max(map(len, rows))
        if self.context is not None and longest >= self.context:
            prompt = prompts[max(range(len(rows)), key=lambda i: len(rows[i]))]
            raise DataError(
                f"prompt {prompt.id} has {longest} tokens and the model's context holds {self.context}. "
                "Drop it, or lower task.max_prompt_tokens."
            )
        self.length_B = torch.tensor([len(r) for r in rows], device=self.device)
        if all(len(r) == longest for r in rows):
            token_BT = torch.tensor(rows, device=self.device)
            return self._logp(self._forward(token_BT, None)[:, -1])
        token_BT = torch.zeros(len(rows), longest, dtype=torch.long, device=self.device)
        self.mask_BT = torch.zeros_like(token_BT)
        for b, row in enumerate(rows):
            place = slice(longest - len(row), None) if self.padding == "left" else slice(0, len(row))
            token_BT[b, place] = torch.tensor(row, device=self.device)
            self.mask_BT[b, place] = 1
        hidden_BTD = self._forward(token_BT, (self.mask_BT.cumsum(-1) - 1).clamp_min(0))
        last_B = self.length_B - 1 if self.padding == "right" else torch.full_like(self.length_B, longest - 1)
        return self._logp(hidden_BTD[torch.arange(len(rows), device=self.device), last_B])

    @torch.no_grad()
    def step(self, token_B: Tensor) -> Tensor:
        position_B1 = None
        if self.context is not None and self.cache.get_seq_length() >= self.context:
            raise DataError(
                f"a response does not fit the model's context of {self.context} positions. Lower max_new_tokens, or drop "
                "long prompts (task.max_prompt_tokens)."
            )
        if self.mask_BT is not None:
            self.mask_BT = torch.cat([self.mask_BT, self.mask_BT.new_ones(len(token_B), 1)], dim=1)
            position_B1 = self.length_B[:, None]
        self.length_B = self.length_B + 1
        return self._logp(self._forward(token_B[:, None], position_B1)[:, -1])

    def keep(self, row_K: Tensor) -> None:
        self.cache.batch_select_indices(row_K)
        self.length_B = self.length_B[row_K]
        if self.mask_BT is not None:
            self.mask_BT = self.mask_BT[row_K]

    def _forward(self, token_BT: Tensor, position_BT: Tensor | None) -> Tensor:
        with self._precision():
            return self.backbone(
                input_ids=token_BT,
                attention_mask=self.mask_BT,
                position_ids=position_BT,
                past_key_values=self.cache,
                use_cache=True,
            ).last_hidden_state

    def _logp(self, hidden_BD: Tensor) -> Tensor:
        with self._precision():
            return self.head.logits(hidden_BD).float().log_softmax(dim=-1)

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, enabled=False) if self.ignores_autocast else nullcontext()


class evaluating:  # noqa: N801 - a context manager reads as a phrase
    """Dropout off inside, the former mode back after."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.was_training = model.training

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *exc: object) -> None:
        self.model.train(self.was_training)
