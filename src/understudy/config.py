"""From a file to a checked recipe, and from one recipe to those of its warm start, its expert and its cells.

Combinations that cannot run are refused here, before any model is loaded. The settings themselves: `schema`.
"""

from __future__ import annotations

import copy
import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from understudy.errors import ConfigError
from understudy.methods import Method, method_named
from understudy.schema import (
    AbsorbingNoise,
    CompareConfig,
    CorruptedArgmaxNoise,
    MethodConfig,
    ModularAdditionTask,
    Recipe,
    StopConfig,
    TemperatureNoise,
    require,
)
from understudy.settings import flatten, from_table, set_dotted, to_table


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Recipe:
    """Read a recipe (a folder with recipe.toml, or a TOML file), apply overrides, check it.

    Args:
        path: folder or file. Relative paths inside a recipe are relative to the current directory.
        overrides: {"train.steps": 10} or ["train.steps=10"]; values of strings are read as TOML.
    Raises:
        ConfigError: no such file, not TOML, an unknown key, a wrong type, or a combination that cannot run.
    """
    file = Path(path)
    file = file / "recipe.toml" if file.is_dir() else file
    table = _read_toml(file, seen=())
    if not isinstance(overrides, Mapping):
        overrides = dict(parse_override(text) for text in overrides)
    try:
        return recipe_from_table(table, overrides)
    except ConfigError as error:
        raise ConfigError(f"{error} ({file})") from None


def _read_toml(file: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The table of a file; `extends = "other.toml"` (beside it) takes another recipe's settings where it has none.

    A [compare] table replaces the other's whole.
    """
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        place = file.parent if file.name == "recipe.toml" or file.suffix else file
        names = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
        close = difflib.get_close_matches(place.name, names, n=1)
        hint = f"Did you mean {place.parent / close[0]}? " if close and close[0] != place.name else ""
        raise ConfigError(
            f"no recipe at {file}. {hint}Give a folder that holds recipe.toml, or a .toml file."
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {file}: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}.") from None
    base = table.pop("extends", None)
    if base is None:
        return table
    if file in seen or not isinstance(base, str):
        raise ConfigError(f"extends must name another recipe file, got {base!r} ({file}).")
    return _merged(_read_toml(file.parent / base, (*seen, file)), table)


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        # A comparison is taken whole: the base's cells are not wanted beside the new ones.
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping) and key != "compare"
        merged[key] = _merged(base[key], value) if both else value
    return merged


def parse_override(text: str) -> tuple[str, Any]:
    """`train.steps=10` -> ("train.steps", 10). What is not TOML is taken as a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set takes key=value, such as train.steps=100; got {text!r}.")
    try:
        return key.strip(), tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def recipe_from_table(table: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A checked recipe from nested plain dicts; dotted overrides win. None as a value removes a setting."""
    table = copy.deepcopy(dict(table))
    for key, value in (overrides or {}).items():
        set_dotted(table, key, value)
    recipe = from_table(Recipe, _without_none(table))
    check_recipe(recipe)
    return recipe


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _without_none(v) if isinstance(v, Mapping) else v for k, v in table.items() if v is not None}


def check_recipe(recipe: Recipe) -> None:
    """Refuse what cannot run, before a model is loaded; each message says which two settings disagree."""
    method = method_named(recipe.method.name)
    _check_method(recipe, method)
    _check_expert(recipe, method)
    _check_metrics(recipe)
    if recipe.warm_start is not None and recipe.warm_start.method is not None:
        first = warm_start_recipe(recipe)
        assert first is not None
        check_recipe(first)
    if recipe.checkpoint.every_steps % recipe.train.steps_per_round:
        raise ConfigError(
            f"checkpoint.every_steps must be a multiple of train.steps_per_round, got {recipe.checkpoint.every_steps} and "
            f"{recipe.train.steps_per_round}: a checkpoint inside a round would lose the rest of its trajectories."
        )
    if recipe.compare is not None:
        _check_compare(recipe.compare)
        for label in recipe.compare.methods:
            try:
                cell_recipe(recipe, label, recipe.compare.seeds[0])
            except ConfigError as error:
                raise ConfigError(f"compare.methods, {label}: {error}") from None


def _check_method(recipe: Recipe, method: Method) -> None:
    given = {k: v for k, v in to_table(recipe.method).items() if k not in ("name", "estimator")}
    for option in given:
        if option not in method.options:
            allowed = ", ".join(sorted(method.options)) or "none"
            raise ConfigError(f"method.{option} is not an option of {method.name} (its options: {allowed}).")
    estimator = recipe.method.estimator
    if estimator is not None and estimator not in method.estimators:
        have = " and ".join(method.estimators)
        raise ConfigError(
            f"method.estimator = {estimator!r} is not offered by {method.name} (it has: {have}). {method.hint}"
        )
    method.check_options(given)
    _check_channel(recipe, method)
    if recipe.rollouts.drafts == "coupled" and method.objective(estimator).needs_student_tokens:
        raise ConfigError(
            f"rollouts.drafts = 'coupled' does not fit {method.name}: a policy gradient is right on average over fresh samples "
            "of the student, and coupled draws come again each epoch. Use 'auto'."
        )


def _check_channel(recipe: Recipe, method: Method) -> None:
    if not method.uses_channel:
        return
    noise = recipe.expert.noise if recipe.expert else None
    if noise is None or isinstance(noise, TemperatureNoise):
        found = "no noise" if noise is None else "temperature noise"
        raise ConfigError(
            f"{method.name} pushes the student through a known noise channel and needs expert.noise.law = additive, "
            f"corrupted-argmax or absorbing; found {found}. Use {method.plain} instead."
        )
    is_other = isinstance(noise, CorruptedArgmaxNoise) or (
        isinstance(noise, AbsorbingNoise) and noise.error == "other"
    )
    if is_other and recipe.expert is not None and recipe.expert.kind == "local":
        raise ConfigError(
            f"{method.name} needs noise that is a channel, and noise that avoids the argmax is one only for an expert that is "
            "sure of its token (an oracle). Use expert.noise.law = 'additive', or 'absorbing' with error = 'uniform'."
        )


def _check_expert(recipe: Recipe, method: Method) -> None:
    needs = method.needs_expert(
        recipe.method.estimator, offline_is_reference=recipe.data.offline == "reference"
    )
    if needs and recipe.expert is None:
        raise ConfigError(f"{method.name} asks an expert for {needs} and the recipe has no [expert] table.")
    if recipe.expert is None:
        return
    if recipe.expert.kind == "oracle" and not isinstance(recipe.task, ModularAdditionTask):
        raise ConfigError(
            f"expert.kind = 'oracle' needs a task with an exact law; task.kind = {recipe.task.kind!r} has none."
        )


def _check_metrics(recipe: Recipe) -> None:
    """A metric that decides something must be measured."""
    asked = {"evaluate.best_metric": recipe.evaluate.best_metric}
    asked["stop.metric"] = recipe.stop.metric if recipe.stop is not None else None
    for setting, metric in asked.items():
        if metric in ("accuracy_sampled", "expert_kl_nats", "reverse_expert_kl_nats"):
            require(
                recipe.evaluate.sampled,
                f"{setting} = {metric!r} is measured only with evaluate.sampled = true.",
            )
        if metric in ("expert_kl_nats", "reverse_expert_kl_nats"):
            require(
                recipe.evaluate.expert_kl,
                f"{setting} = {metric!r} is measured only with evaluate.expert_kl = true.",
            )
            require(recipe.expert is not None, f"{setting} = {metric!r} needs an [expert] table.")


def _check_compare(compare: CompareConfig) -> None:
    require(len(compare.methods) > 0, "compare.methods is empty.")
    require(len(compare.seeds) > 0, "compare.seeds is empty.")
    require(compare.workers > 0, f"compare.workers must be > 0, got {compare.workers}.")
    require(
        all(seed >= 0 for seed in compare.seeds), f"compare.seeds must be >= 0, got {list(compare.seeds)}."
    )
    for group in (compare.methods, compare.seeds):
        require(len(set(group)) == len(group), f"compare lists something twice: {list(group)}.")
    for label in compare.methods:
        harmless = label == label.strip() and label and all(c.isalnum() or c in " ._=+-" for c in label)
        require(
            bool(harmless) and not label.startswith("."),
            f"compare.methods names folders; use letters, digits, spaces and . _ = + - only, got {label!r}.",
        )
    for label, settings in compare.overrides.items():
        require(label in compare.methods, f"compare.overrides.{label} names no entry of compare.methods.")
        for key in flatten(settings):
            section = key.split(".")[0]
            allowed = ("method", "optimizer", "train", "stop", "data")
            require(section in allowed, f"compare.overrides.{label} may set {', '.join(allowed)}, not {key}.")
    for label in compare.methods:
        name = flatten(compare.overrides.get(label, {})).get("method.name", label)
        method_named(str(name))


def cell_recipe(recipe: Recipe, label: str, seed: int) -> Recipe:
    """The recipe of one cell of a comparison: that method and seed, that cell's overrides, nothing else changed.

    What the recipe's [method] table sets holds for every cell whose row has it.
    """
    assert recipe.compare is not None
    overrides = flatten(recipe.compare.overrides.get(label, {}))
    row = method_named(str(overrides.get("method.name", label)))
    table = recipe.to_table()
    kept = {k: v for k, v in table["method"].items() if k in row.options or v in row.estimators}
    table["method"] = {**kept, "name": row.name}
    table.pop("compare")
    return recipe_from_table(table, {**overrides, "seed": seed})


def narrowed(
    recipe: Recipe, *, methods: Sequence[str] | None = None, seeds: Sequence[int] | None = None
) -> Recipe:
    """The recipe with other methods or seeds to compare; overrides of methods that are left out go with them.

    Raises:
        ConfigError: an unknown method, a combination that cannot run, something listed twice, or nothing to compare.
    """
    if methods is None and seeds is None:
        return recipe
    if recipe.compare is None and methods is None:
        raise ConfigError(f"recipe {recipe.name} has no [compare] table, so the methods must be given.")
    compare = recipe.compare or CompareConfig(methods=tuple(methods or ()))
    chosen = compare.methods if methods is None else tuple(methods)
    compare = replace(
        compare,
        methods=chosen,
        seeds=compare.seeds if seeds is None else tuple(seeds),
        overrides={label: table for label, table in compare.overrides.items() if label in chosen},
    )
    recipe = replace(recipe, compare=compare)
    check_recipe(recipe)
    return recipe


def expert_recipe(recipe: Recipe) -> tuple[Recipe, Path] | None:
    """The run that makes the expert and its folder, if the recipe names one and its checkpoint is not there yet."""
    expert = recipe.expert
    if (
        expert is None
        or expert.recipe is None
        or expert.checkpoint is None
        or Path(expert.checkpoint).is_dir()
    ):
        return None
    first = replace(load_recipe(expert.recipe), task=recipe.task)
    check_recipe(first)
    return first, Path(expert.checkpoint).parent


def warm_start_recipe(recipe: Recipe) -> Recipe | None:
    """The run that comes before the method, as a recipe of its own; None where there is none to run.

    It takes the recipe's optimiser at a constant rate and stops on teacher-forced accuracy, so that every method of a
    comparison starts from one and the same student.
    """
    warm = recipe.warm_start
    if warm is None or warm.method is None:
        return None
    target = warm.until_teacher_forced_accuracy
    return replace(
        recipe,
        method=MethodConfig(name=warm.method),
        data=replace(recipe.data, offline=warm.offline or recipe.data.offline),
        train=replace(recipe.train, steps=warm.max_steps),
        optimizer=replace(recipe.optimizer, schedule="constant", final_rate=0.0),
        evaluate=replace(
            recipe.evaluate,
            every_steps=warm.check_every_steps,
            sampled=False,
            expert_kl=False,
            best_metric=None,
        ),
        stop=None if target is None else StopConfig(metric="teacher_forced_accuracy", target=target),
        warm_start=None,
        compare=None,
    )
