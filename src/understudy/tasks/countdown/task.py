"""The task Countdown: make a target of given numbers with + - * /, every number exactly once."""

from __future__ import annotations

from collections.abc import Sequence

from understudy.errors import ConfigError
from understudy.records import Prompt
from understudy.tasks.countdown.expressions import read_expression
from understudy.tasks.countdown.formats import CompactFormat, ThinkFormat
from understudy.tasks.countdown.generator import Generator, Puzzle
from understudy.tasks.countdown.rows import Rows
from understudy.tasks.countdown.solver import solutions
from understudy.tasks.countdown.traces import Trace, TraceSettings, longest_compact, make_trace
from understudy.tasks.streams import Dice
from understudy.tasks.task import SPLITS, Grade, Split

Source = Generator | Rows
_TRACES = len(SPLITS)
"""First name of the random streams of traces; those of puzzles begin with the number of their split."""


class Countdown:
    """Puzzles from a source, written in a format, with traces as references (arXiv:2606.30445, section 5).

    The reference *text* of a prompt is a solution. Its reference *tokens* are a trace, which ends in a wrong answer
    where its writer gave up; `meta["is_gold"]` says whether it is right. A trace depends on (seed, split, number of
    the puzzle) alone. A puzzle that was read and has no solution has no reference text.
    """

    action_ids: None = None

    def __init__(self, *, source: Source, format: CompactFormat | ThinkFormat, traces: TraceSettings) -> None:
        """Raises ConfigError where a search may not even write the puzzle's own numbers."""
        if traces.style == "search" and source.max_number > traces.max_value:
            raise ConfigError(
                f"max_value must be at least the largest number of the puzzles, {source.max_number}; got {traces.max_value}."
            )
        self.source, self.format, self.traces = source, format, traces

    @property
    def name(self) -> str:
        return "countdown"

    @property
    def identity(self) -> str:
        source = self.source
        excluded = repr(sorted(source.excluded)) if isinstance(source, Generator) else ""
        if isinstance(source, Generator) and source.outside is not None:
            excluded += f" {source.outside!r}"
        if isinstance(source, Generator) and source.trains_on_all:
            excluded += " trained on all"
        where = repr(source) if isinstance(source, Generator) else source.identity
        return f"countdown {where}{excluded} {self.traces!r} {self.format.identity}"

    @property
    def vocab_size(self) -> int | None:
        return self.format.vocab_size

    @property
    def max_prompt_tokens(self) -> int:
        """No prompt is longer."""
        return self.format.max_prompt_tokens

    @property
    def max_new_tokens(self) -> int:
        return self.format.max_new_tokens

    @property
    def eos_ids(self) -> frozenset[int]:
        return self.format.eos_ids

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return self.format.stop_strings

    def size(self, split: Split) -> int | None:
        return self.source.size(split)

    def prompts(self, split: Split, start: int, count: int) -> list[Prompt]:
        assert min(start, count) >= 0, (start, count)
        puzzles = self.source.puzzles(split, start, count)
        traces = [self._trace(split, puzzle) for puzzle in puzzles]
        encoded = self.format.encoded(puzzles, traces)
        return [
            self._prompt(split, puzzle, trace, *ids)
            for puzzle, trace, ids in zip(puzzles, traces, encoded, strict=True)
        ]

    def _trace(self, split: Split, puzzle: Puzzle) -> Trace | None:
        dice = Dice(self.source.seed, _TRACES, SPLITS.index(split), puzzle.index)
        return make_trace(puzzle.nums, puzzle.target, self.traces, dice)

    def _prompt(
        self,
        split: Split,
        puzzle: Puzzle,
        trace: Trace | None,
        token_ids: tuple[int, ...],
        reference_ids: tuple[int, ...] | None,
    ) -> Prompt:
        reference = _solution(puzzle, trace)
        return Prompt(
            id=f"{split}/{puzzle.id}",
            token_ids=token_ids,
            text=self.format.prompt_text(puzzle),
            reference=reference,
            reference_ids=reference_ids,
            meta={
                "nums": list(puzzle.nums),
                "target": puzzle.target,
                "answer": reference,
                "is_gold": trace is not None and trace.is_right,
            },
        )

    def grade(self, prompt: Prompt, response_ids: Sequence[int]) -> Grade:
        """Score 1, 0.1 or 0: see `grade_countdown`."""
        return self.format.grade(response_ids, prompt.meta["nums"], prompt.meta["target"])

    def token_grades(self, prompt: Prompt, response_ids: Sequence[int]) -> None:
        """There are many right responses: token by token nothing can be said."""

    def oracle(self) -> None:
        """The solver writes answers; it has no law over tokens."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.format.decode(token_ids)


def _solution(puzzle: Puzzle, trace: Trace | None) -> str | None:
    """A right answer, as a grader spells it: the trace's own, else the one that was read, else the solver's first."""
    if trace is not None and trace.is_right:
        return trace.answer
    if puzzle.solution is not None:
        found = read_expression(puzzle.solution)
        assert found is not None
        return found.text
    return next(iter(solutions(puzzle.nums, puzzle.target)), None)


def compact_format(source: Source, traces: TraceSettings, max_new_tokens: int | None = None) -> CompactFormat:
    """The compact format with room for the longest prompt and, where no length is given, for the longest trace."""
    num, largest = source.max_operands, source.max_number
    longest = longest_compact(num, largest, traces) + 1
    return CompactFormat(
        max_prompt_tokens=num * (len(str(largest)) + 1) + len(str(source.max_target)) + 1,
        max_new_tokens=longest if max_new_tokens is None else max_new_tokens,
    )
