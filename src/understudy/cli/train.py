"""`understudy train`: one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from understudy.cli.options import (
    DryRun,
    Json,
    Out,
    Overwrite,
    RecipePath,
    Resume,
    Seed,
    Set,
    default_out,
    read_recipe,
    refuse_both,
)
from understudy.cli.printing import METRIC_HEADERS, is_main_process, metric_cells, say, say_json, say_table

if TYPE_CHECKING:
    from understudy.run import RunResult


def train(
    recipe: RecipePath,
    out: Out = None,
    changes: Set = None,
    seed: Seed = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train one student as a recipe says, from its warm start to its final checkpoint.

    The checkpoint is a Hugging Face folder, OUT/final. Everything about the run is in OUT; `understudy report OUT`
    draws it.

    \b
    Examples:
      understudy train recipes/modular-addition --set method.name=opd-f --out runs/opd-f
      understudy train recipes/modular-addition --dry-run
    """
    refuse_both(resume, overwrite)
    chosen = read_recipe(recipe, changes, seed)
    if dry_run:
        from understudy.resolved import resolved_recipe

        return say(resolved_recipe(chosen).rstrip())
    from understudy.run import train as run

    result = run(chosen, default_out(out, chosen), resume=resume, overwrite=overwrite)
    if is_main_process():
        _print(result, as_json=as_json)
    return None


def _print(result: RunResult, *, as_json: bool) -> None:
    from understudy.reports.folders import load_run
    from understudy.reports.tables import run_rows, short_number

    data = load_run(result.folder)
    row = run_rows(data)[0]
    if as_json:
        found: dict[str, Any] = {
            **row,
            "seed": data.seed,
            "reason": result.reason,
            "seconds": _seconds(result.folder),
        }
        return say_json({**found, "folder": str(result.folder), "checkpoint": str(result.checkpoint)})
    say_table(METRIC_HEADERS, [metric_cells(name, entry) for name, entry in row["metrics"].items()])
    spent = ", ".join(
        f"{short_number(value)} {name.replace('_', ' ')}" for name, value in row["budget"].items()
    )
    say(f"\nended: {result.reason}; spent {spent}")
    say(f"time: {_shares(_seconds(result.folder))}")
    say(f"checkpoint: {result.checkpoint}")
    say(f'load it: transformers.AutoModelForCausalLM.from_pretrained("{result.checkpoint}")')
    say(f"next: understudy report {result.folder}")
    return None


def _seconds(folder: Path) -> dict[str, float]:
    import json

    return json.loads((folder / "result.json").read_text(encoding="utf-8"))["progress"]["seconds"]


def _shares(seconds: dict[str, float]) -> str:
    total = sum(seconds.values()) or 1.0
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {value:.1f} s ({value / total:.0%})" for name, value in ordered)
