"""`understudy evaluate`: measure a checkpoint or a file of responses, alone or against another."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from understudy.cli.options import Json, OfSet, Prompts, Samples, Seed, Set
from understudy.cli.printing import METRIC_HEADERS, metric_cells, say, say_json, say_table

if TYPE_CHECKING:
    from understudy.evaluation.paired import Paired
    from understudy.evaluation.score import Evaluation


class SplitName(StrEnum):
    """Held-out splits."""

    validation = "validation"
    test = "test"


class GraderChoice(StrEnum):
    """`evaluation.responses.FILE_GRADERS`, which is not imported: help must not wait for it."""

    exact = "exact"
    numeric = "numeric"
    gsm8k = "gsm8k"
    math = "math"
    countdown = "countdown"
    countdown_compact = "countdown-compact"


def evaluate(
    place: Annotated[
        Path,
        typer.Argument(
            metavar="PLACE",
            help="A checkpoint folder, a run folder (then its final checkpoint), a comparison, or a .jsonl file of responses.",
        ),
    ],
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="OTHER",
            help="Another of the same kind: which is better, by prompt. Of a comparison: one of its labels.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", metavar="RECIPE", help="Task, expert and evaluator. [default: the run folder's own]"
        ),
    ] = None,
    grader: Annotated[
        GraderChoice | None,
        typer.Option("--grader", help="How responses of a file are graded. [default: as the recipe's task]"),
    ] = None,
    of_set: OfSet = None,
    split: Annotated[
        SplitName | None, typer.Option("--split", help="Which held-out prompts. [default: validation]")
    ] = None,
    prompts: Prompts = None,
    samples: Samples = None,
    changes: Set = None,
    seed: Seed = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Also write the responses with their grades, as JSON Lines."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a checkpoint with a recipe's task, grader and expert, or grade a file of responses.

    A line of such a file has `response` or `responses`, `reference` (for Countdown `nums` and `target`), and `id`, which
    lines of one prompt share. With --against, both answer the same prompts: differences by prompt, with a bootstrap
    interval and a sign test. Of a comparison, every finished cell, its start and its experts are measured, with every seed;
    what has been measured is kept in it and not measured again.

    \b
    Examples:
      understudy evaluate runs/nail-f --split test --prompts 2000
      understudy evaluate models/tiny --recipe recipes/gsm8k-local --json
      understudy evaluate runs/grpo --against runs/sft --samples 16 --set evaluate.ks=[1,4,16]
      understudy evaluate responses.jsonl --grader gsm8k --out grades.jsonl
      understudy evaluate runs/modular-addition --split test --prompts 512
    """
    if (place / "compare.json").is_file():
        refused = {"--recipe": recipe, "--grader": grader, "--of-set": of_set, "--seed": seed, "--out": out}
        return _comparison(
            place, against, refused, _settings(changes, prompts, samples), split=split, as_json=as_json
        )
    given = {"--split": split, "--prompts": prompts, "--samples": samples}
    is_file = _is_file(place)
    measure = _files if is_file else _checkpoints
    if is_file:
        for flag, value in given.items():
            if value is not None:
                raise typer.BadParameter(f"{flag} chooses what a checkpoint answers; {place} holds answers.")
        if recipe is None and changes:
            raise typer.BadParameter("--set changes a recipe; give --recipe.")
    elif grader is not None or of_set is not None:
        flag, instead = ("--grader", "is graded by its recipe's task")
        if grader is None:
            flag, instead = ("--of-set", "is measured on all of its sets")
        raise typer.BadParameter(f"{flag} is for a file of responses; {place} {instead}.")
    if against is not None and out is not None:
        raise typer.BadParameter("--out writes the responses of one; leave out --against.")
    if out is not None and out.resolve() == place.resolve():
        raise typer.BadParameter(f"--out would replace {place} itself; give another file.")
    if against is not None and _is_file(against) != is_file:
        raise typer.BadParameter("--against takes two checkpoints or two .jsonl files, not one of each.")
    settings = _settings(changes, prompts, samples, seed)
    places = [place] if against is None else [place, against]
    options: dict[str, Any] = {"recipe": recipe, "settings": settings, "keeps": out is not None}
    options |= (
        {"grader": grader, "of_set": of_set or ""}
        if is_file
        else {"split": (split or SplitName.validation).value}
    )
    where, found = measure(places, **options)
    if out is not None:
        _write(out, [row for each in found for row in each.responses])
    if against is None:
        return _show(found[0], where, as_json=as_json)
    from understudy.evaluation.paired import compare_evaluations

    differences = compare_evaluations(found[0].by_prompt, found[1].by_prompt, seed=seed or 0)
    return _show_differences(differences, places, where, as_json=as_json)


def _settings(
    changes: list[str] | None, prompts: int | None, samples: int | None, seed: int | None = None
) -> list[str]:
    """What the flags change in the recipe, as --set does."""
    extra = {"evaluate.prompts": prompts, "evaluate.samples_per_prompt": samples, "seed": seed}
    return [*(changes or ()), *(f"{key}={value}" for key, value in extra.items() if value is not None)]


_INSTEAD = {
    "--recipe": "is measured with its own recipe; change that with --set",
    "--grader": "is graded by its recipe's task",
    "--of-set": "is measured on all of its sets",
    "--seed": "is measured with the seeds of its cells",
    "--out": "keeps what it measures in itself; to write responses, evaluate one of its cells",
}


def _comparison(
    place: Path,
    against: Path | None,
    refused: dict[str, Any],
    settings: list[str],
    *,
    split: SplitName | None,
    as_json: bool,
) -> None:
    for flag, value in refused.items():
        if value is not None:
            raise typer.BadParameter(f"{flag}: {place} is a comparison, which {_INSTEAD[flag]}.")
    from understudy.cli.held_out import show_comparison
    from understudy.comparison_evaluation import evaluate_comparison

    name: Any = (split or SplitName.validation).value
    label = None if against is None else str(against)
    record = evaluate_comparison(place, split=name, overrides=settings, against=label)
    show_comparison(record, place, as_json=as_json)


def _is_file(place: Path) -> bool:
    return place.is_file() or place.suffix == ".jsonl"


def _checkpoints(
    places: list[Path], *, recipe: str | None, settings: list[str], split: Any, keeps: bool
) -> tuple[dict[str, Any], list[Evaluation]]:
    from understudy.measure import checkpoint_and_recipe, checkpoint_in, evaluate_checkpoint

    first, chosen = checkpoint_and_recipe(places[0], recipe, settings)
    checkpoints = [first, *map(checkpoint_in, places[1:])]
    found = [evaluate_checkpoint(c, chosen, split=split, keeps_responses=keeps) for c in checkpoints]
    return {"checkpoint": str(first), "recipe": chosen.name, "split": split}, found


def _files(
    places: list[Path],
    *,
    recipe: str | None,
    settings: list[str],
    grader: GraderChoice | None,
    of_set: str,
    keeps: bool,
) -> tuple[dict[str, Any], list[Evaluation]]:
    from understudy.config import load_recipe
    from understudy.evaluation.responses import refuse_other_prompts
    from understudy.measure import evaluate_responses

    chosen = None if recipe is None else load_recipe(recipe, settings)
    name: Any = None if grader is None else grader.value
    found = [evaluate_responses(place, recipe=chosen, grader=name, of_set=of_set) for place in places]
    if len(found) == 2:
        refuse_other_prompts(*found)
    return {"responses": str(places[0]), "recipe": chosen and chosen.name, "grader": name}, found


def _write(out: Path, rows: list[dict[str, Any]]) -> None:
    import json

    from understudy.errors import ConfigError
    from understudy.files import finite

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(json.dumps(finite(row)) + "\n" for row in rows), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}. Choose another --out.") from None


def _show(found: Evaluation, where: dict[str, Any], *, as_json: bool) -> None:
    metrics = {
        name: {"mean": m.value, "low": m.low, "high": m.high, "n": m.n} for name, m in found.metrics.items()
    }
    if as_json:
        return say_json({**where, "metrics": metrics})
    say_table(METRIC_HEADERS, [metric_cells(name, metrics[name]) for name in _told_once(metrics)])
    return say(f"\n{_what(where)}")


def _told_once(metrics: Iterable[str]) -> list[str]:
    """Without avg@1, pass@1 and majority@1 beside the accuracy of the same samples, which they are."""
    names = list(metrics)
    return [
        name
        for name in names
        if not name.endswith("@1")
        or not {f"{name.rpartition('/')[0]}/{of}".lstrip("/") for of in ("accuracy", "accuracy_sampled")}
        & set(names)
    ]


def _what(where: dict[str, Any]) -> str:
    if "responses" in where:
        by = where["grader"] or f"the task of {where['recipe']}"
        return f"{where['responses']}, graded by {by}"
    return f"{where['checkpoint']} on the {where['split']} prompts of {where['recipe']}"


DIFFERENCE_HEADERS = (
    "metric",
    "A",
    "B",
    "A - B",
    "95 % interval",
    "prompts",
    "A > B",
    "A < B",
    "p",
    "A is",
)


def _show_differences(
    differences: dict[str, Paired], places: list[Path], where: dict[str, Any], *, as_json: bool
) -> None:
    if as_json:
        both = {"a": str(places[0]), "b": str(places[1])}
        return say_json({**where, **both, "metrics": {name: p.to_json() for name, p in differences.items()}})
    rows = []
    for name in _told_once(differences):
        p = differences[name]
        low, high = p.difference.low, p.difference.high
        interval = "-" if low is None or high is None else f"{low:+.4f} to {high:+.4f}"
        cells = (name, f"{p.value_a:.4f}", f"{p.value_b:.4f}", f"{p.difference.value:+.4f}", interval)
        rows.append(
            (
                *cells,
                str(p.difference.n),
                str(p.num_higher),
                str(p.num_lower),
                f"{p.p_verdict:.3g}",
                p.verdict,
            )
        )
    say_table(DIFFERENCE_HEADERS, rows)
    say(f"\nA: {_what(where)}")
    say(f"B: {places[1]}, on the same prompts. Means are over prompts.")
    return say("p: exact sign test where all values are 0 or 1, else sign flips of the mean difference.")
