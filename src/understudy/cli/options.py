"""The flags that several commands share, so that one flag means one thing everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from understudy.schema import Recipe

RecipePath = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A folder that holds recipe.toml, or a TOML file.")
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Where to write. [default: runs/<recipe name>]")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as train.steps=100. Repeatable."),
]
Seed = Annotated[
    int | None, typer.Option("--seed", metavar="N", min=0, help="Seed of the run, instead of the recipe's.")
]
OfSet = Annotated[
    str | None,
    typer.Option(
        "--of-set", metavar="NAME", help="Responses to this evaluation set. [default: the recipe's own task]"
    ),
]
Prompts = Annotated[
    int | None,
    typer.Option("--prompts", metavar="N", min=1, help="How many prompts. [default: the recipe's]"),
]
Samples = Annotated[
    int | None,
    typer.Option("--samples", metavar="K", min=1, help="Samples a prompt. [default: the recipe's]"),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from where the folder stands.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete what the folder holds and start anew.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved recipe and stop; no model is loaded.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program instead of text for a person.")]


def read_recipe(path: str, changes: list[str] | None, seed: int | None = None) -> Recipe:
    """The recipe with the changes of the command line."""
    from understudy.config import load_recipe

    return load_recipe(path, [*(changes or ()), *([] if seed is None else [f"seed={seed}"])])


def refuse_both(resume: bool, overwrite: bool) -> None:
    """`--resume` and `--overwrite` contradict each other; guessing one could delete a run."""
    if resume and overwrite:
        raise typer.BadParameter("give either --resume or --overwrite, not both.")


def default_out(out: Path | None, recipe: Recipe) -> Path:
    return out if out is not None else Path("runs") / recipe.name
