"""Measure a checkpoint as a run would measure its student, without training; or responses that are there already."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from understudy.build import build, device_of
from understudy.config import load_recipe, parse_override, recipe_from_table
from understudy.errors import ConfigError
from understudy.evaluation.responses import FILE_GRADERS, FileGrader, grade_responses
from understudy.evaluation.score import Evaluation, evaluate, joined
from understudy.experts.expert import Expert
from understudy.experts.local import is_faster_in_bfloat16
from understudy.experts.noisy import Noise
from understudy.files import write_json
from understudy.plans import evaluation_plan, further_plans
from understudy.processor import choose_threads
from understudy.run import read_json
from understudy.schema import CountdownTask, Gsm8kTask, JsonlTask, Recipe
from understudy.tasks.task import Split, Task
from understudy.wiring import limits_of


def evaluate_checkpoint(
    checkpoint: str | Path,
    recipe: Recipe,
    *,
    split: Split = "validation",
    task: Task | None = None,
    expert: Expert | None = None,
    noise: Noise | None = None,
    keeps_responses: bool = False,
    dtype: Literal["float32", "bfloat16", "auto"] = "float32",
) -> Evaluation:
    """What the evaluator of `recipe` says about a checkpoint, on the first `recipe.evaluate.prompts` of a split.

    On the validation split, with the run's own recipe, these are the numbers of the run's last evaluation, its further
    evaluation sets included. Two checkpoints measured with one recipe answered the same prompts with the same random
    numbers: `evaluation.paired.compare_evaluations(a.by_prompt, b.by_prompt)` says which is better.

    Args:
        task, expert, noise: own objects in place of the recipe's.
        keeps_responses: also return every response with its grade, in `responses`.
        dtype: what the checkpoint is loaded in, as `expert.dtype`: an expert measured as its labels are computed.
    Raises:
        ConfigError, DataError, ModelError: one sentence on what does not fit.
    """
    # A checkpoint holds merged weights: adapters on top of it would only cost time.
    recipe = replace(recipe, student=replace(recipe.student, lora=None))
    torch.set_num_threads(choose_threads(recipe.train.threads))
    parts = build(
        recipe, device=device_of(recipe), checkpoint=str(checkpoint), task=task, expert=expert, noise=noise
    )
    if dtype == "bfloat16" or (dtype == "auto" and is_faster_in_bfloat16(parts.student, device_of(recipe))):
        parts.student.to(torch.bfloat16)
    plan = evaluation_plan(recipe, parts, limits_of(recipe, parts), split)
    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.train.mixed_precision)
    plans = {"": plan, **further_plans(recipe, parts, plan, split)}
    with torch.autocast(device_of(recipe).type, dtype=mixed, enabled=mixed is not None):
        return joined(
            {
                name: evaluate(parts.student, replace(each, keeps_responses=keeps_responses))
                for name, each in plans.items()
            }
        )


def measurement_job(
    recipe: Recipe, checkpoint: str, split: Split, file: Path, head: Mapping[str, Any], *, dtype: str
) -> dict[str, Any]:
    """A measurement as `measure_to_file` reads it, in values that JSON has.

    Args:
        file: what is written, with the fields of `head` first.
        dtype: as for `evaluate_checkpoint`.
    """
    what = {"recipe": recipe.to_table(), "checkpoint": checkpoint, "dtype": dtype}
    return {**what, "split": split, "file": str(file), "head": dict(head)}


def measure_to_file(job: Mapping[str, Any]) -> None:
    """`evaluate_checkpoint`, written atomically: `metrics` as a run logs them, and `by_prompt` (metric -> prompt id -> value).

    Raises:
        ConfigError, DataError, ModelError: as `evaluate_checkpoint`.
    """
    recipe = recipe_from_table(job["recipe"])
    found = evaluate_checkpoint(job["checkpoint"], recipe, split=job["split"], dtype=job["dtype"])
    metrics = found.to_json()["metrics"]
    write_json(Path(job["file"]), {**job["head"], "metrics": metrics, "by_prompt": found.by_prompt})


def checkpoint_and_recipe(
    place: str | Path, recipe: str | Path | None, overrides: Mapping[str, object] | Sequence[str] = ()
) -> tuple[Path, Recipe]:
    """The checkpoint folder and recipe that a user means by a checkpoint or run folder, and perhaps a recipe.

    Raises:
        ConfigError: no such folder, an unfinished run, or a checkpoint without a recipe.
    """
    place = Path(place)
    checkpoint = checkpoint_in(place)
    described = place / "recipe.json"
    is_run = described.is_file()
    own = read_json(place / "own.json") if is_run else {}
    if own and recipe is None:
        raise ConfigError(
            f"{place} was trained with own objects ({', '.join(own)}), which its recipe cannot name. Evaluate it in Python: "
            "understudy.evaluate_checkpoint(checkpoint, recipe, "
            + ", ".join(f"{name}=..." for name in own)
            + ")."
        )
    if recipe is not None:
        return checkpoint, load_recipe(recipe, overrides)
    if not is_run:
        raise ConfigError(f"{place} is a checkpoint without a recipe. Say what to measure with --recipe.")
    if not isinstance(overrides, Mapping):
        overrides = dict(parse_override(text) for text in overrides)
    return checkpoint, recipe_from_table(json.loads(described.read_text(encoding="utf-8")), overrides)


def checkpoint_in(place: Path) -> Path:
    """The checkpoint that a run folder ends in, or the folder itself.

    Raises:
        ConfigError: no such folder, or an unfinished run.
    """
    if not place.is_dir():
        raise ConfigError(
            f"no checkpoint or run folder at {place}. Give a folder with config.json, a run folder, or a .jsonl file of "
            "responses."
        )
    if not (place / "recipe.json").is_file():
        return place
    if not (place / "final").is_dir():
        raise ConfigError(
            f"{place} has no final checkpoint: the run is not finished. Go on with it (train --resume), or give one of "
            f"its checkpoints below {place / 'checkpoints'}."
        )
    return place / "final"


def evaluate_responses(
    path: str | Path, *, recipe: Recipe | None = None, grader: FileGrader | None = None, of_set: str = ""
) -> Evaluation:
    """Grade the responses of a JSON Lines file: see `evaluation.responses.grade_responses`.

    Args:
        recipe: its task says how responses are graded, and its evaluate.ks which k.
        grader: instead of the recipe's; one of the two must be given.
        of_set: as in `grade_responses`.
    Raises:
        ConfigError: no grader, or a task whose responses are no texts.
        DataError: see `grade_responses`.
    """
    own, reference_field = (None, "reference") if recipe is None else _grader_of(recipe)
    chosen = grader or own
    if chosen is None:
        what = "no --recipe and no --grader is given" if recipe is None else _no_grader(recipe)
        raise ConfigError(f"how should {path} be graded? {what}. Give --grader: {', '.join(FILE_GRADERS)}.")
    ks = None if recipe is None or not recipe.evaluate.ks else recipe.evaluate.ks
    return grade_responses(path, chosen, ks=ks, reference_field=reference_field, of_set=of_set)


def _grader_of(recipe: Recipe) -> tuple[FileGrader | None, str]:
    """How the texts of a recipe's task are graded, and the field that holds the reference."""
    task = recipe.task
    if isinstance(task, JsonlTask):
        return task.grader, task.reference_field
    if isinstance(task, Gsm8kTask):
        return "gsm8k", "reference"
    if isinstance(task, CountdownTask):
        return ("countdown" if task.format == "think" else "countdown-compact"), "reference"
    return None, "reference"


def _no_grader(recipe: Recipe) -> str:
    if isinstance(recipe.task, JsonlTask):
        return f"the recipe {recipe.name} sets no task.grader"
    return f"the recipe {recipe.name} has task.kind = {recipe.task.kind!r}, whose responses are not graded as texts"
