"""Between text and token ids: rows become prompts by way of a tokenizer, responses become text again.

The prompt and the reference response of a row, as token ids:

    plain text   [BOS] prompt tokens | reference tokens, EOS
    chat         the tokenizer's chat template, generation prompt included | reference tokens, EOS

BOS stands there exactly once if the tokenizer itself begins a text with it, and not at all otherwise; a chat
template writes its own. No other special token is added, and the reference ends in exactly one EOS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from understudy.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = tuple[tuple[str, str], ...]
"""Chat turns as (role, content)."""


@dataclass(frozen=True, kw_only=True)
class TextRow:
    """One row of text, before any tokenizer. `where` names its file and line, for messages.

    `content` is plain text or chat messages. `lead` stands between the prompt and the reference (plain text
    only): a space where the prompt ends in a colon, for instance; it belongs to the response.
    """

    id: str
    where: str
    content: str | Messages
    reference: str | None = None
    lead: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedRow:
    """A row and its tokens, compactly."""

    row: TextRow
    prompt_ids: NDArray[np.int32]
    reference_ids: NDArray[np.int32] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class TextEncoder:
    """Everything between text and token ids.

    `max_prompt_tokens` and `max_new_tokens` together must fit the model's context; a reference, its EOS
    included, must fit `max_new_tokens`. `too_long`: "error" names the first row that does not fit, "drop"
    leaves such rows out of training *and* of evaluation. `extra_eos_ids`: further ids that end a response (a
    generation config's). `end_token` closes a reference, for models that end a turn with another token than
    the tokenizer's EOS.
    """

    tokenizer: PreTrainedTokenizerBase
    max_prompt_tokens: int
    max_new_tokens: int
    stop_strings: tuple[str, ...] = ()
    extra_eos_ids: tuple[int, ...] = ()
    end_token: str | None = None
    too_long: Literal["error", "drop"] = "error"
    can_drop: bool = True
    """Whether a refusal may advise `too_long = "drop"`: not every task has that setting."""

    def __post_init__(self) -> None:
        for name in ("max_prompt_tokens", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}.")
        if "" in self.stop_strings:
            raise ConfigError(
                "stop_strings holds an empty text, which would end every response at once. Remove it."
            )
        _ = self.end_id  # refuses a tokenizer without one here, not at the first row

    @cached_property
    def end_id(self) -> int:
        """The id that closes a reference."""
        if self.end_token is not None:
            found = self.tokenizer.get_vocab().get(self.end_token)
            if found is None:
                raise ModelError(
                    f"end_token {self.end_token!r} is not a token of the tokenizer. Give one that is."
                )
            return found
        if not self._own_eos_ids:
            raise ModelError(
                "the tokenizer has no EOS token, so no response could end. Set its eos_token, or end_token."
            )
        return self._own_eos_ids[0]

    @cached_property
    def _own_eos_ids(self) -> tuple[int, ...]:
        eos: Any = self.tokenizer.eos_token_id
        return () if eos is None else (int(eos),)

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Every id that ends a response: the end token's, the tokenizer's EOS, and the extra ones."""
        return frozenset({self.end_id, *self._own_eos_ids, *self.extra_eos_ids})

    @cached_property
    def _bos_ids(self) -> tuple[int, ...]:
        bos: Any = self.tokenizer.bos_token_id
        probe: Any = self.tokenizer("a", add_special_tokens=True)
        return (int(bos),) if probe["input_ids"][:1] == [bos] else ()

    @cached_property
    def _num_ids(self) -> int:
        return len(self.tokenizer)

    def encode(self, rows: Sequence[TextRow]) -> list[EncodedRow]:
        """Rows with their tokens, in order, without those that were dropped for their length.

        Raises:
            DataError: a prompt without tokens; a row that is too long; messages that the template refuses or
                that have none; an EOS inside a reference. The message names the row.
        """
        prompts = self._prompt_ids(rows)
        references = self._reference_ids(rows, prompts)
        encoded: list[EncodedRow] = []
        for row, prompt_ids, reference_ids in zip(rows, prompts, references, strict=True):
            if not prompt_ids:
                raise DataError(f"{row.where}: the prompt is empty. Write a prompt or remove the row.")
            problem = self._length_problem(len(prompt_ids), len(reference_ids or ()))
            if problem and self.too_long == "error":
                advice = ', or drop such rows (too_long = "drop")' if self.can_drop else ""
                raise DataError(f"{row.where}: {problem}{advice}.")
            if not problem:
                gold = None if reference_ids is None else np.asarray(reference_ids, dtype=np.int32)
                tokens = np.asarray(prompt_ids, dtype=np.int32)
                encoded.append(EncodedRow(row=row, prompt_ids=tokens, reference_ids=gold))
        return encoded

    def _length_problem(self, num_prompt: int, num_reference: int) -> str | None:
        if num_prompt > self.max_prompt_tokens:
            return (
                f"the prompt has {num_prompt} tokens and max_prompt_tokens is {self.max_prompt_tokens}. "
                "Shorten it, raise max_prompt_tokens (with max_new_tokens it must fit the model's context)"
            )
        if num_reference > self.max_new_tokens:
            return (
                f"the reference has {num_reference} tokens (with EOS) and max_new_tokens is "
                f"{self.max_new_tokens}. Shorten it, raise max_new_tokens"
            )
        return None

    def _prompt_ids(self, rows: Sequence[TextRow]) -> list[list[int]]:
        plain = iter(self._tokens([row.content for row in rows if isinstance(row.content, str)]))
        made: list[list[int]] = []
        for row in rows:
            if isinstance(row.content, str):
                made.append(self._with_bos(next(plain)))
            else:
                made.append(self._chat_ids(row, row.content))
        return made

    def _chat_ids(self, row: TextRow, messages: Messages) -> list[int]:
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            raise DataError(
                f"{row.where}: has messages, and the tokenizer has no chat template. Give a plain prompt."
            )
        turns = [{"role": role, "content": content} for role, content in messages]
        try:
            ids: Any = self.tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except TemplateError as error:
            raise DataError(f"{row.where}: the chat template refuses these messages: {error}.") from None
        return list(ids)

    def _reference_ids(self, rows: Sequence[TextRow], prompts: Sequence[list[int]]) -> list[list[int] | None]:
        """Plain text: what follows the prompt's tokens when both are encoded together.

        Where a token would reach across the boundary, and after a chat template: the reference encoded alone.
        """
        golds = [row for row in rows if row.reference is not None]
        texts = [
            (row.content if isinstance(row.content, str) else "", f"{row.lead}{row.reference}")
            for row in golds
        ]
        found = iter(self._tokens([before + reference for before, reference in texts]))
        made: list[list[int] | None] = []
        for row, prompt_ids in zip(rows, prompts, strict=True):
            if row.reference is None:
                made.append(None)
                continue
            ids = next(found)
            if isinstance(row.content, str):
                ids = self._with_bos(ids)
                is_prefix = ids[: len(prompt_ids)] == prompt_ids
                ids = ids[len(prompt_ids) :] if is_prefix else self._tokens([f"{row.lead}{row.reference}"])[0]
            made.append(self._closed(row, ids))
        return made

    def _with_bos(self, ids: list[int]) -> list[int]:
        """BOS in front where the tokenizer puts it, once: a text may already begin with it."""
        return ids if not ids or tuple(ids[:1]) == self._bos_ids else [*self._bos_ids, *ids]

    def _closed(self, row: TextRow, ids: list[int]) -> list[int]:
        while ids and ids[-1] == self.end_id:
            ids = ids[:-1]
        inside = next((t for t, token in enumerate(ids) if token in self.eos_ids), None)
        if inside is not None:
            found = self.tokenizer.convert_ids_to_tokens(ids[inside])
            raise DataError(
                f"{row.where}: the reference has {found!r}, which ends a response, before its end. Remove it."
            )
        return [*ids, self.end_id]

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded: Any = self.tokenizer(texts, add_special_tokens=False, verbose=False)
        return encoded["input_ids"]

    def response_text(self, response_ids: Sequence[int]) -> str:
        """What a grader reads: the text up to the first EOS or stop string, without special tokens."""
        end = next((t for t, token in enumerate(response_ids) if token in self.eos_ids), len(response_ids))
        text = self._decoded(response_ids[:end], skip_special_tokens=True)
        cuts = [at for at in (text.find(stop) for stop in self.stop_strings) if at >= 0]
        return text[: min(cuts, default=len(text))]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of any token ids, special tokens shown."""
        return self._decoded(token_ids, skip_special_tokens=False)

    def _decoded(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """An id the tokenizer does not have (models pad their vocabulary) becomes U+FFFD."""
        parts: list[str] = []
        for is_known, ids in groupby(token_ids, lambda token: 0 <= token < self._num_ids):
            run = list(ids)
            known: Any = self.tokenizer.decode(
                run if is_known else [],
                skip_special_tokens=skip_special_tokens,
                clean_up_tokenization_spaces=False,
            )
            parts.append(known if is_known else "\ufffd" * len(run))
        return "".join(parts)


def as_text(content: str | Messages) -> str:
    """A prompt for a reader: the text itself, or one "role: content" a turn."""
    return content if isinstance(content, str) else "\n".join(f"{role}: {said}" for role, said in content)
