"""How `understudy evaluate` prints a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from understudy.cli.printing import output, say, say_json, say_table


def show_comparison(record: dict[str, Any], folder: Path, *, as_json: bool) -> None:
    """The table of all labels, then the differences of the main metrics; `--json` has all of them."""
    if as_json:
        return say_json(record)
    from understudy.reports.held_out import (
        DIFFERENCE_HEADERS,
        EVALUATIONS,
        compared_with,
        difference_rows,
        render_held_out,
    )

    render_held_out(record, output())
    for b in compared_with(record):
        if rows := difference_rows(record, b):
            say(f"\nA against B = {b}, on the same prompts")
            say_table(DIFFERENCE_HEADERS, rows)
    if record["paired"]:
        say("\np and the interval are over prompts, with these seeds: exact sign test where all values are")
        say("0 or 1, else sign flips of the mean difference. Other metrics: --json.")
    say(f"\nthe {record['split']} prompts of {record['recipe']}, all in {folder / EVALUATIONS}")
    if record["split"] == "test":
        say(f"figure and page: understudy report {folder}")
    return None
