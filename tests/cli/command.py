"""Runs the console script's own entry inside the test process."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from understudy.cli import main
from understudy.resolved import to_toml


@dataclass(frozen=True)
class Outcome:
    """What a shell would see."""

    code: int
    out: str
    err: str


def understudy(*arguments: object) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    argv = ["understudy", *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            code = 0
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    return Outcome(code, out.getvalue(), err.getvalue())


def write_recipe(file: Path, table: dict[str, Any]) -> Path:
    file.write_text(to_toml(table))
    return file
