"""`understudy methods`: the table that is the library."""

from __future__ import annotations

from typing import Annotated

import typer

from understudy.cli.options import Json
from understudy.cli.printing import say, say_json, say_table


def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One method, in detail.")] = None,
    as_json: Json = False,
) -> None:
    """List the methods: who writes the prefixes, what is compared there, which positions count, where it is from.

    \b
    Examples:
      understudy methods
      understudy methods nail-f
    """
    from understudy.method_table import COLUMNS, method_cells, method_row
    from understudy.methods import METHODS, method_named

    if name is not None:
        row = method_row(method_named(name))
        if as_json:
            return say_json(row)
        return say_table(("", row["name"]), list(method_cells(row, is_detailed=True).items()))
    rows = [method_row(method) for method in METHODS.values()]
    if as_json:
        return say_json(rows)
    say_table(COLUMNS, [[method_cells(row)[column] for column in COLUMNS] for row in rows])
    say("\nIn detail: understudy methods NAME. exact: the expert's whole law; sampled: one token a position.")
    return None
