"""`understudy compare`: methods x seeds under one budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from understudy.cli.options import (
    DryRun,
    Json,
    Out,
    Overwrite,
    RecipePath,
    Resume,
    Set,
    default_out,
    read_recipe,
    refuse_both,
)
from understudy.cli.printing import complain, output, say, say_json


def compare(
    recipe: RecipePath,
    out: Out = None,
    changes: Set = None,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", metavar="N", help="Replaces compare.seeds. Repeatable.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option("--methods", metavar="A,B", help="Replaces compare.methods: names, with commas."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", min=1, help="Runs side by side, one process each.")
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run several methods with several seeds: the same data, evaluator and budget, one shared warm start a seed.

    Ends with a table, a figure and a report. A run that fails does not stop the others; the exit code is then 1.

    \b
    Examples:
      understudy compare recipes/modular-addition
      understudy compare recipes/modular-addition --methods opd-f,nail-f --seed 0 --seed 1 --set train.steps=60
    """
    refuse_both(resume, overwrite)
    from understudy.config import narrowed

    names = None if methods is None else tuple(name.strip() for name in methods.split(",") if name.strip())
    chosen = narrowed(
        read_recipe(recipe, changes), methods=names, seeds=None if seed is None else tuple(seed)
    )
    if dry_run:
        from understudy.resolved import resolved_recipe

        return say(resolved_recipe(chosen).rstrip())
    from understudy.comparison import compare as run

    folder = default_out(out, chosen)
    rows = run(chosen, folder, resume=resume, overwrite=overwrite, workers=workers)
    _print(rows, folder, as_json=as_json)
    return None


def _print(rows: list[dict[str, Any]], folder: Path, *, as_json: bool) -> None:
    from understudy.reports.folders import load_compare
    from understudy.reports.page import write_report
    from understudy.reports.tables import render_compare, stage_rows

    data = load_compare(folder)
    failed = [cell for cell in data.cells if cell.status == "failed"]
    stages = stage_rows(data)
    page = write_report(folder)
    if as_json:
        say_json([*rows, *stages])
    else:
        render_compare(rows, output(), below=stages)
        figure = folder / "figures" / "story.png"
        if figure.exists():
            say(f"\nfigure: {figure}")
        say(f"report: {page}")
    for cell in failed:
        last = (cell.error or "").strip().splitlines()
        complain(f"failed: {cell.label}, seed {cell.seed}: {last[-1] if last else 'no reason was recorded'}")
    if failed:
        raise typer.Exit(1)
