"""A recipe as TOML again, with every default written out and, as comments, what the name of its method stands for."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from understudy.config import cell_recipe, warm_start_recipe
from understudy.method_table import plain
from understudy.methods import method_named
from understudy.schema import Recipe
from understudy.stages import missing_stages

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def resolved_recipe(recipe: Recipe) -> str:
    """TOML that `load_recipe` reads back as this same recipe."""
    return "\n".join([*_comments(recipe), "", to_toml(recipe.to_table())])


def expansion(recipe: Recipe) -> str:
    """The method of a recipe, axis by axis, in one line."""
    method = method_named(recipe.method.name)
    estimator = recipe.method.estimator or method.estimators[0]
    given = {name: getattr(recipe.method, name) for name in method.options}
    options = {name: value for name, value in method.resolve_options(given).items() if value is not None}
    prefixes = method.prefixes.text
    if "rollout_temperature" in options:
        prefixes += f", at temperature {options.pop('rollout_temperature'):g}"
    if method.prefixes.is_fixed_data and recipe.data.offline == "reference":
        prefixes = "the task's references (fixed data)"
    parts = [
        f"prefixes: {prefixes}",
        f"loss: {method.objective(estimator).text} ({estimator})",
        f"gate: {method.gate}",
        f"weight: {method.weight}",
        *(f"{name}: {plain(value)}" for name, value in options.items()),
    ]
    return " | ".join(parts)


def _comments(recipe: Recipe) -> list[str]:
    return [*_what_comes_first(recipe), *_what_runs(recipe)]


def _what_comes_first(recipe: Recipe) -> list[str]:
    """Runs that are made before any of this, in order; each once.

    Raises:
        ConfigError: one that cannot be made.
    """
    compare, runs = recipe.compare, [recipe]
    if compare is not None:
        runs = [cell_recipe(recipe, label, seed) for seed in compare.seeds for label in compare.methods]
    stages = {stage.folder: stage for run in runs for stage in missing_stages(run)}
    return [f"# first  {s.role} {s.checkpoint}, which is not there yet: {s.source}" for s in stages.values()]


def _what_runs(recipe: Recipe) -> list[str]:
    first = warm_start_recipe(recipe)
    lines = [] if first is None else [f"# warm start  {first.method.name} = {expansion(first)}"]
    if recipe.compare is None:
        return [*lines, f"# {recipe.method.name} = {expansion(recipe)}"]
    labels, seeds = recipe.compare.methods, recipe.compare.seeds
    runs = f"# {len(labels)} methods x {len(seeds)} seeds = {len(labels) * len(seeds)} runs"
    lines.insert(0, runs + (f", after {len(seeds)} shared warm starts" if first is not None else ""))
    return [*lines, *(f"# {label} = {expansion(cell_recipe(recipe, label, seeds[0]))}" for label in labels)]


def to_toml(table: Mapping[str, Any]) -> str:
    """Nested plain tables as TOML: values first, then one [section] a table, so that any nesting reads back.

    Values are bool, int, float, str, lists of them, and lists of tables; None has no TOML and must have been left out.
    """
    return "\n".join(_section(table, ())).strip() + "\n"


def _section(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    values = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    tables = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in values.items()]
    if path and (lines or not tables):
        lines = ["", f"[{'.'.join(map(_key, path))}]", *lines]
    for key, value in tables.items():
        lines += _section(value, (*path, key))
    return lines


def _inline(table: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{_key(key)} = {_value(value)}" for key, value in table.items()) + "}"


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _text(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return _inline(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    assert isinstance(value, int), f"no TOML for {value!r}"
    return str(value)


def _text(value: str) -> str:
    # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped, and surrogate pairs, which it forbids.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
