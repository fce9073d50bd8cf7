"""Benchmarks run at their smallest size, their results have one form, and docs/performance.md says what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.fixture(autouse=True)
def root_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def check_form(result: dict) -> None:
    """Every key is there, a range holds its median, and `met` is what the target says."""
    assert {"name", "question", "command", "machine", "figures", "phases", "floor"} <= set(result)
    assert not any("/" in part for part in result["command"].split()), (
        "no path of a machine in a published command"
    )
    for f in result["figures"]:
        assert set(f) == {"name", "ratio_median", "low", "high", "target", "direction", "met"}
        assert f["low"] <= f["ratio_median"] <= f["high"], f["name"]
        if f["target"] is None:
            assert f["met"] is None
        elif f["direction"] == "<=":
            assert f["met"] == (f["ratio_median"] <= f["target"])
        else:
            assert f["direction"] == ">="
            assert f["met"] == (f["ratio_median"] >= f["target"])


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_a_published_result_has_the_form(file):
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["name"] == file.stem
    check_form(result)


def test_the_page_says_what_the_results_say():
    from benchmarks.report import PAGE, load_results, page

    now = PAGE.read_text(encoding="utf-8")
    assert now == page(now, load_results()), "run `make docs`"


def test_a_page_shows_figures_targets_and_misses():
    from benchmarks.common import Figure, Result
    from benchmarks.report import BEGIN, END, page

    figures = [
        Figure(name="a | b", ratio_median=0.51234, low=0.4, high=0.6, target=0.5),
        Figure(name="speed", ratio_median=3.0, low=2.0, high=4.0, target=2.5, direction=">="),
    ]
    result = Result(
        name="step",
        question="Why?",
        figures=figures,
        command="python",
        phases={"ours": {"train": 12345.6}},
        notes=["so"],
    )
    shown = page(f"before {BEGIN} old {END} after", [result.to_json()])
    assert "| a \\| b | 0.512 | 0.4 to 0.6 | <= 0.5 | **no** |" in shown
    assert "| speed | 3 | 2 to 4 | >= 2.5 | yes |" in shown
    assert "| ours | 12346 |" in shown
    assert "- so" in shown
    assert shown.startswith("before ")
    assert shown.endswith(" after")
    assert "old" not in shown
    assert page(shown, [result.to_json()]) == shown


def test_turns_are_taken_and_ratios_are_within_a_turn():
    from benchmarks.common import Timing, figure, interleaved, ratios

    calls: list[str] = []
    found = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert [len(f) for f in found.values()] == [3, 3]
    ours, theirs = [Timing(1.0, 3.0), Timing(6.0, 4.0)], [Timing(2.0, 6.0), Timing(3.0, 2.0)]
    assert ratios(ours, theirs) == [0.5, 2.0]
    assert ratios(ours, theirs, "cpu") == [0.5, 2.0]
    assert figure("x", [3.0, 1.0, 2.0], 2.0).to_json() | {"name": ""} == {
        "name": "", "ratio_median": 2.0, "low": 1.0, "high": 3.0, "target": 2.0, "direction": "<=", "met": True,
    }  # fmt: skip


def test_the_floor_counts_every_product():
    """A student of one layer by hand: 4 attention and 3 feed-forward matrices, the head at response tokens alone."""
    from benchmarks.step import step_flops
    from benchmarks.step_workload import SMOKE

    d, v, tokens = 32, SMOKE.vocab_size, SMOKE.batch_size * (SMOKE.prompt_tokens + SMOKE.new_tokens)
    layer = 2 * (4 * d * d + 3 * d * 4 * d) + 4 * d * (SMOKE.prompt_tokens + SMOKE.new_tokens) / 2
    forward = tokens * layer + SMOKE.batch_size * SMOKE.new_tokens * 2 * v * d
    flops = step_flops(SMOKE)
    assert flops["collect"] == pytest.approx(forward)
    assert flops["train"] == pytest.approx(3 * forward)
    assert flops["label"] > flops["collect"]


def test_speed_is_counted_on_products():
    from benchmarks.common import gemm_gflops

    assert 0.01 < gemm_gflops(torch.float32, 64, 2) < 1e5


def test_commands_carry_no_paths():
    from benchmarks.common import command_of

    arguments = ["--smoke", "--out", "/a/b", "--peer-python", "/c/bin/python", "--repeats", "3"]
    assert command_of("step", arguments) == "python -m benchmarks.step --smoke --repeats 3"


def test_the_step_benchmark_runs_without_a_peer(tmp_path):
    """The smallest size, end to end: what it writes has the form, and says that nothing was compared."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "benchmarks.step",
        "--smoke",
        "--out",
        str(tmp_path),
        "--peer-python",
        "no-such-program",
    ]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300)
    result = json.loads((tmp_path / "step.json").read_text())
    check_form(result)
    assert any("not installed" in note for note in result["notes"])
    assert not any("TRL" in f["name"] for f in result["figures"])
    assert all(seconds >= 0 for row in result["phases"].values() for seconds in row.values())
    assert {"collect", "label", "train", "step"} <= set(next(iter(result["phases"].values())))


@pytest.mark.slow
def test_every_benchmark_runs_at_its_smallest_size(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.run", "--smoke", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=1800)
    from benchmarks.report import ORDER

    assert {file.stem for file in tmp_path.glob("*.json")} == set(ORDER)
    for file in tmp_path.glob("*.json"):
        check_form(json.loads(file.read_text()))
