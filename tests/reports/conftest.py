"""Fixtures of fabricated folders; see `fabricated.py`."""

import json
from pathlib import Path

import pytest
from fabricated import EVERY, with_stages, write_compare, write_run


@pytest.fixture(scope="session")
def compare_folder(tmp_path_factory) -> Path:
    """Three methods x three seeds; nail-r failed at seed 2. Read only."""
    folder = tmp_path_factory.mktemp("fabricated") / "compare"
    return write_compare(folder, ["opd-f", "nail-f", "nail-r"], [0, 1, 2], failed={("nail-r", 2)})


@pytest.fixture
def run_folder(tmp_path) -> Path:
    return write_run(tmp_path / "run", "nail-f", 0, range(EVERY, 151, EVERY), "main")


@pytest.fixture(scope="session")
def staged_folder(tmp_path_factory) -> Path:
    """Three methods x three seeds with a start and two experts; steps of `sft` are divided by 8. Read only."""
    folder = tmp_path_factory.mktemp("staged") / "compare"
    with_stages(write_compare(folder, ["sft", "opd-f", "nail-f"], [0, 1, 2]))
    header = json.loads((folder / "compare.json").read_text())
    (folder / "compare.json").write_text(json.dumps({**header, "step_scale": {"sft": 8, "opd-f": 1}}))
    return folder
