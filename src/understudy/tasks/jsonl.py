"""A task from the user's own rows of text, in JSON Lines files or on the hub."""

from __future__ import annotations

from pathlib import Path

from understudy.errors import ConfigError, DataError
from understudy.tasks.answers import GRADERS, Grader, GraderName
from understudy.tasks.sources import RawRow, fields_there, read_hub, read_jsonl, text_field, valid_text
from understudy.tasks.task import SPLITS, Split
from understudy.tasks.text import Messages, TextEncoder, TextRow
from understudy.tasks.text_task import TextTask, hold_out


class JsonlTask(TextTask):
    """Rows of text with an optional reference and an optional grader; without a grader there is no accuracy.

    A row's prompt is plain text (`prompt`) or chat turns (`messages`, rendered by the tokenizer's template).
    Its id is the one it has, or its number in its file. Prompt ids are "<split>/<id>".
    """

    def __init__(
        self,
        *,
        encoder: TextEncoder,
        train: str | Path | None = None,
        validation: str | Path | None = None,
        test: str | Path | None = None,
        dataset: str | None = None,
        dataset_config: str | None = None,
        validation_rows: int = 0,
        prompt_field: str = "prompt",
        messages_field: str = "messages",
        reference_field: str = "reference",
        id_field: str = "id",
        grader: GraderName | Grader | None = None,
        seed: int = 1337,
        name: str = "jsonl",
    ) -> None:
        """Read, check and encode all rows.

        Args:
            encoder: tokenizer and limits.
            train, validation, test: a file each; with `dataset`, the name of the data set's split instead.
            dataset, dataset_config: a data set of the hub, read through `datasets`.
            validation_rows: this many rows of train are held out for validation, chosen by `seed`.
            grader: "exact", "numeric", "gsm8k", "math" (through math-verify), or a function (response, reference) -> Grade.
        Raises:
            ConfigError: no split given, or validation given twice.
            DataError: rows that cannot be read or used; the message names file and line.
        """
        given: dict[Split, str | Path | None] = {"train": train, "validation": validation, "test": test}
        if validation_rows and validation is not None:
            raise ConfigError("give either validation or validation_rows, not both: it is one split.")
        if validation_rows and train is None:
            raise ConfigError("validation_rows are held out of train, and train is not given.")
        if all(place is None for place in given.values()):
            raise ConfigError(f"give at least one of {', '.join(SPLITS)}.")
        names = (prompt_field, messages_field, reference_field, id_field)
        rows: dict[Split, list[TextRow]] = {}
        for split, place in given.items():
            if place is not None:
                raw = read_jsonl(place) if dataset is None else read_hub(dataset, dataset_config, str(place))
                rows[split] = [_text_row(row, *names) for row in raw]
        if validation_rows:
            rows["train"], rows["validation"] = hold_out(rows["train"], validation_rows, seed)
        judge = grader if grader is None or callable(grader) else GRADERS[grader]
        super().__init__(name=name, rows=rows, encoder=encoder, grader=judge, seed=seed)


def _text_row(
    row: RawRow, prompt_field: str, messages_field: str, reference_field: str, id_field: str
) -> TextRow:
    has_prompt, has_messages = (row.fields.get(field) is not None for field in (prompt_field, messages_field))
    if has_prompt == has_messages:
        found = "both" if has_prompt else "neither"
        hint = "Keep one of them." if has_prompt else fields_there(row, prompt_field)
        raise DataError(
            f"{row.where}: expected {prompt_field!r} or {messages_field!r}, found {found}. {hint}"
        )
    has_reference = row.fields.get(reference_field) is not None
    return TextRow(
        id=_row_id(row, id_field),
        where=row.where,
        content=text_field(row, prompt_field) if has_prompt else _messages(row, messages_field),
        reference=text_field(row, reference_field) if has_reference else None,
    )


def _row_id(row: RawRow, id_field: str) -> str:
    found = row.fields.get(id_field)
    if found is None:
        return str(row.index)
    if isinstance(found, int) and not isinstance(found, bool):
        return str(found)
    return valid_text(found, f"{row.where}: {id_field}")


def _messages(row: RawRow, field: str) -> Messages:
    turns = row.fields[field]
    if not isinstance(turns, list) or not turns:
        raise DataError(
            f'{row.where}: {field} must be a list of {{"role": ..., "content": ...}}, found {turns!r:.60}.'
        )
    made: list[tuple[str, str]] = []
    for number, turn in enumerate(turns, start=1):
        what = f"{row.where}: turn {number} of {field}"
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise DataError(f'{what} must be {{"role": ..., "content": ...}}, found {turn!r:.60}.')
        made.append(
            (valid_text(turn["role"], f"{what}: role"), valid_text(turn["content"], f"{what}: content"))
        )
    if made[-1][0] == "assistant":
        raise DataError(f"{row.where}: {field} ends with the assistant's turn. Make that turn the reference.")
    return tuple(made)
