"""How commands speak: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

PIPE_COLUMNS = 120
"""Width of tables where standard output is no terminal: a file has no width to ask for."""


def complain(text: str) -> None:
    """One line on standard error."""
    print(" ".join(text.split()), file=sys.stderr)  # noqa: T201 - this is where the program prints


def say(text: str = "") -> None:
    """One line of the result."""
    print(text)  # noqa: T201


def say_json(value: Any) -> None:
    """The result for a program: JSON alone, numbers that are not finite as null."""
    from understudy.files import finite

    say(json.dumps(finite(value), indent=2))


def output() -> Console:
    """Where tables are printed."""
    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=not is_terminal, width=None if is_terminal else PIPE_COLUMNS)


def say_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns side by side; the last one wraps."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for header in headers[:-1]:
        table.add_column(header, no_wrap=True)
    table.add_column(headers[-1], overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    output().print(table, soft_wrap=False)


def metric_cells(name: str, entry: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """A metric's name, value, 95 % interval and sample size, in words."""
    low, high = entry["low"], entry["high"]
    interval = "-" if low is None or high is None else f"{low:.4f} to {high:.4f}"
    value = "-" if entry["mean"] is None else f"{entry['mean']:.4f}"
    return name, value, interval, str(entry["n"])


def is_main_process() -> bool:
    """Whether this process speaks for all; launchers number the processes in RANK."""
    return os.environ.get("RANK", "0") == "0"
