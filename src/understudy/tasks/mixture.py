"""A mixture of tasks of one vocabulary: what a base model is trained on before anything is distilled into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from understudy.errors import ConfigError
from understudy.records import Prompt
from understudy.tasks.task import SPLITS, Grade, Split, Task


@dataclass(frozen=True, kw_only=True)
class Part:
    """A task and how many of every sum(shares) prompts are its own."""

    name: str
    task: Task
    share: int


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The prompts of several tasks, interleaved in fixed proportions, each graded by its own task.

    The order is a fixed pattern of sum(shares) prompts in which every part is spread as evenly as can be. Prompt ids
    are "<part>/<id in the part>".
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError("a mixture needs at least one part.")
        names = [part.name for part in self.parts]
        if len(set(names)) < len(names):
            raise ConfigError(f"the parts of a mixture need different names, got {names}. Give each a name.")
        first = self.parts[0]
        for part in self.parts:
            if part.share < 1:
                raise ConfigError(f"the share of {part.name} must be >= 1, got {part.share}.")
            for what in ("vocab_size", "eos_ids", "stop_strings", "action_ids"):
                ours, theirs = getattr(first.task, what), getattr(part.task, what)
                if ours != theirs:
                    raise ConfigError(
                        f"the parts of a mixture must share one vocabulary: {what} of {first.name} is {_shown(ours)}, of "
                        f"{part.name} {_shown(theirs)}. Mix tasks of one format."
                    )

    @property
    def name(self) -> str:
        return "mixture"

    @property
    def identity(self) -> str:
        return f"mixture {[(part.name, part.share, part.task.identity) for part in self.parts]}"

    @property
    def vocab_size(self) -> int | None:
        return self.parts[0].task.vocab_size

    @property
    def max_new_tokens(self) -> int:
        return max(part.task.max_new_tokens for part in self.parts)

    @property
    def eos_ids(self) -> frozenset[int]:
        return self.parts[0].task.eos_ids

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return self.parts[0].task.stop_strings

    @property
    def action_ids(self) -> tuple[int, ...] | None:
        return self.parts[0].task.action_ids

    @property
    def pattern(self) -> tuple[int, ...]:
        """The part of each of sum(shares) prompts, by number: at every place the one that lags behind most."""
        shares = [part.share for part in self.parts]
        counts = [0] * len(shares)
        pattern: list[int] = []
        for place in range(1, sum(shares) + 1):
            lags = [share * place - count * sum(shares) for share, count in zip(shares, counts, strict=True)]
            pattern.append(lags.index(max(lags)))
            counts[pattern[-1]] += 1
        return tuple(pattern)

    def size(self, split: Split) -> int | None:
        """Prompts until a part has no more, for splits that end; None: endless, as train is (finite parts start over).

        0 where a part has no such split.
        """
        sizes = [part.task.size(split) for part in self.parts]
        if 0 in sizes:
            return 0
        ends = [self._end(number, size) for number, size in enumerate(sizes) if size is not None]
        return None if split == "train" or not ends else min(ends)

    def _end(self, number: int, size: int) -> int:
        """The place at which prompt `size` of a part would stand, if it had that many."""
        rounds, rest = divmod(size, self.parts[number].share)
        pattern = self.pattern
        return rounds * len(pattern) + [p for p, of in enumerate(pattern) if of == number][rest]

    def prompts(self, split: Split, start: int, count: int) -> list[Prompt]:
        assert min(start, count) >= 0, (start, count)
        assert split in SPLITS, split
        size = self.size(split)
        end = start + count if size is None else min(start + count, size)
        pattern = self.pattern
        places = [divmod(place, len(pattern)) for place in range(start, end)]
        numbers = [pattern[at] for _, at in places]
        of = []
        for number, part in enumerate(self.parts):
            mine = [r * part.share + pattern[:at].count(number) for r, at in places if pattern[at] == number]
            found = part.task.prompts(split, mine[0], len(mine)) if mine else []
            of.append(iter([_renamed(prompt, part.name) for prompt in found]))
        # A part whose held-out prompts are drawn may turn out to have no more: the mixture ends there, too.
        made = (next(of[number], None) for number in numbers)
        return [prompt for prompt in takewhile(lambda prompt: prompt is not None, made) if prompt is not None]

    def grade(self, prompt: Prompt, response_ids: Sequence[int]) -> Grade | None:
        return self._part(prompt).task.grade(_restored(prompt), response_ids)

    def token_grades(self, prompt: Prompt, response_ids: Sequence[int]) -> tuple[bool, ...] | None:
        return self._part(prompt).task.token_grades(_restored(prompt), response_ids)

    def oracle(self) -> None:
        """A mixture of tasks has no one law."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.parts[0].task.decode(token_ids)

    def _part(self, prompt: Prompt) -> Part:
        return next(part for part in self.parts if part.name == prompt.meta["part"])


def _renamed(prompt: Prompt, name: str) -> Prompt:
    return replace(prompt, id=f"{name}/{prompt.id}", meta={**prompt.meta, "part": name})


def _restored(prompt: Prompt) -> Prompt:
    meta = {key: value for key, value in prompt.meta.items() if key != "part"}
    return replace(prompt, id=prompt.id.removeprefix(f"{prompt.meta['part']}/"), meta=meta)


def _shown(value: object) -> object:
    return sorted(value) if isinstance(value, frozenset) else value
