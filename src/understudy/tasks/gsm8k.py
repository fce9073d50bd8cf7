"""GSM8K: grade-school word problems with worked solutions that end in '#### <number>' (arXiv:2110.14168)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from understudy.errors import DataError
from understudy.tasks.answers import GRADERS
from understudy.tasks.sources import RawRow, missing, read_hub, read_jsonl, text_field
from understudy.tasks.task import Split
from understudy.tasks.text import TextEncoder, TextRow
from understudy.tasks.text_task import TextTask, hold_out

HUB_DATASET = "openai/gsm8k"
_CALCULATOR_MARK = re.compile(r"<<[^<>\n]*>>")


class Gsm8k(TextTask):
    """A question is the prompt, its worked solution the reference; validation is held out of train.

    With a chat template the question is the user's turn; without one the prompt is "Question: ...\\nAnswer:"
    and the reference begins with a space. A response is right if its marked answer (last \\boxed{}, else
    '####') is the gold number; `grader = "numeric"` takes the last number instead, marked or not.
    """

    def __init__(
        self,
        *,
        encoder: TextEncoder,
        path: str | Path | None = None,
        dataset: str = HUB_DATASET,
        dataset_config: str | None = "main",
        validation_rows: int = 256,
        keep_calculator_marks: bool = False,
        grader: Literal["gsm8k", "numeric"] = "gsm8k",
        seed: int = 1337,
    ) -> None:
        """Read, check and encode all rows.

        Args:
            encoder: tokenizer and limits.
            path: a folder with train.jsonl and test.jsonl (fields `question`, `answer`); None: the hub.
            dataset, dataset_config: what is read from the hub, through `datasets`.
            validation_rows: this many rows of train are held out, chosen by `seed`. 0: no validation split.
            keep_calculator_marks: leave the marks <<48/2=24>> in the references.
        Raises:
            ConfigError, DataError: as `JsonlTask`.
        """
        style = "chat" if encoder.tokenizer.chat_template else "plain"
        raw = _read(path, dataset, dataset_config)
        train, test = (
            [_text_row(row, style, keep_calculator_marks) for row in raw[split]]
            for split in ("train", "test")
        )
        rows: dict[Split, list[TextRow]] = {"train": train, "test": test}
        if validation_rows:
            rows["train"], rows["validation"] = hold_out(train, validation_rows, seed)
        super().__init__(name="gsm8k", rows=rows, encoder=encoder, grader=GRADERS[grader], seed=seed)


def without_calculator_marks(solution: str) -> str:
    """'2 * 3 = <<2*3=6>>6' -> '2 * 3 = 6'."""
    return _CALCULATOR_MARK.sub("", solution)


def _read(path: str | Path | None, dataset: str, config: str | None) -> dict[str, list[RawRow]]:
    if path is None:
        return {split: read_hub(dataset, config, split) for split in ("train", "test")}
    folder = Path(path)
    if not folder.exists():
        raise DataError(missing(folder))
    return {split: read_jsonl(folder / f"{split}.jsonl") for split in ("train", "test")}


def _text_row(row: RawRow, style: Literal["chat", "plain"], keep_calculator_marks: bool) -> TextRow:
    question, solution = text_field(row, "question").strip(), text_field(row, "answer").strip()
    return TextRow(
        id=str(row.index),
        where=row.where,
        content=(("user", question),) if style == "chat" else f"Question: {question}\nAnswer:",
        reference=solution if keep_calculator_marks else without_calculator_marks(solution),
        lead="" if style == "chat" else " ",
    )
