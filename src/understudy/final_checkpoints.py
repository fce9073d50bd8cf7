"""What of a comparison is measured on held-out prompts, and how: where it began, whom it imitated, and where it ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from understudy.config import cell_recipe, filled, parse_override, recipe_from_table
from understudy.errors import ConfigError
from understudy.reports.folders import folder_of
from understudy.reports.held_out import GONE
from understudy.run import read_json
from understudy.schema import DataConfig, ExpertConfig, MethodConfig, Recipe

Kind = Literal["method", "start", "expert"]
Dtype = Literal["float32", "bfloat16", "auto"]
"""As in a table of an expert."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One checkpoint of a comparison, and the recipe it is measured with."""

    label: str
    kind: Kind
    seed: int
    checkpoint: str
    """A folder, or a hub id."""
    recipe: Recipe
    dtype: Dtype = "float32"
    """What it is computed in: an expert in what its labels are."""
    for_all_seeds: bool = False
    """One model, measured with the first seed."""

    @property
    def name(self) -> str:
        return self.label if self.for_all_seeds else f"{self.label}, seed {self.seed}"


@dataclass(frozen=True)
class _Place:
    """A checkpoint that cells began with or imitated."""

    kind: Kind
    written: str
    """As the recipe has it: the same for all seeds."""
    seed: int
    checkpoint: str
    is_made: bool
    """A run of ours writes it: where it is not there, it is gone."""
    dtype: Dtype = "float32"
    for_all_seeds: bool = False


def compared_recipe(folder: Path, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Recipe:
    """The recipe of a comparison with settings changed.

    Raises:
        ConfigError: no comparison there, or one with own objects, which its recipe cannot name.
    """
    if not (folder / "compare.json").is_file():
        raise ConfigError(
            f"{folder} holds no comparison: it has no compare.json. Give the folder that `understudy compare --out` wrote."
        )
    if own := read_json(folder / "own.json"):
        given = ", ".join(f"{name}=..." for name in own)
        raise ConfigError(
            f"{folder} was run with own objects ({', '.join(own)}), which its recipe cannot name. Evaluate its checkpoints in "
            f"Python: understudy.evaluate_checkpoint(checkpoint, recipe, {given})."
        )
    if not isinstance(overrides, Mapping):
        overrides = dict(parse_override(text) for text in overrides)
    return recipe_from_table(read_json(folder / "recipe.json"), overrides)


def entries_of(folder: Path, recipe: Recipe) -> tuple[list[Entry], list[str]]:
    """The checkpoints to measure: every finished cell's last, and the start and the experts, of each seed or one for all.

    All are measured on the recipe's own task with its evaluator, whatever their cells were trained on. Where a shared warm
    start came first, its end is the start. Experts are measured as students are, without the noise of their labels.

    Returns:
        the entries, methods first, each kind in the comparison's order; and in words what is left out.
    Raises:
        ConfigError: no cell is finished.
    """
    cells = read_json(folder / "compare.json").get("cells") or []
    entries: list[Entry] = []
    left_out: list[str] = []
    for cell in sorted(cells, key=lambda cell: [c["label"] for c in cells].index(cell["label"])):
        final = folder / cell["folder"] / "final"
        if cell["status"] == "done" and final.is_dir():
            expert = cell_recipe(recipe, cell["label"], cell["seed"]).expert
            measured = measured_recipe(recipe, cell["seed"], expert)
            found = Entry(
                label=cell["label"],
                kind="method",
                seed=cell["seed"],
                checkpoint=str(final),
                recipe=measured,
            )
            entries.append(found)
        else:
            why = GONE if cell["status"] == "done" else cell["status"]
            left_out.append(f"{cell['label']}, seed {cell['seed']}: {why}")
    if not entries:
        raise ConfigError(
            f"{folder} has no finished cell to measure. Go on with it (understudy compare --resume), then evaluate it."
        )
    labels: dict[tuple[Kind, str], str] = {}
    finished = {entry.seed for entry in entries}
    seeds = [seed for seed in dict.fromkeys(cell["seed"] for cell in cells) if seed in finished]
    methods = list(dict.fromkeys(entry.label for entry in entries))
    for place in _places(folder, recipe, cells, methods, seeds):
        named = (place.kind, place.written)
        if named not in labels:
            labels[named] = _label(place, {*methods, *labels.values()})
        label = labels[named]
        if place.is_made and not Path(place.checkpoint).is_dir():
            whose = label if place.for_all_seeds else f"{label}, seed {place.seed}"
            left_out.append(f"{whose}: its checkpoint {place.checkpoint} is gone")
            continue
        measured = measured_recipe(recipe, place.seed, None)
        found = Entry(
            label=label,
            kind=place.kind,
            seed=place.seed,
            checkpoint=place.checkpoint,
            recipe=measured,
            dtype=place.dtype,
            for_all_seeds=place.for_all_seeds,
        )
        entries.append(found)
    return entries, left_out


def measured_recipe(recipe: Recipe, seed: int, expert: ExpertConfig | None) -> Recipe:
    """The recipe with all that decides what is measured, and nothing about how the checkpoint came to be.

    Args:
        expert: for the KL to it, if the recipe asks for that.
    """
    evaluate = recipe.evaluate
    has_kl = evaluate.sampled and evaluate.expert_kl and expert is not None
    return replace(
        recipe,
        seed=seed,
        student=replace(recipe.student, lora=None),
        expert=expert if has_kl else None,
        evaluate=replace(evaluate, expert_kl=has_kl, best_metric=None),
        # A row that asks nothing of an expert: nothing is trained.
        method=MethodConfig(name="sft"),
        data=DataConfig(offline="reference"),
        warm_start=None,
        stop=None,
        compare=None,
        trackers=(),
    )


def _places(
    folder: Path, recipe: Recipe, cells: Sequence[Mapping[str, Any]], methods: list[str], seeds: list[int]
) -> Iterator[_Place]:
    """Each start and each expert once a seed, starts first; those whose path has no `{seed}` once, with the first seed."""
    seen: set[tuple[Kind, str, int | None]] = set()

    def is_new(kind: Kind, written: str, seed: int) -> bool:
        named = (kind, written, seed if "{seed}" in written else None)
        is_known = named in seen
        seen.add(named)
        return not is_known

    for seed in seeds:
        warm = next((cell.get("warm_start") for cell in cells if cell["seed"] == seed), None)
        written = recipe.warm_start.checkpoint if recipe.warm_start is not None else None
        written = written or recipe.student.checkpoint
        if warm is not None:
            yield _Place("start", "warm start", seed, str(folder / warm / "final"), True)
        elif written is not None and is_new("start", written, seed):
            is_made = written == recipe.student.checkpoint and recipe.student.recipe is not None
            for_all = "{seed}" not in written
            yield _Place("start", written, seed, str(filled(written, seed)), is_made, for_all_seeds=for_all)
    for label in methods:
        for seed in seeds:
            expert = cell_recipe(recipe, label, seed).expert
            if expert is None or expert.checkpoint is None or not is_new("expert", expert.checkpoint, seed):
                continue
            yield _Place(
                "expert",
                expert.checkpoint,
                seed,
                str(filled(expert.checkpoint, seed)),
                expert.recipe is not None,
                dtype=expert.dtype,
                for_all_seeds="{seed}" not in expert.checkpoint,
            )


def _label(place: _Place, taken: set[str]) -> str:
    """`start`, or the name of the recipe that made an expert (else of its folder); with its place where that is taken."""
    name = "start"
    if place.kind == "expert":
        path = Path(place.checkpoint)
        described = read_json(path.parent / "recipe.json").get("name")
        name = str(described or (folder_of(place.written) if path.name == "final" else path.name))
    names = (name, f"{name}, {folder_of(place.written)}", f"{name}, {place.written}")
    return next((name for name in names if name not in taken), names[-1])
