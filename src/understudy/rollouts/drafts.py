"""Drafts: guesses of what the student is about to write. They are kept and chosen here; `sampler.sample` checks them.

Why a draft cannot change a response. Every token is chosen by a fixed rule from the law at its place and a number that
is drawn beforehand: token_t = choose(law_t, u_t), the argmax for greedy and a rule of `draws.py` for sampling. One
forward pass over prompt and draft gives the law at every place of the draft. The first place where choose(law_t, u_t)
is not the draft's token takes the chosen token, and decoding goes on behind it. By induction every token is the one
that plain decoding with the same u would have emitted. That is so in exact arithmetic, and next to always in float32. A law
that is computed for many places at once differs from a stepped one by rounding, as it does between two sizes of a batch:
under bfloat16 autocast log-probabilities move by hundredths, and many responses part somewhere from those written without
drafts or in other batches. Their law stays the student's up to that rounding.

As a rule of acceptance this is speculative sampling (arXiv:2211.17192, arXiv:2302.01318) for a proposal that puts all
its mass on the draft's token x. There x is kept with probability min(1, p(x) / 1), and otherwise the token is drawn from
the residual max(p - proposal, 0), which is p without x, rescaled. Here x is chosen with probability p(x), and given that
it is not, any other token in proportion to p: the same law. No rule that emits p exactly can emit x more often than p(x).

How independent the numbers are is the setting `rollouts.drafts`:

  auto      Names the numbers by round. They are independent of everything that trained the student: given its weights,
            a response is a fresh sample of its law. A rollout of the last epoch is then kept for 1 / (1 - mean of p(x))
            tokens or so: many for a sharp student, few for a diffuse one.
  coupled   Names them by prompt and sample alone, so every epoch draws with the same ones, and draws by a rule that
            seldom changes its mind when the law moves a little (`draws.race`): a rollout of the last epoch is kept up
            to the first place where the update tipped the scales. Each response is a sample of the law of any student
            that does not depend on u. From the second epoch on the student does, a little: it was trained on what the
            same u chose. Given its weights the responses are then not fresh samples; training is on a fixed set of
            pairs (prompt, u), as in PEGASUS (Ng and Jordan, 2000), and may fit these as it may fit a fixed set of
            prompts. Accepting an old rollout with probability min(1, p(x) / q(x)), q the law that drew it, has the same
            dependence, through the rollout. Policy gradients, whose mean needs fresh samples, refuse it.

Whether drafts are worth reading is decided from how far they agreed with what was written in rounds before, read or not:
never from a clock, so that a run goes the same way every time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Literal

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from understudy.records import Prompt
from understudy.rollouts.draws import Truncation
from understudy.rollouts.sampler import Decoder, Limits, Response, sample_all

Source = Literal["last", "expert", "reference"]
"""The student's last response to the same prompt for the same use; the expert's; the task's reference."""
Key = tuple[str, str, int]
"""(what the response is for, prompt id, which of the prompt's samples)."""

WORTH_READING = 0.4
"""Least share of draft tokens that must be right. Reading costs a third to a half of writing, a token, on a processor."""
MAX_BYTES = 1 << 27
"""Of a book, in memory and on disk. A full one takes no new prompts: to throw out the oldest would forget each before its
turn."""
_ENTRY_BYTES = 320
"""What Python takes for an entry besides its tokens and the text of its id (300 were measured)."""


@dataclass(frozen=True)
class DraftCounts:
    """What drafts were good for: tokens offered, of these accepted, and tokens of all responses written beside."""

    offered: int = 0
    accepted: int = 0
    response: int = 0

    def __add__(self, other: DraftCounts) -> DraftCounts:
        offered, accepted = self.offered + other.offered, self.accepted + other.accepted
        return DraftCounts(offered, accepted, self.response + other.response)

    @property
    def acceptance_rate(self) -> float | None:
        return self.accepted / self.offered if self.offered else None

    @property
    def drafted_rate(self) -> float:
        return self.accepted / max(self.response, 1)


class DraftBook:
    """The last response to every prompt, by what it was written for, and how well each source of drafts has done.

    A use is 'expert' for what the expert wrote, else any name: 'rollout', 'evaluate at 0', ...
    """

    def __init__(self, *, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self._last: dict[Key, np.ndarray] = {}
        self._num_bytes = 0
        self._agreed: dict[str, list[float]] = {}
        """By '<use> <source>': draft tokens that were right and draft tokens in all, older ones counting less."""
        self._counts: dict[str, DraftCounts] = {}

    def drafts(self, use: str, slots: Iterable[tuple[Prompt, int]]) -> list[Sequence[int]]:
        """The most promising draft of each (prompt, sample); () where none is likely to be worth reading."""
        chosen: list[Sequence[int]] = []
        for prompt, sample in slots:
            found = self._candidates(use, prompt, sample)
            source = max(found, key=lambda s: self._rate(use, s), default=None)
            if source is None or self._rate(use, source) < WORTH_READING:
                chosen.append(())
            else:
                chosen.append(found[source])
        return chosen

    def take_counts(self, use: str) -> DraftCounts:
        """What drafts were good for since this was last asked, in all uses whose names begin so."""
        found = [name for name in self._counts if name.startswith(use)]
        return sum((self._counts.pop(name) for name in found), DraftCounts())

    def learn(
        self,
        use: str,
        slots: Sequence[tuple[Prompt, int]],
        drafts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
    ) -> None:
        """See how far drafts, offered or not, agreed with what was written. Before `keep`, or all would agree."""
        self._counts[use] = self._counts.get(use, DraftCounts()) + DraftCounts(
            offered=sum(map(len, drafts)),
            accepted=sum(agreement(d, r) for d, r in zip(drafts, responses, strict=True)),
            response=sum(map(len, responses)),
        )
        seen: dict[Source, list[int]] = {}
        for (prompt, sample), response in zip(slots, responses, strict=True):
            for source, draft in self._candidates(use, prompt, sample).items():
                sums = seen.setdefault(source, [0, 0])
                sums[0] += agreement(draft, response)
                sums[1] += len(draft)
        for source, sums in seen.items():
            before = self._agreed.get(f"{use} {source}", [0.0, 0.0])
            self._agreed[f"{use} {source}"] = [old / 2 + new for old, new in zip(before, sums, strict=True)]

    def keep(self, use: str, slots: Iterable[tuple[Prompt, int]], responses: Sequence[Sequence[int]]) -> None:
        """Remember token ids for the next time, in place of the last ones."""
        for (prompt, sample), ids in zip(slots, responses, strict=True):
            key = (use, prompt.id, sample)
            before = _size(key, len(self._last[key])) if key in self._last else 0
            grown = self._num_bytes + _size(key, len(ids)) - before
            if grown <= self.max_bytes:
                self._num_bytes = grown
                self._last[key] = np.array(ids, dtype=np.int32)

    def _candidates(self, use: str, prompt: Prompt, sample: int) -> dict[Source, Sequence[int]]:
        found: dict[Source, Sequence[int] | None] = {
            "last": self._known(use, prompt, sample),
            "expert": self._known("expert", prompt, sample),
            "reference": prompt.reference_ids,
        }
        return {source: ids for source, ids in found.items() if ids}

    def _known(self, use: str, prompt: Prompt, sample: int) -> list[int]:
        return self._last.get((use, prompt.id, sample), _NOTHING).tolist()

    def _rate(self, use: str, source: Source) -> float:
        right, offered = self._agreed.get(f"{use} {source}", (1.0, 1.0))  # a new source is worth a try
        return right / max(offered, 1.0)

    def save(self, file: Path) -> None:
        """One safetensors file. Keys are an array of text, too: a header may not be large."""
        keys = json.dumps(list(self._last), ensure_ascii=False, separators=(",", ":"))
        arrays = {
            "token_ids": np.concatenate([_NOTHING, *self._last.values()]),
            "length": np.array([len(ids) for ids in self._last.values()], dtype=np.int64),
            "keys": np.frombuffer(keys.encode("utf-8", "surrogatepass"), dtype=np.uint8),
        }
        save_file(arrays, file, metadata={"agreed": json.dumps(self._agreed)})

    def load(self, file: Path) -> None:
        """Become the book that was saved."""
        arrays = load_file(file)
        with safe_open(file, framework="numpy") as handle:
            self._agreed = json.loads(handle.metadata()["agreed"])
        ends = np.cumsum(arrays["length"])
        keys = json.loads(arrays["keys"].tobytes().decode("utf-8", "surrogatepass"))
        # Copies: a part of the array that was read would keep the whole of it, long after all has been replaced.
        self._last = {
            (intern(use), prompt_id, sample): arrays["token_ids"][end - length : end].copy()
            for (use, prompt_id, sample), end, length in zip(keys, ends, arrays["length"], strict=True)
        }
        self._num_bytes = sum(_size(key, len(ids)) for key, ids in self._last.items())


_NOTHING = np.zeros(0, dtype=np.int32)


def _size(key: Key, num_tokens: int) -> int:
    """Bytes of an entry, at most: a token and a character take up to four each."""
    return _ENTRY_BYTES + 4 * (len(key[1]) + num_tokens)


def agreement(draft: Sequence[int], response: Sequence[int]) -> int:
    """How many leading tokens are the same."""
    pairs = enumerate(zip(draft, response, strict=False))
    return next((t for t, (a, b) in pairs if a != b), min(len(draft), len(response)))


def sample_with_drafts(
    book: DraftBook | None,
    use: str,
    slots: Sequence[tuple[Prompt, int]],
    names: Sequence[tuple[object, ...]],
    *,
    limits: Limits,
    batch_size: int | None,
    student: Callable[[], Decoder],
    temperature: float,
    comes_again: bool,
    is_coupled: bool = False,
    truncation: Truncation | None = None,
) -> list[Response]:
    """`sampler.sample_all` for a student who writes alone, with the book's drafts; the same tokens, sooner.

    Args:
        book: None: without drafts.
        slots: (prompt, which of its samples); `names[i]` is the random stream of slots[i].
        is_coupled, truncation: see `sampler.sample`.
        comes_again: these prompts will be asked for again for this use, so their responses are worth keeping.
    """
    drafts = [()] * len(slots) if book is None else book.drafts(use, slots)
    responses = sample_all(
        [prompt for prompt, _ in slots],
        names,
        limits=limits,
        batch_size=batch_size,
        student=student,
        temperature=temperature,
        drafts=drafts,
        is_coupled=is_coupled,
        truncation=truncation,
    )
    if book is not None:
        written = [r.token_ids for r in responses]
        book.learn(use, slots, drafts, written)
        if comes_again:
            book.keep(use, slots, written)
    return responses
