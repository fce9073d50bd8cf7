"""`understudy report`: the page of a folder that training wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from understudy.cli.options import Json
from understudy.cli.printing import say, say_json


def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that train or compare wrote.")],
    as_json: Json = False,
) -> None:
    """Draw a run or a comparison: one self-contained page, FOLDER/report.html, and FOLDER/figures/*.png.

    \b
    Examples:
      understudy report runs/modular-addition
      understudy report runs/opd-f --json
    """
    from understudy.reports.page import write_report

    page = write_report(folder)
    figures = sorted(str(path) for path in (folder / "figures").glob("*.png"))
    if as_json:
        return say_json({"report": str(page), "figures": figures})
    say(f"report: {page}")
    for figure in figures:
        say(f"figure: {figure}")
    return None
