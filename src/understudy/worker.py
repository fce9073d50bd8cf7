"""One run or measurement after another in a process of its own: a JSON job a line in, a JSON outcome a line out.

A fresh interpreter rather than `multiprocessing`: that one imports the caller's main module again, which a script without
a main guard, a notebook or code from standard input does not survive.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from understudy.errors import UnderstudyError
from understudy.processor import one_thread


class WorkerDiedError(Exception):
    """The process ended without an answer: out of memory, or killed."""


class Worker:
    """The parent's end. Start-up (importing torch) is paid once, by the first job."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "understudy.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=one_thread(os.environ),
        )

    def run(self, job: dict[str, Any]) -> str | None:
        """Do one job; returns what went wrong, None if nothing did.

        Raises:
            WorkerDiedError: the process is gone; start another for the next job.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except OSError:
            answer = ""
        try:
            return json.loads(answer)["error"]
        except ValueError:  # nothing, or half a line
            self.process.kill()
            raise WorkerDiedError(
                f"its process died with exit status {self.process.wait()} (out of memory, or killed)"
            ) from None

    def close(self) -> None:
        """End the process, in the middle of a job if need be: its checkpoints are written atomically."""
        self.process.terminate()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def run_job(job: dict[str, Any], **own: Any) -> str | None:
    """Run one recipe into its folder, going on where a killed run stopped; or, where the job names a checkpoint, measure that.

    Returns:
        what went wrong as text; None if nothing did.
    """
    try:
        if "checkpoint" in job:
            _measure(job)
        else:
            _train(job, **own)
    except UnderstudyError as error:
        return str(error)
    except Exception:  # noqa: BLE001 - one broken run must not lose the others; its whole trace is kept
        return traceback.format_exc()
    return None


def _measure(job: dict[str, Any]) -> None:
    from understudy.measure import measure_to_file

    measure_to_file(job)


def _train(job: dict[str, Any], **own: Any) -> None:
    import io

    from rich.console import Console

    from understudy.config import recipe_from_table
    from understudy.run import train

    train(
        recipe_from_table(job["recipe"]),
        job["folder"],
        resume=True,
        warm_start=job["warm_start"],
        console=Console(file=io.StringIO()),
        stage=job["stage"],
        **own,
    )


def main() -> None:
    """Serve jobs until the input ends. Whatever a run prints goes to standard error: standard output is for answers."""
    # Ctrl-C reaches every process of a terminal; the parent alone answers it, and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    # Standard output is for answers alone: whatever else writes there, a library in C too, goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    for line in sys.stdin:
        answers.write(json.dumps({"error": run_job(json.loads(line))}) + "\n")
        answers.flush()


def _end_with_parent(parent: int) -> None:
    """A parent that was killed will be resumed by another one: two must never write to one run folder."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def job_of(recipe: dict[str, Any], folder: Path, warm_start: Path | None, stage: str) -> dict[str, Any]:
    """A job as `run_job` reads it."""
    return {
        "recipe": recipe,
        "folder": str(folder),
        "warm_start": None if warm_start is None else str(warm_start),
        "stage": stage,
    }


if __name__ == "__main__":
    main()
