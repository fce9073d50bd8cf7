"""Measure a checkpoint as a run would measure its student, without training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from understudy.build import build, device_of
from understudy.config import load_recipe, parse_override, recipe_from_table
from understudy.errors import ConfigError
from understudy.evaluation.score import Evaluation, evaluate
from understudy.experts.expert import Expert
from understudy.experts.noisy import Noise
from understudy.processor import choose_threads
from understudy.run import read_json
from understudy.schema import Recipe
from understudy.tasks.task import Split, Task
from understudy.wiring import evaluation_plan, limits_of


def evaluate_checkpoint(
    checkpoint: str | Path,
    recipe: Recipe,
    *,
    split: Split = "validation",
    task: Task | None = None,
    expert: Expert | None = None,
    noise: Noise | None = None,
) -> Evaluation:
    """What the evaluator of `recipe` says about a checkpoint, on the first `recipe.evaluate.prompts` of a split.

    On the validation split, with the run's own recipe, these are the numbers of the run's last evaluation.

    Args:
        task, expert, noise: own objects in place of the recipe's.
    Raises:
        ConfigError, DataError, ModelError: one sentence on what does not fit.
    """
    # A checkpoint holds merged weights: adapters on top of it would only cost time.
    recipe = replace(recipe, student=replace(recipe.student, lora=None))
    torch.set_num_threads(choose_threads(recipe.train.threads))
    parts = build(
        recipe, device=device_of(recipe), checkpoint=str(checkpoint), task=task, expert=expert, noise=noise
    )
    plan = evaluation_plan(recipe, parts, limits_of(recipe, parts), split)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.train.mixed_precision)
    with torch.autocast(device_of(recipe).type, dtype=dtype, enabled=dtype is not None):
        return evaluate(parts.student, plan)


def checkpoint_and_recipe(
    place: str | Path, recipe: str | Path | None, overrides: Mapping[str, object] | Sequence[str] = ()
) -> tuple[Path, Recipe]:
    """The checkpoint folder and recipe that a user means by a checkpoint or run folder, and perhaps a recipe.

    Raises:
        ConfigError: no such folder, an unfinished run, or a checkpoint without a recipe.
    """
    place = Path(place)
    described = place / "recipe.json"
    is_run = described.is_file()
    if not place.is_dir():
        raise ConfigError(
            f"no checkpoint or run folder at {place}. Give a folder with config.json, or a run folder."
        )
    if is_run and not (place / "final").is_dir():
        raise ConfigError(
            f"{place} has no final checkpoint: the run is not finished. Go on with it (train --resume), or give one of "
            f"its checkpoints below {place / 'checkpoints'}."
        )
    own = read_json(place / "own.json") if is_run else {}
    if own and recipe is None:
        raise ConfigError(
            f"{place} was trained with own objects ({', '.join(own)}), which its recipe cannot name. Evaluate it in Python: "
            "understudy.evaluate_checkpoint(checkpoint, recipe, "
            + ", ".join(f"{name}=..." for name in own)
            + ")."
        )
    checkpoint = place / "final" if is_run else place
    if recipe is not None:
        return checkpoint, load_recipe(recipe, overrides)
    if not is_run:
        raise ConfigError(f"{place} is a checkpoint without a recipe. Say what to measure with --recipe.")
    if not isinstance(overrides, Mapping):
        overrides = dict(parse_override(text) for text in overrides)
    return checkpoint, recipe_from_table(json.loads(described.read_text(encoding="utf-8")), overrides)
