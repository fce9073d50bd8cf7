"""The logs of a run: one JSON object a line, appended and flushed, so that a kill loses at most the last line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from understudy.files import finite


class Journal:
    """`metrics.jsonl` and `trajectories.jsonl` of a run folder. Only the main process writes."""

    def __init__(self, folder: Path, *, is_writing: bool) -> None:
        self.paths = {name: folder / f"{name}.jsonl" for name in ("metrics", "trajectories")}
        self.is_writing = is_writing

    def write(self, log: str, record: dict[str, Any]) -> None:
        if not self.is_writing:
            return
        with self.paths[log].open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(record)) + "\n")

    def sizes(self) -> dict[str, int]:
        return {name: path.stat().st_size if path.exists() else 0 for name, path in self.paths.items()}

    def cut(self, sizes: dict[str, int]) -> None:
        """Forget what was written after a checkpoint that knew these sizes."""
        for name, path in self.paths.items():
            if self.is_writing and path.exists():
                with path.open("r+b") as file:
                    file.truncate(min(sizes.get(name, 0), path.stat().st_size))
