"""`understudy report`: the page of a folder that training wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from understudy.cli.options import Json
from understudy.cli.printing import say, say_json


def report(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="A folder that train, compare, theory, discrepancy or forks wrote."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Draw a run, a comparison or the theory lab: one self-contained page, FOLDER/report.html, and its figures as PNG.

    \b
    Examples:
      understudy report runs/modular-addition
      understudy report runs/opd-f --json
      understudy report runs/theory
    """
    from understudy.reports.page import write_report

    page = write_report(folder)
    found = [*(folder / "figures").glob("*.png"), *folder.glob("figure.png"), *folder.glob("*/figure.png")]
    figures = sorted(map(str, found))
    if as_json:
        return say_json({"report": str(page), "figures": figures})
    say(f"report: {page}")
    for figure in figures:
        say(f"figure: {figure}")
    return None
