"""`understudy evaluate`: measure a checkpoint."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from understudy.cli.options import Json, Seed, Set
from understudy.cli.printing import METRIC_HEADERS, metric_cells, say, say_json, say_table


class SplitName(StrEnum):
    """Held-out splits."""

    validation = "validation"
    test = "test"


def evaluate(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT", help="A checkpoint folder, or a run folder (then its final one)."
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", metavar="RECIPE", help="Task, expert and evaluator. [default: the run folder's own]"
        ),
    ] = None,
    split: Annotated[
        SplitName, typer.Option("--split", help="Which held-out prompts.")
    ] = SplitName.validation,
    prompts: Annotated[
        int | None,
        typer.Option("--prompts", metavar="N", min=1, help="How many prompts. [default: the recipe's]"),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples", metavar="K", min=1, help="Samples a prompt at temperature 1. [default: the recipe's]"
        ),
    ] = None,
    changes: Set = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Measure a checkpoint with a recipe's task, grader and expert: accuracy, likelihood, exact KL to the expert.

    \b
    Examples:
      understudy evaluate runs/nail-f --split test --prompts 2000
      understudy evaluate models/tiny --recipe recipes/gsm8k-local --json
    """
    from understudy.measure import checkpoint_and_recipe, evaluate_checkpoint

    given = {"evaluate.prompts": prompts, "evaluate.samples_per_prompt": samples, "seed": seed}
    extra = [f"{key}={value}" for key, value in given.items() if value is not None]
    place, chosen = checkpoint_and_recipe(checkpoint, recipe, [*(changes or ()), *extra])
    found = evaluate_checkpoint(place, chosen, split=split.value)
    metrics = {
        name: {"mean": m.value, "low": m.low, "high": m.high, "n": m.n} for name, m in found.metrics.items()
    }
    if as_json:
        where = {"checkpoint": str(place), "recipe": chosen.name, "split": split.value}
        return say_json({**where, "metrics": metrics})
    say_table(METRIC_HEADERS, [metric_cells(name, entry) for name, entry in metrics.items()])
    return say(f"\n{place} on the {split.value} prompts of {chosen.name}")
