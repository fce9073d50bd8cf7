"""Two processes that train a list of recipes together: `python two_processes.py <spec.json>`.

The spec is a list of {"recipe": table, "out": folder, "resume": bool, "is_ragged": bool, "is_sharded": bool}. Both processes
are forks of this one, with the usual environment of a distributed run. Before a row that resumes, its run is put back to where
it has written its last checkpoint and nothing after it. A ragged row has responses of other lengths in each process, and takes
batches apart however few tokens they have; `pieces-<rank>.json` in its folder then says into how many pieces, step by step. A
sharded row counts them, too: its processes are held to as many as each other, as weights that are gathered at every forward
pass want it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console

from small import Babble, make_model
from understudy.config import recipe_from_table
from understudy.experts.local import LocalExpert
from understudy.records import Trajectory
from understudy.run import train
from understudy.trainer import step
from understudy.trainer.setup import Setup

torch.set_num_threads(1)


def ragged_parts() -> dict[str, Any]:
    """A task whose prompts and responses differ in length, and its expert."""
    expert = LocalExpert(make_model(seed=60, vocab=12), 12, identity="sixty")
    return {"task": Babble(), "expert": expert}


@contextlib.contextmanager
def taking_apart(*, is_sharded: bool) -> Iterator[list[int]]:
    """Batches are split by length however small they are; yields how many pieces each step has had."""
    least, real, free, counts = step.MIN_PIECE_TOKENS_CPU, step._pieces, step.FREE_TO_SPLIT, []

    def counted(setup: Setup, trajectories: Sequence[Trajectory]) -> Any:
        pieces = real(setup, trajectories)
        counts.append(len(pieces))
        return pieces

    step.MIN_PIECE_TOKENS_CPU, step._pieces = 1, counted
    step.FREE_TO_SPLIT = () if is_sharded else free
    try:
        yield counts
    finally:
        step.MIN_PIECE_TOKENS_CPU, step._pieces, step.FREE_TO_SPLIT = least, real, free


def work(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        out = Path(row["out"])
        if row["resume"]:
            state = PartialState()
            state.wait_for_everyone()
            if state.is_main_process:
                for name in ("result.json", "final"):
                    (out / name).rename(out / f"first {name}")
            state.wait_for_everyone()
        recipe, console = recipe_from_table(row["recipe"]), Console(file=io.StringIO())
        if row["is_ragged"] or row["is_sharded"]:
            own = ragged_parts() if row["is_ragged"] else {}
            with taking_apart(is_sharded=row["is_sharded"]) as counts:
                train(recipe, out, console=console, **own)
            (out / f"pieces-{os.environ['RANK']}.json").write_text(json.dumps(counts))
        else:
            train(recipe, out, resume=row["resume"], console=console)
    PartialState().destroy_process_group()


def fork(rank: int, rows: list[dict[str, Any]]) -> int:
    child = os.fork()
    if child:
        return child
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    try:
        work(rows)
    except BaseException:  # noqa: BLE001 - a child must never return into the parent
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text())
    children = [fork(rank, spec) for rank in range(2)]
    statuses = []
    for _ in children:
        statuses.append(os.wait()[1])
        if statuses[-1] != 0:
            break  # the other one may wait for it for ever; this process group ends with us
    sys.exit(int(any(statuses)))
