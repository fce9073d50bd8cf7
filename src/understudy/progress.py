"""What a person sees while something long runs: a bar with rate and remaining time, and the latest numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {task.fields.get('unit', 'step')}/s", style="dim")


def bars(console: Console) -> Progress:
    """The bars of every command: on a terminal they move, in a pipe they are silent (a `Bar` prints lines there)."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        _Rate(table_column=Column(no_wrap=True)),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn(
            "{task.fields[note]}",
            style="cyan",
            table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
        ),
        console=console,
        disable=not console.is_terminal,
        transient=False,
    )


@contextmanager
def one_bar(console: Console, what: str, total: int, *, start: int = 0, unit: str = "step") -> Iterator[Bar]:
    """A single bar for a run of `total` steps, or other units."""
    with bars(console) as progress:
        task = progress.add_task(what, total=total, completed=start, note="", unit=unit)
        yield Bar(progress, task, console, what)


class Bar:
    """Moves one bar; where there is no terminal it prints a line for each note instead."""

    def __init__(self, progress: Progress, task: object, console: Console, what: str) -> None:
        self.progress, self.task, self.console, self.what = progress, task, console, what

    def hint(self, note: str) -> None:
        """What is going on between two moves; only a terminal shows it."""
        self.progress.update(self.task, note=note)  # pyright: ignore[reportArgumentType]

    def move(self, completed: int, note: str | None = None) -> None:
        fields = {} if note is None else {"note": note}
        self.progress.update(self.task, completed=completed, **fields)  # pyright: ignore[reportArgumentType]
        if note is not None and not self.console.is_terminal:
            self.console.print(f"{self.what}  step {completed}  {note}", highlight=False, soft_wrap=True)
