"""The command line: one file per command - parse, call one function, print.

Nothing here imports torch before a command runs: `understudy --help` answers at once.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from understudy.cli import compare, discrepancy, doctor, evaluate, forks, init, methods, report, theory, train
from understudy.cli.printing import complain
from understudy.errors import UnderstudyError

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""


class _Commands(TyperGroup):
    """What every command has in common: how it ends when something is wrong."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UnderstudyError as error:
            complain(f"error: {error}")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            complain("interrupted. What was written stays; go on with --resume where the command has it.")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="understudy",
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    # Plain help: the same text on every terminal, in docs/cli.md, and without waiting for a renderer.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Imitation-learning post-training of language models: train with any method, compare methods, prove it.",
)


def _version(is_asked: bool) -> None:
    if is_asked:
        from understudy import __version__

        typer.echo(f"understudy {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None: ...


app.command("train", short_help="Train one student as a recipe says.")(train.train)
app.command("compare", short_help="Run methods x seeds under one budget.")(compare.compare)
app.command("evaluate", short_help="Measure a checkpoint, or grade responses.")(evaluate.evaluate)
app.command("discrepancy", short_help="Set two models' responses side by side.")(discrepancy.discrepancy)
app.command("forks", short_help="Find where a student leaves its expert.")(forks.forks)
app.command("report", short_help="Draw a run or a comparison.")(report.report)
app.command("theory", short_help="Run the papers' theorems as experiments.")(theory.theory)
app.command("methods", short_help="List the methods.")(methods.methods)
app.command("doctor", short_help="Find what would go wrong before training.")(doctor.doctor)
app.command("init", short_help="Make a small checkpoint, offline.")(init.init)


def main() -> None:
    """The console script. Exit codes: 0 done, 1 done but something failed or is wrong, 2 bad input, 130 interrupted."""
    app(prog_name="understudy")
