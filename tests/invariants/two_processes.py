"""One of two processes that train a list of recipes together: `python two_processes.py <spec.json>`, with the usual
environment of a distributed run. The spec is a list of {"recipe": table, "out": folder, "resume": bool}."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import torch
from rich.console import Console

from understudy.config import recipe_from_table
from understudy.run import train

torch.set_num_threads(1)
for row in json.loads(Path(sys.argv[1]).read_text()):
    train(
        recipe_from_table(row["recipe"]),
        row["out"],
        resume=row["resume"],
        console=Console(file=io.StringIO()),
    )
