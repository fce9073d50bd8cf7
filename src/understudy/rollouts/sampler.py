"""Turning next-token laws into responses. The only loop that draws tokens, whoever they are drawn from.

B sequences, T positions of the response, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from understudy.objectives.estimators import inverse_cdf
from understudy.randomness import uniforms
from understudy.records import Finish, Prompt

_COMPACT_BELOW = 0.75
"""Finished rows leave the batch once fewer than this share of it is still writing (copying the cache has a price)."""


class Decoder(Protocol):
    """A source of next-token laws along growing prefixes: a model with its cache, an oracle, either with noise."""

    def start(self, prompts: Sequence[Prompt]) -> Tensor:
        """Natural log-probabilities of the first response token, [B, V], at least float32."""
        ...

    def step(self, token_B: Tensor) -> Tensor:
        """Append one token to every row; log-probabilities of the next, [B, V]."""
        ...

    def keep(self, row_K: Tensor) -> None:
        """Go on with these rows only, in this order."""
        ...


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a response ends. The token that ends it belongs to it and is trained."""

    max_new_tokens: int
    eos_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    decode: Callable[[Sequence[int]], str] | None = None
    """Token ids to text; needed for stop strings."""


@dataclass(frozen=True)
class Response:
    """What was emitted after one prompt; see `Trajectory` for the fields."""

    token_ids: tuple[int, ...]
    is_student: tuple[bool, ...]
    logp: tuple[float, ...]
    finish: Finish


def draw(logp_BV: Tensor, uniform_B: Tensor, temperature: float) -> Tensor:
    """One token a row from softmax(logp / temperature), by inverting its distribution function; 0 is the argmax."""
    if temperature == 0:
        return logp_BV.argmax(dim=-1)
    if temperature != 1:
        logp_BV = (logp_BV / temperature).log_softmax(dim=-1)
    return inverse_cdf(logp_BV, uniform_B)


def sample_all(
    prompts: Sequence[Prompt],
    names: Sequence[tuple[object, ...]],
    *,
    limits: Limits,
    batch_size: int | None = None,
    student: Callable[[], Decoder] | None = None,
    expert: Callable[[], Decoder] | None = None,
    temperature: float = 1.0,
    expert_writes_BT: np.ndarray | None = None,
) -> list[Response]:
    """`sample` for any number of prompts, at most `batch_size` side by side, each with a fresh decoder.

    `names[i]` is the random stream of prompts[i]. Neighbours in length share a batch, so that little padding is
    computed; the order of the result is that of the prompts, and neither order nor batches change the tokens.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].token_ids))
    found: dict[int, Response] = {}
    for start in range(0, len(order), batch_size or max(1, len(order))):
        rows = order[start : start + (batch_size or len(order))]
        responses = sample(
            [prompts[i] for i in rows],
            limits=limits,
            uniform_BT=uniforms([names[i] for i in rows], limits.max_new_tokens),
            student=None if student is None else student(),
            expert=None if expert is None else expert(),
            temperature=temperature,
            expert_writes_BT=None if expert_writes_BT is None else expert_writes_BT[rows],
        )
        found.update(zip(rows, responses, strict=True))
    return [found[i] for i in range(len(prompts))]


@torch.no_grad()
def sample(
    prompts: Sequence[Prompt],
    *,
    limits: Limits,
    uniform_BT: np.ndarray,
    student: Decoder | None = None,
    expert: Decoder | None = None,
    temperature: float = 1.0,
    expert_writes_BT: np.ndarray | None = None,
) -> list[Response]:
    """Let the student, the expert, or both token by token, write a response to every prompt.

    Args:
        uniform_BT: [B, max_new_tokens] in [0, 1), one number for each token that may be drawn. Row b depends on the
            trajectory alone (see `randomness`), so the tokens do not depend on who else is in the batch.
        temperature: of the student's draws; 0 is greedy. The expert always speaks its own law at temperature 1.
        expert_writes_BT: [B, max_new_tokens] bool, who writes which token; needed when both are given.
    Returns:
        one response a prompt, in their order.
    """
    if student is not None and expert is not None and expert_writes_BT is not None:
        # One of them may have nothing to write, as at both ends of a schedule: it then need not listen either.
        student = None if expert_writes_BT.all() else student
        expert = expert if expert_writes_BT.any() else None
    writers = [d for d in (student, expert) if d is not None]
    assert writers, "somebody must write"
    assert len(writers) == 1 or expert_writes_BT is not None, "two writers need a plan"
    if not prompts:
        return []
    laws = [writer.start(prompts) for writer in writers]
    device = laws[0].device
    uniform = torch.from_numpy(uniform_BT).to(device)
    is_expert = torch.full(uniform.shape, student is None, device=device)
    if len(writers) == 2:
        is_expert = torch.from_numpy(expert_writes_BT).to(device)
    eos = torch.tensor(sorted(limits.eos_ids), device=device)
    book = _Book(len(prompts), limits)
    row_B = torch.arange(len(prompts), device=device)
    for t in range(limits.max_new_tokens):
        drawn = [
            draw(law, uniform[row_B, t], 1.0 if writer is expert else temperature)
            for law, writer in zip(laws, writers, strict=True)
        ]
        logps = [law.gather(-1, token[:, None])[:, 0] for law, token in zip(laws, drawn, strict=True)]
        by_expert_B = is_expert[row_B, t]
        token_B, logp_B = drawn[0], logps[0]
        if len(writers) == 2:
            token_B = torch.where(by_expert_B, drawn[1], drawn[0])
            logp_B = torch.where(by_expert_B, logps[1], logps[0])
        ended_B = book.write(row_B, token_B, logp_B, ~by_expert_B, torch.isin(token_B, eos))
        if t + 1 == limits.max_new_tokens or not book.is_open.any():
            break
        going_B = ~ended_B
        if going_B.float().mean() < _COMPACT_BELOW:
            kept = going_B.nonzero()[:, 0]
            for writer in writers:
                writer.keep(kept)
            row_B, token_B = row_B[kept], token_B[kept]
        laws = [writer.step(token_B) for writer in writers]
    return book.responses()


class _Book:
    """The responses so far, one row a prompt, on the host; rows that have ended take no more tokens."""

    def __init__(self, num_rows: int, limits: Limits) -> None:
        self.limits = limits
        shape = (num_rows, limits.max_new_tokens)
        self.token = np.zeros(shape, dtype=np.int64)
        self.logp = np.zeros(shape, dtype=np.float64)
        self.is_student = np.zeros(shape, dtype=bool)
        self.length = np.zeros(num_rows, dtype=np.int64)
        self.is_open = np.ones(num_rows, dtype=bool)
        self.finish: list[Finish] = ["length"] * num_rows

    def write(
        self, row_B: Tensor, token_B: Tensor, logp_B: Tensor, by_student_B: Tensor, eos_B: Tensor
    ) -> Tensor:
        """Take one token a row; returns which of the given rows have ended by now."""
        row, token = row_B.cpu().numpy(), token_B.cpu().numpy()
        open_rows = self.is_open[row]
        written = row[open_rows]
        at = self.length[written]
        self.token[written, at] = token[open_rows]
        self.logp[written, at] = logp_B.double().cpu().numpy()[open_rows]
        self.is_student[written, at] = by_student_B.cpu().numpy()[open_rows]
        self.length[written] += 1
        for r in row[open_rows & eos_B.cpu().numpy()]:
            self._end(r, "eos")
        if self.limits.stop_strings:
            for r in written[self.is_open[written]]:
                if self._stops(r):
                    self._end(r, "stop")
        return torch.from_numpy(~self.is_open[row]).to(row_B.device)

    def _end(self, row: int, why: Finish) -> None:
        self.is_open[row] = False
        self.finish[row] = why

    def _stops(self, row: int) -> bool:
        # A stop string that has just been completed lies in the last len(stop) characters and the last token; every
        # token decodes to at least one byte, so that many bytes of tokens hold it.
        assert self.limits.decode is not None, "stop strings need a decoder of token ids"
        reach = 1 + max(len(s.encode()) for s in self.limits.stop_strings)
        tail = self.token[row, max(0, self.length[row] - reach) : self.length[row]]
        text = self.limits.decode(tail.tolist())
        return any(s in text for s in self.limits.stop_strings)

    def responses(self) -> list[Response]:
        rows = zip(self.token, self.is_student, self.logp, self.length, self.finish, strict=True)
        return [
            Response(tuple(t[:n].tolist()), tuple(s[:n].tolist()), tuple(p[:n].tolist()), finish)
            for t, s, p, n, finish in rows
        ]
