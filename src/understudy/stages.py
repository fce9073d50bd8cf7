"""What must be trained before a run: its student's checkpoint and its expert, where a recipe says how and nobody has yet.

A path may hold `{seed}`: runs of different seeds then have each their own, trained with that seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from understudy.config import check_recipe, filled, load_recipe, placed, recipe_from_table
from understudy.errors import ConfigError
from understudy.schema import Recipe, without_server
from understudy.settings import changes

Role = Literal["student", "expert"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A run whose final checkpoint another run begins with or imitates."""

    role: Role
    source: str
    """The recipe file."""
    recipe: Recipe
    folder: Path
    needs: tuple[Path, ...]
    """Folders of the stages that must have ended before this one begins."""

    @property
    def checkpoint(self) -> Path:
        return self.folder / "final"


def missing_stages(recipe: Recipe, *, roles: tuple[Role, ...] = ("student", "expert")) -> list[Stage]:
    """Every run that must come first, what it needs itself included, in an order in which they can run.

    Raises:
        ConfigError: a recipe that is not there or cannot run, one that needs itself, two for one folder, or a folder that
            holds another run than its recipe describes.
    """
    found: dict[Path, Stage] = {}
    _add(recipe, roles, found, ())
    return list(found.values())


def _add(
    recipe: Recipe, roles: tuple[Role, ...], found: dict[Path, Stage], within: tuple[Path, ...]
) -> tuple[Path, ...]:
    """Put the stages that this recipe needs into `found`, first things first; returns the folders of its own."""
    own = []
    for role, checkpoint, source in _named(recipe, roles):
        place = Path(str(filled(checkpoint, recipe.seed)))
        folder, is_there = place.parent, place.is_dir()
        if is_there and not (folder / "recipe.json").exists():
            continue  # no run of ours left it
        if not is_there and folder in within:
            raise ConfigError(
                f"{source} makes {folder} and needs it to begin with. Give one of them another folder."
            )
        first = load_recipe(source)
        if "{seed}" in checkpoint:
            first = replace(first, seed=recipe.seed)
        if role == "expert" and recipe.expert is not None and recipe.expert.task == "shared":
            first = replace(first, task=recipe.task)
        check_recipe(first)
        if is_there:
            _refuse_another(folder, placed(first), source)
            continue
        if folder not in found:
            needs = _add(first, ("student", "expert"), found, (*within, folder))
            found[folder] = Stage(role=role, source=source, recipe=placed(first), folder=folder, needs=needs)
        require_one_recipe(folder, found[folder].recipe, placed(first))
        own.append(folder)
    return tuple(own)


@dataclass(frozen=True, kw_only=True)
class Source:
    """The run that a student's checkpoint or an expert is the end of: its `final`, no checkpoint on the way."""

    checkpoint: str
    """As the recipe has it, `{seed}` included: the same for all seeds."""
    folder: Path


def sources(recipe: Recipe, roles: tuple[Role, ...] = ("student", "expert")) -> dict[Role, Source]:
    """Where the student and the expert of a recipe come from, made already or still to be; a role without a run of ours is
    left out."""
    warm = recipe.warm_start.checkpoint if recipe.warm_start is not None else None
    expert = recipe.expert.checkpoint if recipe.expert is not None else None
    given: dict[Role, str | None] = {"student": warm or recipe.student.checkpoint, "expert": expert}
    to_make = {checkpoint for _, checkpoint, _ in _named(recipe, roles)}
    found: dict[Role, Source] = {}
    for role, checkpoint in given.items():
        if role not in roles or checkpoint is None:
            continue
        place = Path(str(filled(checkpoint, recipe.seed)))
        will_be = checkpoint in to_make and not place.is_dir()
        if will_be or (place.name == "final" and (place.parent / "recipe.json").is_file()):
            found[role] = Source(checkpoint=checkpoint, folder=place.parent)
    return found


def _named(recipe: Recipe, roles: tuple[Role, ...]) -> Iterator[tuple[Role, str, str]]:
    """Checkpoints that a recipe makes: (role, path as written, recipe)."""
    for role, config in (("student", recipe.student), ("expert", recipe.expert)):
        if (
            role in roles
            and config is not None
            and config.checkpoint is not None
            and config.recipe is not None
        ):
            yield role, config.checkpoint, config.recipe


def require_one_recipe(folder: Path, one: Recipe, other: Recipe) -> None:
    """A folder holds one run.

    Raises:
        ConfigError: two that differ are asked for; the message says in what.
    """
    if shown := changes(without_server(one.to_table()), without_server(other.to_table())):
        raise ConfigError(
            f"{folder} would have to hold two runs that differ ({shown}). Give each a folder of its own."
        )


def _refuse_another(folder: Path, wanted: Recipe, source: str) -> None:
    """What is there must be what would be made. Read through today's settings: a default that has come since is no change."""
    try:
        table = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
        before = placed(recipe_from_table(table)).to_table()
        file = folder / "own.json"
        own = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (json.JSONDecodeError, ConfigError) as error:
        raise ConfigError(
            f"the recipe of the run in {folder} cannot be read ({error}). Delete {folder}, or give another folder."
        ) from None
    here, there = {**without_server(before), "own": own}, {**without_server(wanted.to_table()), "own": {}}
    if shown := changes(here, there):
        raise ConfigError(
            f"{folder} holds another run than {source} describes ({shown}). Delete {folder}, and it is trained again, or "
            "give another folder."
        )
