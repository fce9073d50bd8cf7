"""`understudy discrepancy`: how far apart two sets of responses are."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from understudy.cli.options import Json, OfSet
from understudy.cli.printing import say, say_json, say_table


class UnitName(StrEnum):
    """Units of length."""

    words = "words"
    characters = "characters"
    tokens = "tokens"


class PromptsName(StrEnum):
    """How prompts of two sets belong together."""

    same = "same"
    matched = "matched"
    independent = "independent"


def discrepancy(
    a: Annotated[Path, typer.Argument(metavar="A.jsonl", help="A set of responses, one JSON object a line.")],
    b: Annotated[Path, typer.Argument(metavar="B.jsonl", help="The other; the same file if it holds both.")],
    response: Annotated[
        list[str] | None,
        typer.Option(
            "--response",
            metavar="FIELD",
            help="Text, or a list of texts. a.b reaches into objects. [default: response, responses]",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--id", metavar="FIELD", help="Which prompt a row answers. [default: prompt_id, id]"),
    ] = None,
    grade: Annotated[
        list[str] | None,
        typer.Option(
            "--grade",
            metavar="FIELD",
            help="Number or true/false. [default: is_correct, score, grade if there]",
        ),
    ] = None,
    tokens: Annotated[
        list[str] | None,
        typer.Option("--tokens", metavar="FIELD", help="Number of tokens, where the rows hold it."),
    ] = None,
    of_set: OfSet = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="NAME", help="What to call A, then B. [default: the files' names]"),
    ] = None,
    unit: Annotated[
        UnitName | None, typer.Option("--unit", help="Unit of lengths. [default: words]", show_default=False)
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", metavar="FOLDER", help="Count lengths in tokens of this tokenizer."),
    ] = None,
    bin_size: Annotated[
        int | None,
        typer.Option("--bin", metavar="N", min=1, help="Bin of lengths. [default: a round number]"),
    ] = None,
    keyword: Annotated[
        list[str] | None,
        typer.Option(
            "--keyword",
            metavar="WORD",
            help="A further word; wait, maybe, thus, alternatively are always counted. Repeatable.",
        ),
    ] = None,
    prompts: Annotated[
        PromptsName,
        typer.Option(
            "--prompts",
            help="Both sets have the same prompts; or compare the matched ones; or take the sets as independent.",
        ),
    ] = PromptsName.same,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Seed of halves, resamples and deals.")
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Write discrepancy.json, figure.png and report.html there."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Lower bounds on the total variation between two models' responses, beside the gap of their grades.

    Lengths, keywords, n-grams and prompts; each with an interval over prompts and with what chance alone would give.
    --response, --id, --grade and --tokens may be given twice: for A, then for B.

    \b
    Examples:
      understudy discrepancy small.jsonl large.jsonl --out runs/discrepancy
      understudy discrepancy a.jsonl b.jsonl --tokenizer models/tiny --bin 500 --keyword hmm
      understudy discrepancy both.jsonl both.jsonl --id index --response small.text --response large.text
    """
    from understudy.diagnostics.findings import KEYWORDS, Settings
    from understudy.diagnostics.responses import Fields
    from understudy.discrepancy import compare_responses

    named = {
        role: _two(given, flag)
        for role, given, flag in (
            ("prompt", prompt, "--id"),
            ("response", response, "--response"),
            ("grade", grade, "--grade"),
            ("tokens", tokens, "--tokens"),
        )
    }
    if label is not None and len(label) != 2:
        raise typer.BadParameter(f"give --label twice, for A and for B; found {len(label)}.")
    counts_tokens = tokenizer is not None or tokens is not None
    record = compare_responses(
        a,
        b,
        out=out,
        fields=(
            Fields(**{role: pair[0] for role, pair in named.items()}),
            Fields(**{role: pair[1] for role, pair in named.items()}),
        ),
        labels=None if label is None else (label[0], label[1]),
        unit="tokens" if unit is None and counts_tokens else (unit or UnitName.words).value,
        tokenizer=tokenizer,
        of_set=of_set or "",
        settings=Settings(
            bin_size=bin_size, keywords=(*KEYWORDS, *(keyword or ())), prompts=prompts.value, seed=seed
        ),
    )
    if as_json:
        return say_json(record)
    from understudy.reports.discrepancy import gap_cells, headers, shown, sizes

    rows = [gap_cells(row) for row in (*record["gaps"], *record["by_prompt"])]
    say_table(headers(record), rows)
    say(f"\n{sizes(record)}")
    for sentence in [*record["reading"], *record["notes"]]:
        say(shown(sentence))
    if out is not None:
        say(f"report: {out / 'report.html'}")
        say(f"figure: {out / 'figure.png'}")
    return None


def _two(given: list[str] | None, flag: str) -> tuple[str | None, str | None]:
    """Once for both sets, or once for each."""
    if not given:
        return None, None
    if len(given) > 2:
        raise typer.BadParameter(f"give {flag} once for both sets or twice, found {len(given)} times.")
    return given[0], given[-1]
