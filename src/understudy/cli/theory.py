"""`understudy theory`: the papers' theorems as experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from understudy.cli.options import Json
from understudy.cli.printing import complain, say, say_json, say_table

if TYPE_CHECKING:
    from rich.console import Console

PARENT = Path("runs") / "theory"


def theory(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="An experiment; without one, the list of them.")
    ] = None,
    run_all: Annotated[bool, typer.Option("--all", help="Run every experiment, and write one page.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to write. [default: runs/theory/NAME]")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", min=0, help="Seed of what is simulated or drawn. [default: 0]"),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="FOLDER", help="mean-field: compare with this finished comparison."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a theorem: what it claims, what is measured, whether it holds. Seconds to two minutes on one core each.

    Writes theory.json, figure.png and report.html. The exit code is 1 if a claim that should hold does not.

    \b
    Examples:
      understudy theory
      understudy theory lock
      understudy theory --all --out runs/theory
      understudy theory mean-field --run runs/modular-addition
    """
    if name is not None and run_all:
        raise typer.BadParameter("give either NAME or --all, not both.")
    if name is None and not run_all:
        return _list(as_json=as_json, is_told_more=any(given is not None for given in (out, seed, run)))
    from understudy.laboratory import experiment_named
    from understudy.theory.table import EXPERIMENTS

    names = list(EXPERIMENTS) if name is None else [experiment_named(name).name]
    folder = out if out is not None else (PARENT if name is None else PARENT / name)
    if name is None and (folder / "theory.json").exists():
        raise typer.BadParameter(
            f"{folder} holds one experiment; --all needs a folder for all of them. Use another --out."
        )
    records = _run(names, folder, seed or 0, run, is_one=name is not None, prints=not as_json)
    from understudy.reports.theory_page import write_theory_report

    page = write_theory_report(folder)
    if as_json:
        keys = (
            "name",
            "question",
            "source",
            "seed",
            "seconds",
            "is_as_expected",
            "rows",
            "reading",
            "settings",
        )
        shown = [{key: record[key] for key in keys} for record in records]
        say_json(shown[0] if name is not None else shown)
    else:
        say(f"report: {page}")
    wrong = [row for record in records for row in record["rows"] if _is_wrong(row)]
    for row in wrong:
        complain(f"not as expected: {row['claim']} ({row['source']})")
    if wrong:
        raise typer.Exit(1)
    return None


def _list(*, as_json: bool, is_told_more: bool) -> None:
    from understudy.theory.table import EXPERIMENTS

    if is_told_more:
        raise typer.BadParameter("an option without an experiment: give NAME or --all.")
    if as_json:
        return say_json(
            [{"name": e.name, "question": e.question, "source": e.source} for e in EXPERIMENTS.values()]
        )
    say_table(
        ("experiment", "question", "source"), [(e.name, e.question, e.source) for e in EXPERIMENTS.values()]
    )
    say("\nRun one: understudy theory NAME. Run all: understudy theory --all.")
    return None


def _run(
    names: Sequence[str], folder: Path, seed: int, run: Path | None, *, is_one: bool, prints: bool
) -> list[dict[str, Any]]:
    """One experiment after the other, each with its bar; what is done is written before the next one starts."""
    from rich.console import Console

    from understudy.theory.table import EXPERIMENTS

    console = Console(stderr=True)
    records = []
    for name in names:
        where = folder if is_one else folder / name
        given = run if is_one or EXPERIMENTS[name].compares_a_run else None
        records.append(_watched(name, where, seed, given, console))
        if prints:
            _print(records[-1], where)
    return records


def _watched(name: str, folder: Path, seed: int, run: Path | None, console: Console) -> dict[str, Any]:
    from understudy.laboratory import run_theory
    from understudy.progress import one_bar

    with one_bar(console, name, 100, unit="%") as bar:
        record = run_theory(
            name, folder, seed=seed, run_folder=run, progress=lambda share: bar.move(int(100 * share))
        )
        bar.move(100)
    if not console.is_terminal:
        console.print(f"{name}: {record['seconds']:.0f} s", highlight=False)
    return record


def _print(record: Mapping[str, Any], folder: Path) -> None:
    from understudy.reports.theory import FIGURE, HEADERS, row_cells

    say(f"{record['name']}: {record['question']}\n")
    notes: list[str] = []
    table = []
    for row in record["rows"]:
        claim, *cells = row_cells(row)
        if row["note"]:
            notes.append(row["note"])
            claim += f" [{len(notes)}]"
        table.append((claim, *cells, row["source"]))
    say_table((*HEADERS, "source"), table)
    say()
    for sentence in record["reading"]:
        say(sentence)
    for number, note in enumerate(notes, 1):
        say(f"[{number}] {note}")
    say(f"figure: {folder / FIGURE}\n")


def _is_wrong(row: Mapping[str, Any]) -> bool:
    return row["holds"] == ("yes" if row["is_refuted"] else "no")
