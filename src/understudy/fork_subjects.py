"""Whose forks are looked for: the student and expert of a run or a recipe, its responses, and where what is found is kept.

What has been written and measured lies in `parts/` of a folder, under a key of everything that decides it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from understudy import __version__
from understudy.build import build, device_of
from understudy.config import filled, given_options, load_recipe, parse_override, placed
from understudy.diagnostics.fork_probe import Looking, Pair, token_losses
from understudy.diagnostics.local_correction import Correcting
from understudy.errors import ConfigError
from understudy.evaluation.sample import rollouts
from understudy.experts.local import fingerprint
from understudy.experts.vectors import Embedding
from understudy.files import sha256_of, write_json
from understudy.measure import checkpoint_and_recipe
from understudy.methods import method_named
from understudy.plans import evaluation_plan
from understudy.processor import choose_threads
from understudy.records import Prompt, Trajectory
from understudy.run import make_missing, read_json
from understudy.schema import Recipe
from understudy.tasks.task import Split, Task
from understudy.wiring import limits_of

PARTS = "parts"
SHOWN_PREFIX_TOKENS = 60
"""Of the text before a token, what a page shows."""


@dataclass(frozen=True, kw_only=True)
class Probing:
    """What is probed: tokens of student responses to held-out prompts. None: as the recipe's near-future method says; where its
    method is another one, as that row of the table of methods does."""

    split: Split = "validation"
    per_group: int = 200
    quantile: float | None = None
    """Of a response's losses: tokens at or above it are high, and as many from below are low."""
    window_tokens: int | None = None
    temperature: float | None = None
    """Of both writers' windows."""
    embedding: Embedding | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`Probing` with nothing left open, and how a correction is made."""

    split: Split
    per_group: int
    quantile: float
    spacing: int
    looking: Looking
    correcting: Correcting


def settings_of(probing: Probing, recipe: Recipe, *, steps: int = 5) -> Settings:
    """What is left open is taken from the recipe's near-future method, or from that row of the table.

    Raises:
        ConfigError: a setting out of its range.
    """
    row = method_named("near-future")
    is_own = recipe.method.name == row.name
    options = row.resolve_options(given_options(recipe) if is_own else {})
    quantile = options["candidate_quantile"] if probing.quantile is None else probing.quantile
    optimizer = recipe.optimizer
    looking = Looking(
        window_tokens=options["window_tokens"] if probing.window_tokens is None else probing.window_tokens,
        temperature=options["window_temperature"] if probing.temperature is None else probing.temperature,
        embedding=probing.embedding or options["embedding"],
    )
    settings = Settings(
        split=probing.split,
        per_group=probing.per_group,
        # A recipe may choose candidates by their nats instead.
        quantile=row.options["candidate_quantile"] if quantile is None else quantile,
        spacing=options["candidate_spacing"],
        looking=looking,
        correcting=Correcting(
            steps=steps,
            looking=looking,
            **{name: options[name] for name in ("window_weight", "plan", "regularisation", "targets")},
            betas=(optimizer.betas[0], optimizer.betas[1]),
            weight_decay=optimizer.weight_decay,
            clip_norm=optimizer.clip_norm,
        ),
    )
    require_setting(settings.per_group >= 2, "--per-group", "at least 2", settings.per_group)
    require_setting(0 <= settings.quantile < 1, "--quantile", "in [0, 1)", settings.quantile)
    require_setting(looking.window_tokens >= 1, "--window", "at least 1", looking.window_tokens)
    require_setting(0 <= looking.temperature < math.inf, "--temperature", "at least 0", looking.temperature)
    require_setting(steps >= 1, "--steps", "at least 1", steps)
    return settings


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is to be probed: the student of a run or of a recipe, and the recipe with its expert and task."""

    place: str
    recipe: Recipe
    seed: int
    """Of what is drawn. A run keeps its own in the paths of its recipe."""
    checkpoint: str | None
    """The student's weights; None: what the recipe's student table says."""
    folder: Path
    """Where results go unless told otherwise."""
    is_run: bool


def subject_of(
    place: str | Path, overrides: Mapping[str, Any] | Sequence[str] = (), seed: int | None = None
) -> Subject:
    """The student and the recipe that a run folder or a recipe stands for.

    Raises:
        ConfigError: it is neither, or there is no expert to compare with.
    """
    path = Path(place)
    if not isinstance(overrides, Mapping):
        overrides = dict(parse_override(text) for text in overrides)
    if (path / "compare.json").is_file():
        raise ConfigError(f"{path} holds a comparison. Give the folder of one of its cells, or its recipe.")
    find = _of_run if (path / "recipe.json").is_file() else _of_recipe
    found = find(path, overrides, seed)
    if found.recipe.expert is None:
        raise ConfigError(
            f"{place} has no expert, and a fork is where the student leaves one. Add an [expert] table."
        )
    return found


def _of_run(path: Path, overrides: Mapping[str, Any], seed: int | None) -> Subject:
    if own := read_json(path / "own.json"):
        raise ConfigError(
            f"{path} was trained with own objects ({', '.join(own)}), which its recipe cannot name: it cannot be probed."
        )
    checkpoint, recipe = checkpoint_and_recipe(path, None, overrides)
    return Subject(
        place=str(path),
        recipe=recipe,
        seed=recipe.seed if seed is None else seed,
        checkpoint=str(checkpoint),
        folder=path / "forks",
        is_run=True,
    )


def _of_recipe(path: Path, overrides: Mapping[str, Any], seed: int | None) -> Subject:
    if path.is_dir() and not (path / "recipe.toml").is_file():
        raise ConfigError(
            f"{path} holds neither a run (recipe.json) nor a recipe (recipe.toml). Give one of the two; for a checkpoint, a "
            f"recipe with its expert and --set student.checkpoint={path}."
        )
    recipe = load_recipe(path, {**overrides, **({} if seed is None else {"seed": seed})})
    warm = recipe.warm_start
    if warm is not None and warm.checkpoint is None:
        raise ConfigError(
            f"the student of {path} comes out of a warm start, which is part of a run. Train it (understudy train {path}) and "
            "give the run's folder, or its folder warm_start for the student before the method."
        )
    return Subject(
        place=str(path),
        recipe=recipe,
        seed=recipe.seed,
        checkpoint=None if warm is None else warm.checkpoint,
        folder=Path("runs") / f"{recipe.name}-forks",
        is_run=False,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """Models and prompts at hand."""

    pair: Pair
    task: Task
    prompts: Sequence[Prompt]
    samples: int
    key: str
    """Of everything that decides what is written and what it costs, but how many prompts and samples."""


@contextmanager
def ready(
    subject: Subject, settings: Settings, console: Console, *, keeps_lora: bool = False
) -> Iterator[Scene]:
    """Load what is there, train what is not, and compute in the precision of training."""
    recipe, expert = subject.recipe, subject.recipe.expert
    assert expert is not None, "refused before"
    if expert.kind == "oracle" and settings.looking.embedding != "student":
        raise ConfigError(
            f"the expert of {subject.place} is an exact law (expert.kind = 'oracle') and has no embedding table to compare words "
            "by. Give --embedding student."
        )
    is_there = Path(filled(expert.checkpoint, recipe.seed) or "").is_dir()
    if not (subject.is_run and is_there):
        make_missing(recipe, console, ("expert",) if subject.is_run else ("student", "expert"))
    recipe = replace(placed(recipe), seed=subject.seed)
    if not keeps_lora:
        # What is only read needs no adapters: new ones add nothing, and a run's checkpoint holds merged weights.
        recipe = replace(recipe, student=replace(recipe.student, lora=None))
    torch.set_num_threads(choose_threads(recipe.train.threads))
    device = device_of(recipe)
    parts = build(recipe, device=device, checkpoint=subject.checkpoint)
    assert parts.expert is not None
    plan = evaluation_plan(recipe, parts, limits_of(recipe, parts), settings.split)
    pair = Pair(
        student=parts.student.eval(),
        expert=parts.expert,
        vocab_size=parts.vocab_size,
        limits=plan.limits,
        seed=recipe.seed,
        batch_size=plan.batch_size,
    )
    key = key_of(
        __version__,
        [fingerprint(parts.student), parts.expert.identity, parts.task.identity],
        [plan.limits.max_new_tokens, sorted(plan.limits.eos_ids), plan.limits.stop_strings],
        [settings.split, recipe.seed, parts.vocab_size, recipe.train.mixed_precision, device.type],
    )
    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.train.mixed_precision)
    with torch.autocast(device.type, dtype=mixed, enabled=mixed is not None):
        yield Scene(
            pair=pair,
            task=parts.task,
            prompts=plan.prompts,
            samples=plan.samples_per_prompt,
            key=key,
        )


@dataclass(frozen=True, kw_only=True)
class Written:
    """Student responses with the loss of every token."""

    trajectories: list[Trajectory]
    losses: list[list[float]]
    seconds: dict[str, float]
    key: str


def written_by(scene: Scene, folder: Path, hint: Callable[[str], None]) -> Written:
    """Every prompt answered at temperature 1, and every token scored; kept, and read where it is there."""
    key = key_of(scene.key, "rollouts", [p.id for p in scene.prompts], scene.samples)
    file = part_file(folder, "rollouts", key)
    record = kept_record(file, key)
    if record is None:
        pair, started = scene.pair, time.perf_counter()
        hint("writing responses")
        made = rollouts(
            pair.student,
            scene.prompts,
            vocab_size=pair.vocab_size,
            limits=pair.limits,
            temperature=1.0,
            samples_per_prompt=scene.samples,
            batch_size=pair.batch_size,
            seed=pair.seed,
        )
        hint("scoring tokens")
        wrote = time.perf_counter()
        losses = token_losses(pair, made)
        record = {
            "key": key,
            "seconds": {"rollouts": wrote - started, "scoring": time.perf_counter() - wrote},
            "responses": [
                {"prompt": t.prompt.id, "sample": t.sample_index, "finish": t.finish}
                | {"ids": t.response_ids, "losses": row}
                for t, row in zip(made, losses, strict=True)
            ],
        }
        write_json(file, record)
    prompts = {prompt.id: prompt for prompt in scene.prompts}
    return Written(
        trajectories=[_trajectory(prompts[row["prompt"]], row) for row in record["responses"]],
        losses=[row["losses"] for row in record["responses"]],
        seconds=record["seconds"],
        key=key,
    )


def _trajectory(prompt: Prompt, row: Mapping[str, Any]) -> Trajectory:
    ids = tuple(row["ids"])
    return Trajectory(
        prompt=prompt,
        sample_index=row["sample"],
        response_ids=ids,
        is_student=(True,) * len(ids),
        logp=(math.nan,) * len(ids),
        temperature=1.0,
        finish=row["finish"],
        round=0,
        student_version=0,
    )


# --- where it is kept -------------------------------------------------------------------------------------------------


def folder_for(subject: Subject, out: str | Path | None) -> Path:
    """Where results go; a folder that belongs to something else is refused."""
    folder = subject.folder if out is None else Path(out)
    for mark in ("recipe.json", "compare.json", "theory.json", "discrepancy.json"):
        if (folder / mark).exists():
            raise ConfigError(f"{folder} holds something else ({mark}). Use another --out.")
    return folder


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot create the folder {folder}: {error}.") from None


def key_of(*parts: Any) -> str:
    return sha256_of(json.dumps(parts, sort_keys=True).encode())


def part_file(folder: Path, name: str, key: str) -> Path:
    place = folder / PARTS
    place.mkdir(exist_ok=True)
    return place / f"{name}-{key[:12]}.json"


def kept_record(file: Path, key: str) -> dict[str, Any] | None:
    """What a file of ours holds; None where it is not there, of something else, or damaged: it is made again."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("key") == key else None


def told_of(subject: Subject, scene: Scene, settings: Settings) -> dict[str, Any]:
    """Whose forks these are, and how they were looked for."""
    expert = subject.recipe.expert
    assert expert is not None
    return {
        "name": subject.recipe.name,
        "place": subject.place,
        "student": subject.checkpoint or filled(subject.recipe.student.checkpoint, subject.recipe.seed),
        "expert": filled(expert.checkpoint, subject.recipe.seed) or expert.kind,
        "seed": subject.seed,
        "num_prompts": len(scene.prompts),
        "samples_per_prompt": scene.samples,
        "settings": probe_table(settings),
    }


def probe_table(settings: Settings) -> dict[str, Any]:
    """The settings of a probe, plain: which tokens, and how far both look."""
    table = asdict(settings)
    return {name: value for name, value in table.items() if name != "correcting"}


def require_setting(is_met: bool, flag: str, what: str, found: object) -> None:
    if not is_met:
        raise ConfigError(f"{flag} must be {what}, got {found}.")
