"""Sorting a list of numbers, in the vocabulary of the compact tasks: a second skill beside Countdown.

prompt  s7,3,12>        response  3,7,12 and EOS
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from understudy.errors import ConfigError
from understudy.records import Prompt
from understudy.tasks import characters
from understudy.tasks.drawing import rows
from understudy.tasks.streams import stream
from understudy.tasks.task import SPLITS, Grade, Split

MIN_LISTS = 64
"""Fewer different lists than this of one length cannot be shared out: a split might have none."""


@dataclass(frozen=True, kw_only=True)
class Sorting:
    """Endless lists: a length (uniform in its range), then that many numbers (uniform in 1 .. max_number, repeats too).

    A list belongs to one split by its numbers, whatever their order, the seed and the ranges: no response that was
    trained on is ever tested. Within its split and length it is uniform. In train a list may come again; in validation and
    test it comes once, in one order.
    """

    min_length: int = 3
    max_length: int = 5
    max_number: int = 99
    seed: int = 1337

    def __post_init__(self) -> None:
        if not 1 <= self.min_length <= self.max_length:
            raise ConfigError(
                f"expected 1 <= min_length <= max_length, got {self.min_length} and {self.max_length}."
            )
        if not 1 <= self.max_number < 2**31:
            raise ConfigError(f"max_number must be in 1 .. 2**31 - 1, got {self.max_number}.")
        num_lists = comb(self.max_number + self.min_length - 1, self.min_length)
        if num_lists < MIN_LISTS:
            raise ConfigError(
                f"there are only {num_lists} different lists of {self.min_length} numbers up to {self.max_number}, and "
                f"{MIN_LISTS} are needed to keep train, validation and test apart. Raise min_length or max_number."
            )
        stream(self.seed)  # refuses a bad seed here, not at the first prompt

    @property
    def trains_on_all(self) -> bool:
        return False

    @property
    def name(self) -> str:
        return "sorting"

    @property
    def identity(self) -> str:
        return repr(self)

    @property
    def vocab_size(self) -> int:
        return characters.VOCAB_SIZE

    @property
    def max_prompt_tokens(self) -> int:
        """No prompt is longer."""
        return self.max_new_tokens + 1

    @property
    def max_new_tokens(self) -> int:
        return self.max_length * (len(str(self.max_number)) + 1)

    @property
    def eos_ids(self) -> frozenset[int]:
        return frozenset({characters.EOS_ID})

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return ()

    @property
    def action_ids(self) -> None:
        return None

    def size(self, split: Split) -> None:
        """As many as there are: train is endless, and held-out lists end where no new one is left (`prompts`)."""
        assert split in SPLITS, split

    def prompts(self, split: Split, start: int, count: int) -> list[Prompt]:
        assert min(start, count) >= 0, (start, count)
        found = rows(self, split, start, count)
        return [_prompt(f"{split}/{start + i}", numbers) for i, numbers in enumerate(found)]

    @property
    def nums(self) -> tuple[int, ...]:
        return tuple(range(self.min_length, self.max_length + 1))

    def limits(self, num: int) -> tuple[int, ...]:
        return (self.max_number,) * num

    def allowed(self, draw_NK: NDArray[np.int64], num: int) -> NDArray[np.bool_]:
        """Any list may come."""
        assert draw_NK.shape[1] == num
        return np.ones(len(draw_NK), dtype=bool)

    def described(self, num: int) -> str:
        return f"lists of {num} numbers up to {self.max_number}"

    def grade(self, prompt: Prompt, response_ids: Sequence[int]) -> Grade:
        """Right if it is the sorted list and an EOS, and nothing else."""
        is_correct = tuple(response_ids) == prompt.reference_ids
        answer = characters.response_text(response_ids) if characters.EOS_ID in response_ids else None
        return Grade(score=float(is_correct), is_correct=is_correct, answer=answer)

    def token_grades(self, prompt: Prompt, response_ids: Sequence[int]) -> tuple[bool, ...]:
        """Token t against token t of the sorted list; what follows its EOS is wrong."""
        gold = prompt.reference_ids
        assert gold is not None
        return tuple(t < len(gold) and token == gold[t] for t, token in enumerate(response_ids))

    def oracle(self) -> None:
        """None is needed: the reference is the one right response."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return characters.decode(token_ids)


def _prompt(prompt_id: str, numbers: tuple[int, ...]) -> Prompt:
    text = f"s{','.join(map(str, numbers))}>"
    answer = ",".join(map(str, sorted(numbers)))
    return Prompt(
        id=prompt_id,
        token_ids=characters.encode(text),
        text=text,
        reference=answer,
        reference_ids=characters.encode(answer, is_closed=True),
        meta={"answer": answer},
    )
