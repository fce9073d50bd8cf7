"""Sets of responses from JSON Lines: who answered which prompt with what, how long it is and how it was graded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.errors import DataError
from understudy.tasks.sources import RawRow, fields_there, read_jsonl, rows_of_set, valid_text

DEFAULT_FIELDS = {
    "prompt": ("prompt_id", "id"),
    "response": ("response", "responses"),
    "grade": ("is_correct", "score", "grade"),
    "tokens": ("num_tokens",),
}
"""Where a field is looked for if nobody names it: the first of these that the file's first row has."""

FLAGS = {"prompt": "--id", "response": "--response", "grade": "--grade", "tokens": "--tokens"}

Measure = Callable[[str], int]
"""The length of a text."""


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Names of fields; `a.b` reaches into an object. None: the default names, and no such field is no error,
    except for the response."""

    prompt: str | None = None
    response: str | None = None
    grade: str | None = None
    tokens: str | None = None


@dataclass(frozen=True, kw_only=True)
class Response:
    """One response. `prompt` is the id of its prompt; `length` is in the unit the set was read with."""

    prompt: str
    text: str
    length: int
    grade: float | None = None


@dataclass(frozen=True, kw_only=True)
class ResponseSet:
    """Responses of one model. Without prompt ids (`has_ids` False) every row is a prompt of its own."""

    name: str
    responses: tuple[Response, ...]
    has_ids: bool = True
    fields: Fields = Fields()
    """Where they were found; None: nowhere."""

    def __post_init__(self) -> None:
        if not self.responses:
            raise DataError(f"{self.name} has no responses. Expected at least one.")
        num_graded = sum(response.grade is not None for response in self.responses)
        if num_graded not in (0, len(self.responses)):
            raise DataError(
                f"{self.name}: {num_graded} of {len(self.responses)} responses have a grade. Grade all of them, or none."
            )

    @property
    def is_graded(self) -> bool:
        return self.responses[0].grade is not None


def words(text: str) -> int:
    """Runs of characters between white space."""
    return len(text.split())


def read_responses(
    path: str | Path,
    *,
    name: str,
    fields: Fields | None = None,
    measure: Measure | None = words,
    of_set: str = "",
) -> ResponseSet:
    """The responses of a JSON Lines file: one or several a row, any number of rows a prompt.

    A response is text, or a list of texts; grade and token count are then lists of the same length. A grade is a
    number, or true and false for 1 and 0; null in a field that nobody named is no grade.

    Args:
        name: what to call the set in tables.
        fields: names of the fields; by default those of `DEFAULT_FIELDS`.
        measure: length of a text; None takes the token counts of the file.
        of_set: the evaluation set whose rows are read, by their field `set`; "": the rows without one.
    Raises:
        DataError: no such file, not JSON at some line, a field that is missing or of the wrong kind, no response.
    """
    rows = rows_of_set(read_jsonl(path), of_set)
    named = fields or Fields()
    found = {role: _field(rows[0], role, getattr(named, role)) for role in DEFAULT_FIELDS}
    if measure is None and found["tokens"] is None:
        raise DataError(
            f"{rows[0].where}: no field with a number of tokens. Name it with --tokens, or give a tokenizer."
        )
    if measure is not None:
        found["tokens"] = None
    may_be_null = named.grade is None
    responses = [response for row in rows for response in _responses(row, found, measure, may_be_null)]
    return ResponseSet(
        name=name, responses=tuple(responses), has_ids=found["prompt"] is not None, fields=Fields(**found)
    )


def _field(row: RawRow, role: str, name: str | None) -> str | None:
    """The field of a role: as named, else the first default that is there."""
    if name is not None:
        return name
    there = [default for default in DEFAULT_FIELDS[role] if default in row.fields]
    if not there and role == "response":
        wanted = " or ".join(map(repr, DEFAULT_FIELDS[role]))
        hint = fields_there(row, "response")
        raise DataError(f"{row.where}: no field {wanted}. {hint} Name it with {FLAGS[role]}.")
    return there[0] if there else None


def _responses(
    row: RawRow, fields: Mapping[str, str | None], measure: Measure | None, may_be_null: bool
) -> list[Response]:
    response_field = fields["response"]
    assert response_field is not None
    texts = _look_up(row, response_field)
    is_list = isinstance(texts, list)
    texts = texts if is_list else [texts]
    if not texts:
        raise DataError(f"{row.where}: {response_field} is an empty list. Expected at least one response.")
    prompt = f"row {row.index}" if fields["prompt"] is None else _prompt_id(row, fields["prompt"])
    is_ungraded = may_be_null and row.fields.get(fields["grade"] or "", 0) is None
    grade_field = None if is_ungraded else fields["grade"]
    grades = _column(row, grade_field, len(texts), is_list)
    counts = _column(row, fields["tokens"], len(texts), is_list)
    made = []
    for text, grade, count in zip(texts, grades, counts, strict=True):
        checked = valid_text(text, f"{row.where}: {response_field}")
        length = measure(checked) if measure is not None else _count(row, fields["tokens"], count)
        score = None if grade_field is None else _grade(row, grade_field, grade, may_be_null=may_be_null)
        made.append(Response(prompt=prompt, text=checked, length=length, grade=score))
    return made


def _look_up(row: RawRow, name: str) -> Any:
    """The value of a field; a dotted name that is no field itself reaches into objects."""
    if name in row.fields:
        return row.fields[name]
    here: Any = row.fields
    for part in name.split("."):
        if not isinstance(here, Mapping) or part not in here:
            inner = RawRow(where=row.where, index=row.index, fields=here if isinstance(here, Mapping) else {})
            raise DataError(f"{row.where}: no field {name!r}. {fields_there(inner, part)}")
        here = here[part]
    return here


def _column(row: RawRow, name: str | None, num: int, is_list: bool) -> Sequence[Any]:
    """One value for each response of the row."""
    if name is None:
        return [None] * num
    value = _look_up(row, name)
    if not is_list:
        return [value]
    if not isinstance(value, list) or len(value) != num:
        found = f"a list of {len(value)}" if isinstance(value, list) else repr(value)[:40]
        raise DataError(f"{row.where}: {name} must be a list of {num}, one for each response, found {found}.")
    return value


def _prompt_id(row: RawRow, name: str) -> str:
    value = _look_up(row, name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return valid_text(value, f"{row.where}: {name}")


def _grade(row: RawRow, name: str, value: object, *, may_be_null: bool) -> float | None:
    if value is None and may_be_null:
        return None
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(
            f"{row.where}: {name} must be a finite number, true or false, found {repr(value)[:40]}."
        )
    return float(value)


def _count(row: RawRow, name: str | None, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise DataError(
            f"{row.where}: {name} must be a number of tokens, 0 or more, found {repr(value)[:40]}."
        )
    return value
