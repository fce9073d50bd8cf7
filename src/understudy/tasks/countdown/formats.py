"""Two ways to write a puzzle and its trace as tokens: prose with tags, for a tokenizer, and a compact one without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from understudy.errors import ConfigError, DataError
from understudy.tasks import characters
from understudy.tasks.countdown.expressions import spaced
from understudy.tasks.countdown.generator import Puzzle
from understudy.tasks.countdown.grading import grade_compact, grade_countdown
from understudy.tasks.countdown.traces import Trace, compact_text
from understudy.tasks.task import Grade
from understudy.tasks.text import TextEncoder, TextRow

Ids = tuple[int, ...]

# The wording of the prompts is the interface of the published task (github.com/Jiayi-Pan/TinyZero, countdown, templates
# "base" and "qwen-instruct"): a model that was tuned on it reads it to the letter.
QUESTION = (
    "Using the numbers {nums}, create an equation that equals {target}. You can use basic arithmetic operations "
    "(+, -, *, /) and each number can only be used once. Show your work in <think> </think> tags. And return the final "
    "answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>."
)
OPENED = "Let me solve this step by step.\n<think>"
PLAIN = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer.\n"
    "User: {question}\nAssistant: {opened}"
)
SYSTEM = (
    "You are a helpful assistant. You first thinks about the reasoning process in the mind and then provides the user "
    "with the answer."
)


@dataclass(frozen=True, kw_only=True)
class CompactFormat:
    """Prompt `3,7,12>15:`, response `3+7=10,10+12=22;12-7=5,5*3=15!(12-7)*3` and EOS; one token a character."""

    max_prompt_tokens: int
    max_new_tokens: int
    vocab_size: int = characters.VOCAB_SIZE
    eos_ids: frozenset[int] = frozenset({characters.EOS_ID})
    stop_strings: tuple[str, ...] = ()

    def prompt_text(self, puzzle: Puzzle) -> str:
        return f"{','.join(map(str, puzzle.nums))}>{puzzle.target}:"

    def encoded(
        self, puzzles: Sequence[Puzzle], traces: Sequence[Trace | None]
    ) -> list[tuple[Ids, Ids | None]]:
        """Prompt and reference of each puzzle."""
        return [
            (
                characters.encode(self.prompt_text(puzzle)),
                None if trace is None else self._closed(puzzle, compact_text(trace)),
            )
            for puzzle, trace in zip(puzzles, traces, strict=True)
        ]

    def _closed(self, puzzle: Puzzle, text: str) -> Ids:
        if len(text) >= self.max_new_tokens:
            raise DataError(
                f"the trace of {list(puzzle.nums)} to {puzzle.target} has {len(text) + 1} tokens and max_new_tokens is "
                f"{self.max_new_tokens}. Lower max_tries or max_value, raise max_new_tokens, or leave it out."
            )
        return characters.encode(text, is_closed=True)

    def grade(self, response_ids: Sequence[int], nums: Sequence[int], target: int) -> Grade:
        return grade_compact(characters.response_text(response_ids), nums, target)

    def decode(self, token_ids: Sequence[int]) -> str:
        return characters.decode(token_ids)

    @property
    def identity(self) -> str:
        return f"compact {self.max_new_tokens}"


@dataclass(frozen=True, kw_only=True, eq=False)
class ThinkFormat:
    """The published prompt, its answer opened by "<think>"; a response thinks in words and ends in an answer tag.

    With a chat template the question is the user's turn behind the published system prompt; without one the prompt is
    the plain conversation.
    """

    encoder: TextEncoder
    vocab_size: None = None

    @property
    def max_prompt_tokens(self) -> int:
        return self.encoder.max_prompt_tokens

    @property
    def max_new_tokens(self) -> int:
        return self.encoder.max_new_tokens

    @property
    def eos_ids(self) -> frozenset[int]:
        return self.encoder.eos_ids

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return self.encoder.stop_strings

    def prompt_text(self, puzzle: Puzzle) -> str:
        question = QUESTION.format(nums=list(puzzle.nums), target=puzzle.target)
        tokenizer = self.encoder.tokenizer
        if not tokenizer.chat_template:
            return PLAIN.format(question=question, opened=OPENED)
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        return self._rendered(turns) + OPENED

    def _rendered(self, turns: list[dict[str, str]]) -> str:
        from jinja2 import TemplateError

        try:
            text: Any = self.encoder.tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=False
            )
        except TemplateError as error:
            raise ConfigError(
                f"the tokenizer's chat template refuses a system and a user turn: {error}. Use another tokenizer, or "
                "one without a template."
            ) from None
        return text

    def encoded(
        self, puzzles: Sequence[Puzzle], traces: Sequence[Trace | None]
    ) -> list[tuple[Ids, Ids | None]]:
        """Prompt and reference of each puzzle. Raises DataError where one is too long."""
        rows = [
            TextRow(
                id=puzzle.id,
                where=puzzle.where or f"the puzzle {list(puzzle.nums)} to {puzzle.target}",
                content=self.prompt_text(puzzle),
                reference=None if trace is None else think_text(trace, puzzle.target),
            )
            for puzzle, trace in zip(puzzles, traces, strict=True)
        ]
        made = self.encoder.encode(rows)
        assert len(made) == len(rows), "the encoder must not drop rows: item i of a split must stay item i"
        return [
            (_ids(row.prompt_ids), None if row.reference_ids is None else _ids(row.reference_ids))
            for row in made
        ]

    def grade(self, response_ids: Sequence[int], nums: Sequence[int], target: int) -> Grade:
        return grade_countdown(self.encoder.response_text(response_ids), nums, target)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.encoder.decode(token_ids)

    @property
    def identity(self) -> str:
        """What the tokenizer makes of a prompt is part of what the task is."""
        probe = self.encoder.encode(
            [
                TextRow(
                    id="probe",
                    where="the probe",
                    content=self.prompt_text(_PROBE),
                    reference="1234567890+-*/()",
                )
            ]
        )[0]
        return f"think {self.max_new_tokens} {sorted(self.eos_ids)} {probe.prompt_ids.tolist()} {probe.reference_ids}"


_PROBE = Puzzle(index=0, id="probe", nums=(1, 23, 45), target=67)


def _ids(row: np.ndarray[Any, np.dtype[np.int32]]) -> Ids:
    return tuple(row.tolist())


def think_text(trace: Trace, target: int) -> str:
    """What follows the opened "<think>": the tries in words, a line each, then the answer in its tag."""
    lines = [
        ", ".join(f"{s.left} {s.operator} {s.right} = {s.result}" for s in taken)
        + (f". That is {target}." if taken[-1].result == target else f". That is not {target}.")
        for taken in trace.tries
    ]
    if lines and not trace.is_right:
        lines.append("I give up.")
    return "\n".join(["", *lines, "</think>", f"<answer> {spaced(trace.answer)} </answer>"])
