"""A task of text rows: splits that are disjoint by content, epochs in seeded orders, a grader on the
response's text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from understudy.errors import ConfigError, DataError
from understudy.records import Prompt
from understudy.tasks.answers import Grader
from understudy.tasks.streams import permutation, stream
from understudy.tasks.task import Grade, Split
from understudy.tasks.text import EncodedRow, Messages, TextEncoder, TextRow, as_text


class TextTask:
    """A task of text rows, held in memory, its splits disjoint by the content of the prompt.

    Training goes through all rows, then through all again, in a new order each epoch that depends on (seed,
    epoch) alone; validation and test keep the order they are given in. `num_dropped`: rows left out for their
    length.
    """

    vocab_size: None = None
    action_ids: None = None

    def __init__(
        self,
        *,
        name: str,
        rows: Mapping[Split, Sequence[TextRow]],
        encoder: TextEncoder,
        grader: Grader | None,
        seed: int = 1337,
    ) -> None:
        """Check and encode `rows`, the splits there are.

        Raises:
            DataError: ids that occur twice in a split, a prompt in two splits, a row without a gold answer
                that the grader can read, a split without rows, and all that `TextEncoder.encode` raises.
        """
        self.name, self.seed, self.encoder, self.grader = name, seed, encoder, grader
        stream(seed)  # refuses a bad seed
        _refuse_doubled_ids(rows)
        _refuse_shared_prompts(rows)
        if grader is not None:
            _refuse_ungradable(rows, grader)
        self._rows: dict[Split, list[EncodedRow]] = {
            split: encoder.encode(found) for split, found in rows.items()
        }
        self.num_dropped: dict[Split, int] = {
            split: len(rows[split]) - len(kept) for split, kept in self._rows.items()
        }
        for split, kept in self._rows.items():
            if not kept:
                given = f"all {len(rows[split])} rows are too long" if rows[split] else "it has no rows"
                raise DataError(f"nothing is left of the {split} split of {name}: {given}.")

    @property
    def identity(self) -> str:
        """A hash of everything that decides its prompts: their tokens in order, the seed, the limits."""
        return self._identity

    @cached_property
    def _identity(self) -> str:
        digest = hashlib.sha256(
            f"{self.name} {self.seed} {self.max_new_tokens} {sorted(self.eos_ids)}".encode()
        )
        for split, rows in self._rows.items():
            for row in rows:
                digest.update(f"{split} {row.row.id} {row.prompt_ids.tolist()}".encode())
        return f"{self.name}:{digest.hexdigest()[:32]}"

    @property
    def max_new_tokens(self) -> int:
        return self.encoder.max_new_tokens

    @property
    def eos_ids(self) -> frozenset[int]:
        return self.encoder.eos_ids

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return self.encoder.stop_strings

    def size(self, split: Split) -> int:
        return len(self._rows.get(split, ()))

    def prompts(self, split: Split, start: int, count: int) -> list[Prompt]:
        """As `Task.prompts`. Raises DataError where the task has no such split."""
        assert min(start, count) >= 0, (start, count)
        if split not in self._rows:
            raise DataError(
                f"the task {self.name} has no {split} split (it has: {', '.join(self._rows)}). Give its rows."
            )
        rows = self._rows[split]
        if split != "train":
            return [self._prompt(split, row) for row in rows[start : start + count]]
        positions = (divmod(i, len(rows)) for i in range(start, start + count))
        return [self._prompt(split, rows[_order(self.seed, epoch, len(rows))[k]]) for epoch, k in positions]

    def _prompt(self, split: Split, encoded: EncodedRow) -> Prompt:
        row = encoded.row
        gold = row.reference
        meta: dict[str, Any] = {"source": row.where}
        if self.grader is not None and gold is not None:
            meta["answer"] = self.grader(gold, gold).answer
        return Prompt(
            id=f"{split}/{row.id}",
            token_ids=tuple(encoded.prompt_ids.tolist()),
            text=as_text(row.content),
            reference=gold,
            reference_ids=None if encoded.reference_ids is None else tuple(encoded.reference_ids.tolist()),
            meta=meta,
        )

    def grade(self, prompt: Prompt, response_ids: Sequence[int]) -> Grade | None:
        """The grader's verdict on the response's text; None without a grader."""
        if self.grader is None:
            return None
        assert prompt.reference is not None
        return self.grader(self.encoder.response_text(response_ids), prompt.reference)

    def token_grades(self, prompt: Prompt, response_ids: Sequence[int]) -> None:
        """There are many right texts: token by token nothing can be said."""

    def oracle(self) -> None:
        """Nobody knows the exact law of text."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.encoder.decode(token_ids)


def hold_out(rows: Sequence[TextRow], count: int, seed: int) -> tuple[list[TextRow], list[TextRow]]:
    """(the rest, `count` rows held out), both in their order; a row of the rest never has a held-out row's
    prompt.

    Chosen by a hash of (seed, prompt): the same rows whatever their order in the file, and mostly the same
    after rows were added. Rows that share a held-out row's prompt without being held out are in neither part.
    """
    if not 0 < count < len(rows):
        raise ConfigError(
            f"validation_rows must be in 1 .. {len(rows) - 1} (one row must be left), got {count}."
        )

    def rank(index: int) -> tuple[bytes, int]:
        text = f"{seed}:{rows[index].content!r}"
        return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16).digest(), index

    held = set(sorted(range(len(rows)), key=rank)[:count])
    held_prompts = {rows[i].content for i in held}
    rest = [row for row in rows if row.content not in held_prompts]
    if not rest:
        raise DataError(
            f"all {len(rows)} rows have the same few prompts, so none is left to train on. Add other prompts."
        )
    return rest, [row for i, row in enumerate(rows) if i in held]


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, size: int) -> NDArray[np.intp]:
    return permutation(seed, epoch, size)


def _refuse_doubled_ids(rows: Mapping[Split, Sequence[TextRow]]) -> None:
    for split_rows in rows.values():
        seen: dict[str, str] = {}
        for row in split_rows:
            if row.id in seen:
                raise DataError(
                    f"{row.where}: the id {row.id!r} is also that of {seen[row.id]}. Make ids unique."
                )
            seen[row.id] = row.where


def _refuse_shared_prompts(rows: Mapping[Split, Sequence[TextRow]]) -> None:
    seen: dict[str | Messages, tuple[Split, str]] = {}
    for split, split_rows in rows.items():
        for row in split_rows:
            other, where = seen.setdefault(row.content, (split, row.where))
            if other != split:
                raise DataError(
                    f"{row.where}: this prompt of the {split} split is also one of the {other} split "
                    f"({where}). Remove one of the two: what is trained on cannot be tested on."
                )


def _refuse_ungradable(rows: Mapping[Split, Sequence[TextRow]], grader: Grader) -> None:
    for split, row in ((split, row) for split, split_rows in rows.items() for row in split_rows):
        if row.reference is None and split == "train":
            continue  # nothing is graded there, and online methods need prompts only
        if row.reference is None:
            raise DataError(
                f"{row.where}: has no reference, and the grader needs one. Add it, or set no grader."
            )
        if not grader(row.reference, row.reference).is_correct:
            raise DataError(
                f"{row.where}: the grader finds no answer in the reference {row.reference[-60:]!r}. "
                "Correct the reference, or choose another grader."
            )
