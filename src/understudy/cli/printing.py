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
    """Where comparisons are printed: as wide as the terminal, or a fixed width in a pipe."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS)


def say_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns side by side; on a terminal all but the first wrap, in a pipe every row is whole."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    is_terminal = sys.stdout.isatty()
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for number, header in enumerate(headers):
        table.add_column(header, no_wrap=number == 0 or not is_terminal, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    widest = sum(max(map(len, column)) + 2 for column in zip(headers, *rows, strict=True))
    console = Console(highlight=False, width=None if is_terminal else max(widest, PIPE_COLUMNS))
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        say(line.rstrip())


METRIC_HEADERS = ("metric", "value", "95 % interval", "n")


def metric_cells(name: str, entry: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """A metric's name, value, 95 % interval and sample size, in words."""
    low, high = entry["low"], entry["high"]
    interval = "-" if low is None or high is None else f"{low:.4f} to {high:.4f}"
    value = "-" if entry["mean"] is None else f"{entry['mean']:.4f}"
    return name, value, interval, str(entry["n"])


def is_main_process() -> bool:
    """Whether this process speaks for all; launchers number the processes in RANK."""
    return os.environ.get("RANK", "0") == "0"
