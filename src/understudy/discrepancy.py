"""Compares two files of responses and writes what was found: the record, its figure and its page."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from understudy.diagnostics.discrepancy import discrepancy
from understudy.diagnostics.findings import Settings
from understudy.diagnostics.reading import reading
from understudy.diagnostics.responses import Fields, Measure, ResponseSet, read_responses, words
from understudy.errors import ConfigError
from understudy.files import finite, write_json
from understudy.versions import versions

Unit = Literal["words", "characters", "tokens"]
RECORD = "discrepancy.json"


def compare_responses(
    a: str | Path,
    b: str | Path,
    *,
    out: str | Path | None = None,
    fields: tuple[Fields, Fields] = (Fields(), Fields()),
    labels: tuple[str, str] | None = None,
    unit: Unit = "words",
    tokenizer: str | None = None,
    of_set: str = "",
    settings: Settings | None = None,
) -> dict[str, Any]:
    """How far apart two sets of responses are (`diagnostics.discrepancy`), as a record of plain values.

    Args:
        a, b: JSON Lines files, or one file whose rows hold both under different fields.
        out: a folder for discrepancy.json, figure.png and report.html; what an earlier comparison left is replaced.
        fields: where responses, prompt ids, grades and token counts are, in A and in B.
        labels: names of the two sets. By default those of the files, or of the fields if the files are one.
        of_set: the evaluation set whose rows are compared; "": the rows that name none.
        unit: of lengths. Tokens are counted with `tokenizer`, or taken from the rows.
    Raises:
        DataError, ConfigError, ModelError: one sentence on what does not fit.
    """
    settings = settings or Settings()
    names = labels or _names(Path(a), Path(b), fields)
    if names[0] == names[1]:
        raise ConfigError(f"both sets are called {names[0]!r}. Give two labels that differ (--label).")
    if out is not None:
        _claim(Path(out))
    measure = _measure(unit, tokenizer)
    sets = [
        read_responses(path, name=name, fields=where, measure=measure, of_set=of_set)
        for path, name, where in zip((a, b), names, fields, strict=True)
    ]
    found = discrepancy(sets[0], sets[1], settings)
    record = finite(
        {
            **found.as_record(),
            "unit": unit,
            "reading": reading(found),
            "notes": _notes(sets),
            "settings": asdict(settings),
            "files": [str(a), str(b)],
            "fields": [asdict(one.fields) for one in sets],
            "tokenizer": tokenizer,
        }
    )
    if out is not None:
        from understudy.reports.discrepancy import write_discrepancy_report

        write_json(Path(out) / RECORD, {**record, "versions": versions()})
        write_discrepancy_report(out)
    return record


def _names(a: Path, b: Path, fields: tuple[Fields, Fields]) -> tuple[str, str]:
    if a.stem != b.stem:
        return a.stem, b.stem
    if fields[0].response != fields[1].response:
        return fields[0].response or "response", fields[1].response or "response"
    return "A", "B"


def _measure(unit: Unit, tokenizer: str | None) -> Measure | None:
    """The length of a text in the unit; None: the rows tell."""
    if unit != "tokens":
        if tokenizer is not None:
            raise ConfigError(
                f"a tokenizer counts tokens, and the unit is {unit}. Use tokens, or leave one out."
            )
        return words if unit == "words" else len
    if tokenizer is None:
        return None
    from understudy.models import load_tokenizer

    found = load_tokenizer(tokenizer)
    return lambda text: len(found.encode(text, add_special_tokens=False))


def _notes(sets: list[ResponseSet]) -> list[str]:
    graded = [one.is_graded for one in sets]
    if any(graded) and not all(graded):
        return [f"{sets[graded.index(False)].name} has no grades, so there is no performance gap."]
    return []


def _claim(folder: Path) -> None:
    """Make the folder, or refuse one that belongs to something else."""
    for mark in ("recipe.json", "compare.json", "theory.json"):
        if (folder / mark).exists():
            raise ConfigError(
                f"{folder} holds a run, a comparison or an experiment ({mark}). Use another --out."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot create the folder {folder}: {error}.") from None
