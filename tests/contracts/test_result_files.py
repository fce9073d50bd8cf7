"""Where a benchmark's result is kept: one file for each kind of device, and the page shows them all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def root_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def test_a_gpu_result_stands_beside_the_processors(tmp_path, monkeypatch):
    """Fails if the second of two runs takes the place of the first, or if a section of the page cannot be told from another."""
    from benchmarks.common import Result, write
    from benchmarks.report import load_results, tables

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "some GPU")

    def made(device: torch.device | None, question: str) -> Result:
        return Result(name="scaling", question=question, figures=[], command="python", device=device)

    kept = [
        write(made(torch.device("cpu"), "on a processor?"), tmp_path),
        write(made(torch.device("cuda"), "on a GPU?"), tmp_path),
    ]
    assert [file.name for file in kept] == ["scaling.json", "scaling.cuda.json"]
    assert {file.name for file in tmp_path.iterdir()} == {"scaling.json", "scaling.cuda.json"}
    for file, question in zip(kept, ("on a processor?", "on a GPU?"), strict=True):
        found = json.loads(file.read_text(encoding="utf-8"))
        assert (found["name"], found["question"]) == (file.stem, question)
    # One that chose no device is as before, and replaces its like alone.
    assert write(made(None, "on a processor again?"), tmp_path) == kept[0]
    shown = tables(load_results(tmp_path))
    assert "### scaling\n\non a processor again?" in shown
    assert "### scaling.cuda\n\non a GPU?" in shown
    assert "on a processor?" not in shown
