"""Grading responses from a JSON Lines file, without a model: the same metrics as of a checkpoint, with the same intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from understudy.errors import DataError
from understudy.evaluation.repeats import Graded, at_k, rate_over_prompts, shares
from understudy.evaluation.score import Evaluation
from understudy.tasks.answers import GRADERS, Grader
from understudy.tasks.countdown import grade_compact, grade_countdown
from understudy.tasks.math import require_math_verify
from understudy.tasks.sources import RawRow, fields_there, read_jsonl, rows_of_set, text_field, valid_text
from understudy.tasks.task import Grade

FileGrader = Literal["exact", "numeric", "gsm8k", "math", "countdown", "countdown-compact"]
FILE_GRADERS: tuple[FileGrader, ...] = ("exact", "numeric", "gsm8k", "math", "countdown", "countdown-compact")
_COUNTDOWN: Mapping[str, Callable[[str, Sequence[int], int], Grade]] = MappingProxyType(
    {"countdown": grade_countdown, "countdown-compact": grade_compact}
)


@dataclass(frozen=True, kw_only=True)
class _Prompt:
    """What the responses to one prompt are judged against, the line it first stood in, and their grades in order."""

    gold: str | tuple[tuple[int, ...], int]
    where: str
    grades: list[tuple[str, Grade]] = field(default_factory=list)
    """Each response with its grade."""


def grade_responses(
    path: str | Path,
    grader: FileGrader,
    *,
    ks: Sequence[int] | None = None,
    reference_field: str = "reference",
    of_set: str = "",
) -> Evaluation:
    """Grade every response of a file.

    A line holds `response` (a text) or `responses` (a list of them); what to compare with: the text in `reference_field`, or
    for Countdown `nums` and `target`; and optionally `id` or `prompt_id`. Lines of one id are samples of one prompt, in the
    order of the file; a line without an id is a prompt of its own, called by its number.

        accuracy                      mean over prompts of the share of right responses
        avg@k, pass@k, majority@k     see `evaluation.repeats`

    Args:
        ks: None: 1, 2, 4, ... up to the fewest responses a prompt has, where no prompt has but one.
        of_set: the evaluation set whose lines are graded, by their field `set`; "": the lines without one.
    Returns:
        `metrics`, `by_prompt`, and in `responses` one row a response: id, sample, response, score, is_correct, answer, and what
        it was compared with.
    Raises:
        ConfigError: the grader needs a package that is not installed.
        DataError: a file or line that cannot be used, references of one prompt that differ, or a k beyond the responses of
            a prompt.
    """
    if grader == "math":
        require_math_verify()
    prompts: dict[str, _Prompt] = {}
    for row in rows_of_set(read_jsonl(path), of_set):
        prompt_id, gold = _row_id(row), _gold(row, grader, reference_field)
        if prompt_id not in prompts and isinstance(gold, str) and not _grade(gold, gold, grader).is_correct:
            raise DataError(
                f"{row.where}: the grader {grader!r} finds no answer in the {reference_field} {gold[-60:]!r}. Correct it, or "
                "choose another grader."
            )
        known = prompts.setdefault(prompt_id, _Prompt(gold=gold, where=row.where))
        if known.gold != gold:
            raise DataError(
                f"{row.where}: the prompt {prompt_id!r} has another reference here than in {known.where}. Responses of one "
                "id answer one prompt; make ids unique."
            )
        known.grades.extend((text, _grade(text, gold, grader)) for text in _responses(row))
    samples = {
        prompt_id: [Graded(g.is_correct, g.answer) for _, g in prompt.grades]
        for prompt_id, prompt in prompts.items()
    }
    by_prompt = {"accuracy": shares(samples)} | at_k(samples, _ks(prompts, ks))
    return Evaluation(
        metrics={name: rate_over_prompts(list(rates.values())) for name, rates in by_prompt.items()},
        by_position={},
        rollouts=[],
        by_prompt=by_prompt,
        responses=[
            {"id": prompt_id, "sample": i, "response": text}
            | {"score": g.score, "is_correct": g.is_correct, "answer": g.answer}
            | _described(prompt.gold)
            for prompt_id, prompt in prompts.items()
            for i, (text, g) in enumerate(prompt.grades)
        ],
    )


def _described(gold: str | tuple[tuple[int, ...], int]) -> dict[str, Any]:
    return {"reference": gold} if isinstance(gold, str) else {"nums": list(gold[0]), "target": gold[1]}


def refuse_other_prompts(a: Evaluation, b: Evaluation) -> None:
    """Ids pair the prompts of two files; what they are compared with shows whether they are the same prompts.

    Raises:
        DataError: no id in common, or one with different references.
    """
    first, second = ({row["id"]: _asked(row) for row in each.responses} for each in (a, b))
    both = [prompt_id for prompt_id in first if prompt_id in second]
    if not both:
        raise DataError(
            f"the two files have no prompt in common ({len(first)} and {len(second)} ids, such as {next(iter(first))!r} and "
            f"{next(iter(second))!r}). Give responses to the same prompts, with the same ids."
        )
    for prompt_id in both:
        if first[prompt_id] != second[prompt_id]:
            raise DataError(
                f"the prompt {prompt_id!r} has the reference {first[prompt_id]!r:.60} in one file and "
                f"{second[prompt_id]!r:.60} in the other: these are not the same prompts. Make ids agree."
            )


def _asked(row: Mapping[str, Any]) -> object:
    return row["reference"] if "reference" in row else (row["nums"], row["target"])


def _ks(prompts: Mapping[str, _Prompt], ks: Sequence[int] | None) -> list[int]:
    fewest_id = min(prompts, key=lambda prompt_id: len(prompts[prompt_id].grades))
    fewest = len(prompts[fewest_id].grades)
    if ks is None:
        return [2**i for i in range(fewest.bit_length())] if fewest > 1 else []
    if max(ks, default=0) > fewest:
        raise DataError(
            f"k = {max(ks)} needs as many responses to every prompt, and the prompt {fewest_id!r} "
            f"({prompts[fewest_id].where}) has {fewest}. Give more of them, or a smaller k."
        )
    return list(ks)


def _grade(response: str, gold: str | tuple[tuple[int, ...], int], grader: FileGrader) -> Grade:
    if isinstance(gold, tuple):
        return _COUNTDOWN[grader](response, *gold)
    judge: Grader = GRADERS[grader]  # pyright: ignore[reportArgumentType]
    return judge(response, gold)


def _responses(row: RawRow) -> list[str]:
    one, many = row.fields.get("response"), row.fields.get("responses")
    if (one is None) == (many is None):
        found = "neither" if one is None else "both"
        raise DataError(
            f"{row.where}: expected 'response' (a text) or 'responses' (a list), found {found}. "
            + (fields_there(row, "response") if one is None else "Keep one of them.")
        )
    if one is not None:
        return [_text(one, f"{row.where}: response")]
    if not isinstance(many, list) or not many:
        raise DataError(f"{row.where}: responses must be a list of at least one text, found {many!r:.60}.")
    return [_text(text, f"{row.where}: responses[{i}]") for i, text in enumerate(many)]


def _text(value: object, what: str) -> str:
    """Any text, an empty one and half characters too: a model wrote it, and a grader takes whatever it is."""
    if not isinstance(value, str):
        raise DataError(f"{what} must be text, found {value!r:.60}.")
    return value


def _row_id(row: RawRow) -> str:
    for name in ("id", "prompt_id"):
        found: Any = row.fields.get(name)
        if found is not None:
            is_number = isinstance(found, int) and not isinstance(found, bool)
            return str(found) if is_number else valid_text(found, f"{row.where}: {name}")
    return f"line {row.index + 1}"


def _gold(row: RawRow, grader: FileGrader, reference_field: str) -> str | tuple[tuple[int, ...], int]:
    if grader not in _COUNTDOWN:
        return text_field(row, reference_field)
    nums, target = row.fields.get("nums"), row.fields.get("target")
    if not isinstance(nums, list) or not nums or not all(map(_is_whole, nums)) or not _is_whole(target):
        raise DataError(
            f"{row.where}: Countdown is graded against nums (a list of whole numbers) and target (one), found nums = "
            f"{nums!r:.60} and target = {target!r:.60}."
        )
    return tuple(nums), int(target)  # pyright: ignore[reportArgumentType]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
