"""`understudy forks`: where a student leaves its expert, and whether a few steps bring it back."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from understudy.cli.evaluate import SplitName
from understudy.cli.options import Json, Prompts, Samples, Seed, Set
from understudy.cli.printing import say, say_json, say_table


class EmbeddingName(StrEnum):
    """In which vectors words are compared."""

    expert = "expert"
    student = "student"
    expert_hidden = "expert-hidden"


def forks(
    place: Annotated[
        Path,
        typer.Argument(
            metavar="PLACE",
            help="A finished run's folder (its final student), or a recipe (the student it starts with).",
        ),
    ],
    prompts: Prompts = None,
    samples: Samples = None,
    split: Annotated[
        SplitName, typer.Option("--split", help="Which held-out prompts.")
    ] = SplitName.validation,
    per_group: Annotated[
        int,
        typer.Option(
            "--per-group", metavar="N", help="Tokens of each group; with --correct prefixes of each seed."
        ),
    ] = 200,
    quantile: Annotated[
        float | None,
        typer.Option(
            "--quantile", metavar="Q", help="Of a response's losses, where high ones begin. [default: 0.9775]"
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            "--window", metavar="K", help="Tokens that both write at a token, at most. [default: 50]"
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", metavar="T", help="Of what both write there; 0 is greedy. [default: 0]"
        ),
    ] = None,
    embedding: Annotated[
        EmbeddingName | None,
        typer.Option(
            "--embedding", help="What two tokens are compared by. [default: expert]", show_default=False
        ),
    ] = None,
    corrects: Annotated[
        bool,
        typer.Option("--correct", help="Correct the student at each prefix, in five ways, and look again."),
    ] = False,
    rates: Annotated[
        str | None,
        typer.Option(
            "--rates",
            metavar="LIST",
            help="--correct: learning rates, such as 1e-4,1e-3. [default: the recipe's]",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="M", help="--correct: steps on each prefix. [default: 5]")
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", metavar="N", help="--correct: how many seeds, from --seed on. [default: 1]"),
    ] = None,
    changes: Set = None,
    seed: Seed = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Where to write. [default: PLACE/forks, or runs/<recipe name>-forks]"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Do high losses lead to other futures? What student and expert say next, from before high-loss, random and low-loss
    tokens of the student's responses, and how far apart it is.

    Writes forks.json, figures and forks.html. What has been measured is kept: a call that was killed goes on, the same call
    again answers at once. With --correct: correction.json, the distance before and after a few steps on each prefix. A recipe
    whose method is near-future gives the defaults of windows, plan and targets.

    \b
    Examples:
      understudy forks runs/opd-r
      understudy forks recipes/realizability --prompts 180 --samples 2
      understudy forks runs/opd-f --embedding student --window 20 --json
      understudy forks recipes/local-correction --correct --rates 1e-4,3e-4,1e-3 --seeds 3
    """
    for flag, value in {"--rates": rates, "--steps": steps, "--seeds": seeds}.items():
        if value is not None and not corrects:
            raise typer.BadParameter(f"{flag} says how to correct; give --correct, too.")
    learning_rates = _rates(rates)
    from understudy.fork_correction import correct_forks
    from understudy.fork_subjects import Probing
    from understudy.forks import find_forks

    probing = Probing(
        split=split.value,
        per_group=per_group,
        quantile=quantile,
        window_tokens=window,
        temperature=temperature,
        embedding=None if embedding is None else embedding.value,
    )
    extra = {"evaluate.prompts": prompts, "evaluate.samples_per_prompt": samples}
    given: dict[str, Any] = {
        "probing": probing,
        "overrides": [*(changes or ()), *(f"{key}={n}" for key, n in extra.items() if n is not None)],
        "seed": seed,
        "out": out,
    }
    if not corrects:
        return _show_probe(find_forks(place, **given), as_json)
    record = correct_forks(
        place,
        rates=learning_rates,
        steps=5 if steps is None else steps,
        num_seeds=1 if seeds is None else seeds,
        **given,
    )
    return _show_correction(record, as_json)


def _rates(text: str | None) -> tuple[float, ...]:
    if text is None:
        return ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"--rates takes numbers and commas, such as 1e-4,1e-3; got {text!r}."
        ) from None


def _show_probe(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        return say_json(
            {key: value for key, value in record.items() if key not in ("tokens", "shown", "versions")}
        )
    from understudy.reports.forks import GROUP_HEADERS, group_cells, probe_reading, probe_seconds, probe_sizes

    say_table(GROUP_HEADERS, group_cells(record))
    for sentence in ("", probe_sizes(record), *probe_reading(record), probe_seconds(record)):
        say(sentence)
    return say(f"page: {Path(record['folder']) / 'forks.html'}")


def _show_correction(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        return say_json({key: value for key, value in record.items() if key not in ("examples", "versions")})
    from understudy.reports.forks import (
        CORRECTION_HEADERS,
        correction_cells,
        correction_reading,
        correction_sizes,
    )

    for table in record["rates"]:
        say(f"rate {table['rate']:g}")
        say_table(CORRECTION_HEADERS, correction_cells(table))
        say()
    for sentence in (correction_sizes(record), *correction_reading(record)):
        say(sentence)
    return say(f"page: {Path(record['folder']) / 'forks.html'}")
