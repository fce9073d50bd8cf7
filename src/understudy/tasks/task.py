"""What a task is: prompts, a grader, and the exact law of its expert where there is one.

B sequences, R response positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from understudy.records import Prompt

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Grade:
    """What a grader made of one response.

    `score` is in [0, 1]. `answer` is the final answer as the grader read it, None where it found none;
    compare it with `prompt.meta["answer"]` for the accuracy of the final answer alone.
    """

    score: float
    is_correct: bool
    answer: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:
            raise ValueError(f"a grade's score must be in [0, 1], got {self.score}.")


class Oracle(Protocol):
    """The exact law of a task's expert, without noise (noise laws wrap it elsewhere)."""

    @property
    def vocab_size(self) -> int: ...

    def logp_BTV(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]]) -> Tensor:
        """The expert's next-token law at every position of every response, whatever the response says.

            row [b, t] = log q( . | prompts[b], responses[b][:t])     t = 0 .. len(responses[b])

        Args:
            prompts: B prompts of this task.
            responses: B responses or beginnings of one; lengths may differ and may be 0.
        Returns:
            float32 [B, R, V], natural log-probabilities, -inf where the law has no mass. R = longest response
            + 1, but never more than the task's `max_new_tokens`: after a full response there is no next
            token. Rows t > len(responses[b]) do not exist and are NaN: select, do not multiply.
        Raises:
            ValueError: a prompt or response that this task cannot have produced (length, token id).
        """
        ...


class Task(Protocol):
    """Prompts and a grader. Anything with these members is a task; nothing needs to be subclassed."""

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str:
        """Everything that decides its prompts, as text that is the same in every process: offline data is found by it."""
        ...

    @property
    def vocab_size(self) -> int | None:
        """Number of token ids; None: the tokenizer's."""
        ...

    @property
    def max_new_tokens(self) -> int:
        """How long a response may get, its end-of-sequence token included."""
        ...

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end a response. A set: real models have several. Empty: only the length ends it."""
        ...

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts that end a response as soon as it contains one of them."""
        ...

    @property
    def action_ids(self) -> tuple[int, ...] | None:
        """Tokens that a noise law may draw wrong labels from; None: the whole vocabulary."""
        ...

    def size(self, split: Split) -> int | None:
        """Number of prompts of the split; 0 where the task has no such split; None: drawn, so endless; held-out
        prompts that are drawn come once each, and end where there is no new one (`prompts`)."""
        ...

    def prompts(self, split: Split, start: int, count: int) -> list[Prompt]:
        """Items start .. start + count - 1 of the split; item i depends on (the task's seed, split, i) alone.

        A finite train split starts over at its end (a new epoch, with the same prompt ids); a finite
        validation or test split is cut there, so that fewer than `count` may come back.
        """
        ...

    def grade(self, prompt: Prompt, response_ids: Sequence[int]) -> Grade | None:
        """Judge a response, however hostile; None where the task has no grader (no accuracy is defined)."""
        ...

    def token_grades(self, prompt: Prompt, response_ids: Sequence[int]) -> tuple[bool, ...] | None:
        """One claim per response token, "this is the reference's token here"; None where that makes no
        sense."""
        ...

    def oracle(self) -> Oracle | None:
        """The expert's exact law; None where nobody knows it."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Readable text of any token ids, for logs and reports."""
        ...
