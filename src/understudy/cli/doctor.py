"""`understudy doctor`: preflight."""

from __future__ import annotations

from dataclasses import asdict

import typer

from understudy.cli.options import Json, RecipePath, Seed, Set, read_recipe
from understudy.cli.printing import say, say_json, say_table


def doctor(recipe: RecipePath, changes: Set = None, seed: Seed = None, as_json: Json = False) -> None:
    """Look for what would go wrong, without training: token ids, ends of sequences, templates, lengths, graders,
    and whether log-probabilities repeat. Names what is wrong and how to fix it; the exit code is then 1.

    \b
    Examples:
      understudy doctor recipes/modular-addition
      understudy doctor recipes/gsm8k-local --set student.checkpoint=models/tiny
    """
    chosen = read_recipe(recipe, changes, seed)
    from understudy.doctor import examine

    findings = examine(chosen)
    if as_json:
        say_json([asdict(finding) for finding in findings])
    else:
        rows = [(f.status, f.check, f.found + (f"\n-> {f.fix}" if f.fix else "")) for f in findings]
        say_table(("", "check", "found"), rows)
        count = {status: sum(f.status == status for f in findings) for status in ("ok", "warning", "problem")}
        say(f"\n{count['ok']} ok, {count['warning']} warnings, {count['problem']} problems")
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)
