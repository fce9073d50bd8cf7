"""Two processes that train a list of recipes together: `python two_processes.py <spec.json>`.

The spec is a list of {"recipe": table, "out": folder, "resume": bool}. Both processes are forks of this one, with the
usual environment of a distributed run. Before a row that resumes, its run is put back to where it has written its
last checkpoint and nothing after it.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console

from understudy.config import recipe_from_table
from understudy.run import train

torch.set_num_threads(1)


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
        train(
            recipe_from_table(row["recipe"]), out, resume=row["resume"], console=Console(file=io.StringIO())
        )
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
