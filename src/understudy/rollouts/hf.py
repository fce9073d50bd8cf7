"""A transformers model as a source of next-token laws, with a key-value cache.

Not `model.generate`: that draws from one stream for the whole batch, so a trajectory would depend on its neighbours,
and it applies whatever a generation config says (top-k, top-p, temperature) to what must be the model's own law.

B sequences, T positions, V vocabulary, D width, U distinct prompts, K kept rows, N laws, n of them in one tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from understudy.errors import DataError
from understudy.models import backbone, context_length, head_of, inner_model
from understudy.records import Prompt
from understudy.rollouts.cache import GrowingCache
from understudy.rollouts.readings import Reading
from understudy.rollouts.sampler import Choose

_TILE = 1 << 22
"""Log-probabilities made at once while a draft is verified."""
_FIRST_PLACES = 16
"""Places of each draft whose laws are made first; rows still on their draft go on, twice as far each time."""
_MASK_AHEAD = 64
"""Steps for which the mask of padding is made at once."""


class HFDecoder:
    """One batch of growing prefixes. The model must be in evaluation mode (see `evaluating`).

    Prompts are filled on the right for their one forward, where a causal mask hides the filling at no cost, and the
    cache then moves every row to the right, where its next token goes.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        vocab_size: int,
        ignores_autocast: bool = False,
        readings: list[Reading] | None = None,
    ) -> None:
        """`readings`: where to put what `follow` computes, with its graph; None: it is not wanted."""
        self.ignores_autocast = ignores_autocast
        self.readings = readings
        self.backbone = backbone(model)
        self.head = head_of(model, vocab_size)
        self.config = inner_model(model).config.get_text_config()
        self.device = self.head.weight_VD.device
        self.context = context_length(model)
        self.cache = GrowingCache(self.config)
        self._set_lengths([])
        windows = {layer.window for layer in self.cache.own_layers}
        self._window = min((w for w in windows if w is not None), default=None)
        self._adds_mask = (
            len(windows) == 1
            and self.config._attn_implementation in ("sdpa", "eager")
            and getattr(self.config, "attention_chunk_size", None) is None
        )

    @torch.no_grad()
    def start(self, prompts: Sequence[Prompt]) -> Tensor:
        self._check_prompts(prompts)
        place_of: dict[tuple[int, ...], int] = {}
        place_B = [place_of.setdefault(p.token_ids, len(place_of)) for p in prompts]
        distinct = list(place_of)
        lengths = [len(r) for r in distinct]
        hidden_UTD = self._read(distinct)
        last_U = torch.tensor(lengths, device=self.device) - 1
        logp_UV = self._logp(hidden_UTD[torch.arange(len(distinct), device=self.device), last_U])
        self._cut(lengths, hidden_UTD.shape[1])
        if len(distinct) == len(prompts):
            return logp_UV
        place = torch.tensor(place_B, device=self.device)
        self.keep(place)
        return logp_UV[place]

    @torch.no_grad()
    def follow(
        self, prompts: Sequence[Prompt], drafts: Sequence[Sequence[int]], choose: Choose
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Start with one forward over every prompt and its draft, and keep of the draft what decoding would have said.

        Args:
            choose: (logp_nV, row_n, t_n) -> token_n, the token decoding emits as response token t of row, given its
                law after the first t tokens of the draft. Called on a tile of rows at a time, for each row up to
                where it leaves its draft or a little beyond.
        Returns:
            accepted_B, how many leading tokens of the draft were chosen; token_BT and logp_BT [B, longest draft + 1],
            what was chosen and its log-probability, good for t <= accepted_b. The token at accepted_b is the row's
            next: the following `step` takes it. A draft is cut where the model's context ends.
        """
        self._check_prompts(prompts)
        lengths = [len(p.token_ids) for p in prompts]
        room = [
            len(d) if self.context is None else self.context - n for d, n in zip(drafts, lengths, strict=True)
        ]
        drafts = [tuple(d[:n]) for d, n in zip(drafts, room, strict=True)]
        row_ids = [(*p.token_ids, *d) for p, d in zip(prompts, drafts, strict=True)]
        if self.readings is None:
            hidden_BTD = self._read(row_ids)
        else:
            with torch.enable_grad():
                hidden_BTD = self._read(row_ids)
            self.readings.append(Reading(row_ids, hidden_BTD))
            hidden_BTD = hidden_BTD.detach()
        length_B = torch.tensor(lengths, device=self.device)
        accepted_B, token_BT, logp_BT = self._verify(hidden_BTD, length_B, drafts, choose)
        kept = [n + a for n, a in zip(lengths, accepted_B.tolist(), strict=True)]
        self._cut(kept, hidden_BTD.shape[1])
        return accepted_B, token_BT, logp_BT

    @torch.no_grad()
    def step(self, token_B: Tensor) -> Tensor:
        if self.context is not None and self._longest >= self.context:
            raise DataError(
                f"a response does not fit the model's context of {self.context} positions. Lower max_new_tokens, or drop "
                "long prompts (task.max_prompt_tokens)."
            )
        position_B1 = self._length_B[:, None] if self._is_ragged else self._length_B[:1, None]
        hidden_B1D = self._forward(token_B[:, None], self._mask(), position_B1)
        self._length_B = self._length_B + 1
        self._longest += 1
        return self._logp(hidden_B1D[:, 0])

    def keep(self, row_K: Tensor) -> None:
        lengths = self._length_B[row_K].tolist()
        self.cache.choose(row_K, max(lengths, default=0))
        self._set_lengths(lengths)

    def _set_lengths(self, lengths: list[int]) -> None:
        """Tokens of each row in the cache. On the host, too, so that a step need not wait for the device."""
        self._length_B = torch.tensor(lengths, dtype=torch.long, device=self.device)
        self._longest = max(lengths, default=0)
        self._is_ragged = min(lengths, default=0) < self._longest
        self._padding: Tensor | None = None

    def _check_prompts(self, prompts: Sequence[Prompt]) -> None:
        longest = max(prompts, key=lambda p: len(p.token_ids))
        if self.context is not None and len(longest.token_ids) >= self.context:
            raise DataError(
                f"prompt {longest.id} has {len(longest.token_ids)} tokens and the model's context holds {self.context}. "
                "Drop it, or lower task.max_prompt_tokens."
            )

    def _read(self, rows: Sequence[tuple[int, ...]]) -> Tensor:
        """Hidden states [rows, longest, D] of these rows, filled on the right; the cache then holds the filling, too."""
        longest = max(map(len, rows))
        token_BT = torch.tensor([[*row, *(0,) * (longest - len(row))] for row in rows], device=self.device)
        self.cache = GrowingCache(self.config)
        return self._forward(token_BT, None, None)

    def _cut(self, lengths: list[int], num_columns: int) -> None:
        """Forget what follows the first `lengths[b]` of the columns just read, and move every row to the right."""
        if min(lengths) < num_columns:
            unused_B = num_columns - torch.tensor(lengths, device=self.device)
            self.cache.align(unused_B, max(lengths))
        self._set_lengths(lengths)

    def _verify(
        self, hidden_BTD: Tensor, length_B: Tensor, drafts: Sequence[tuple[int, ...]], choose: Choose
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `follow`. Hidden states of prompt + draft; the law of response token t comes from place length + t - 1."""
        size = max(map(len, drafts)) + 1
        draft_BT = torch.tensor([[*d, *(-1,) * (size - len(d))] for d in drafts], device=self.device)
        last_B = torch.tensor([len(d) for d in drafts], device=self.device)
        token_BT = torch.zeros_like(draft_BT)
        logp_BT = torch.zeros(draft_BT.shape, device=self.device)
        t_T = torch.arange(size, device=self.device)
        agrees_BT = torch.zeros_like(draft_BT, dtype=torch.bool)
        on_draft_B = torch.ones_like(last_B, dtype=torch.bool)
        start, stop = 0, _FIRST_PLACES
        while start < size:
            asked_BT = on_draft_B[:, None] & (t_T <= last_B[:, None]) & (t_T >= start) & (t_T < stop)
            row_N, t_N = asked_BT.nonzero(as_tuple=True)
            if len(row_N) == 0:
                break
            tile = max(1, _TILE // self.head.weight_VD.shape[0])
            for row_n, t_n in zip(row_N.split(tile), t_N.split(tile), strict=True):
                logp_nV = self._logp(hidden_BTD[row_n, length_B[row_n] + t_n - 1])
                token_n = choose(logp_nV, row_n, t_n)
                token_BT[row_n, t_n] = token_n
                logp_BT[row_n, t_n] = logp_nV.gather(-1, token_n[:, None])[:, 0]
            agrees_BT = token_BT == draft_BT
            on_draft_B = agrees_BT[:, :stop].all(dim=1)
            start, stop = stop, 2 * stop
        return agrees_BT.long().cumprod(dim=1).sum(dim=1), token_BT, logp_BT

    def _mask(self) -> Tensor | None:
        """What hides the columns left of each row in a step; None where nothing needs hiding.

        Attention that simply adds its mask is handed the numbers to add. The library makes the masks of other kinds, and
        of models whose layers see different columns, from [B, columns] of ones and zeros.
        """
        if not self._is_ragged:
            return None
        columns = self._longest + 1
        if self._padding is None or self._padding.shape[-1] < columns:
            pad_B1 = (self._longest - self._length_B)[:, None]
            is_token_BC = torch.arange(columns + _MASK_AHEAD, device=self.device) >= pad_B1
            self._padding = is_token_BC.long()
            if self._adds_mask:
                zeros = torch.zeros(is_token_BC.shape, dtype=self.cache.dtype, device=self.device)
                self._padding = zeros.masked_fill(~is_token_BC, -torch.inf)[:, None, None]
        seen = min(columns, self._window) if self._window and self._adds_mask else columns
        return self._padding[..., columns - seen : columns]

    def _forward(self, token_BT: Tensor, mask: Tensor | None, position_BT: Tensor | None) -> Tensor:
        with self._precision():
            return self.backbone(
                input_ids=token_BT,
                attention_mask=mask,
                position_ids=position_BT,
                past_key_values=self.cache,
                use_cache=True,
            ).last_hidden_state

    def _logp(self, hidden_ND: Tensor) -> Tensor:
        with self._precision():
            return self.head.logits(hidden_ND).float().log_softmax(dim=-1)

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
