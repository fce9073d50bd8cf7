"""Runs that are killed at chosen events, in children of one process that has already imported everything.

Reads one attempt a line, {"recipe": table, "out": folder, "event": n or null, "torn": bool}. Each runs in a forked
child as `train(recipe, out, resume=True)`. At its n-th event (a record written, a file flushed, a name
replaced, an optimiser step) the child kills itself with SIGKILL; `torn` leaves half of the record behind first.
Prints a line for each, {"status": wait status, "events": how many there were or null}.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import traceback
from typing import Any

import torch
from rich.console import Console

import understudy.trainer.loop as loop
from understudy import files
from understudy.config import recipe_from_table
from understudy.run import train
from understudy.trainer.journal import Journal

torch.set_num_threads(1)


class Fate:
    """Counts events and ends the process at one of them."""

    def __init__(self, at: int | None, torn: bool) -> None:
        self.at, self.torn, self.count = at, torn, 0

    def event(self, before_end=lambda: None) -> None:
        if self.count == self.at:
            if self.torn:
                before_end()
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1

    def around(self, function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.event()
            result = function(*args, **kwargs)
            self.event()
            return result

        return wrapped

    def journal(self, write: Any) -> Any:
        def wrapped(journal: Journal, log: str, record: dict[str, Any]) -> None:
            def tear() -> None:
                with journal.paths[log].open("a") as file:
                    file.write(json.dumps(files.finite(record))[:17])

            self.event(tear)
            write(journal, log, record)

        return wrapped

    def watch(self) -> None:
        files.os = type("watched_os", (), {**vars(os)})  # pyright: ignore
        files.os.replace = staticmethod(self.around(os.replace))  # pyright: ignore
        files.os.fsync = staticmethod(self.around(os.fsync))  # pyright: ignore
        Journal.write = self.journal(Journal.write)
        loop.optimizer_step = self.around(loop.optimizer_step)


def attempt(spec: dict[str, Any]) -> dict[str, Any]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            fate = Fate(spec["event"], spec["torn"])
            fate.watch()
            train(
                recipe_from_table(spec["recipe"]),
                spec["out"],
                resume=True,
                console=Console(file=io.StringIO()),
            )
            os.write(writer, str(fate.count).encode())
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a child must never return into the parent's loop
            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        events = pipe.read()
    _, status = os.waitpid(child, 0)
    return {"status": status, "events": int(events) if events else None}


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(json.dumps(attempt(json.loads(line))) + "\n")
        sys.stdout.flush()
