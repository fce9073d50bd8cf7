"""Killed and resumed is unbroken: the same weights to the last bit, every step in the log once, nothing lost."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from small import TABLE
from understudy.settings import set_dotted

RUNNER = Path(__file__).with_name("killed_runs.py")
STEPS = 8
CASES = {
    "on-policy": {"method.name": "nail-r", "method.estimator": "sampled"},
    "offline": {
        "method.name": "sft",
        "optimizer.schedule": "cosine",
        "evaluate.best_metric": "accuracy_greedy",
    },
    "aggregating": {"method.name": "dagger", "train.steps_per_round": 2, "train.samples_per_prompt": 2},
    "rewards, two epochs": {
        "method.name": "grpo",
        "method.epochs": 2,
        "method.kl": 0.1,
        "method.entropy": 0.01,
        "train.samples_per_prompt": 2,
    },
    "the log of the start": {
        "method.name": "pessimistic",
        "method.queries": 12,
        "optimizer.learning_rate": 0.003,
    },
    "near futures, adapters with dropout": {
        "method.name": "near-future",
        "method.embedding": "student",
        "method.window_temperature": 1.0,
        "method.candidate_quantile": 0.5,
        "method.suppress": "matched",
        "student.lora": {"rank": 2, "dropout": 0.2, "target_modules": ["q_proj", "down_proj"]},
    },
    "warm start, adapters with dropout": {
        "method.name": "opd-pg",
        "warm_start.method": "kd",
        "warm_start.max_steps": 4,
        "student.lora": {"rank": 2, "dropout": 0.2, "target_modules": ["q_proj", "down_proj"]},
    },
}


def table_of(case: str) -> dict:
    table = json.loads(json.dumps(TABLE))
    settings = {
        "train.steps": STEPS,
        "train.batch_size": 4,
        "checkpoint.every_steps": 2,
        "evaluate.every_steps": 5,
        "evaluate.prompts": 4,
        "optimizer.learning_rate": 0.01,
        "optimizer.warmup_steps": 3,
    }
    for key, value in {**settings, **CASES[case]}.items():
        set_dotted(table, key, value)
    return table


@pytest.fixture(scope="module")
def runner():
    """One process that imports everything once and forks a child for every attempt."""
    command = [sys.executable, str(RUNNER)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def attempt(runner, table: dict, out: Path, event: int | None = None, *, torn: bool = False) -> dict:
    """One run, killed at an event or left to finish."""
    runner.stdin.write(json.dumps({"recipe": table, "out": str(out), "event": event, "torn": torn}) + "\n")
    runner.stdin.flush()
    found = json.loads(runner.stdout.readline())
    assert found["status"] in (0, signal.SIGKILL), "the child's traceback is in the captured error output"
    return found


def records(run: Path, kind: str) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [r for r in rows if r["kind"] == kind]


def timeless(record: dict) -> dict:
    return {k: v for k, v in record.items() if "seconds" not in k}


def weights(folder: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_moments_and_resumed_is_unbroken(runner, tmp_path, case):
    """Three kills at random events (seeded), some in the middle of a record, then left to finish.

    Fails if anything that decides the next step is missing from a checkpoint (optimiser, prompts used, round,
    pool, dropout's random state), if a log keeps what came after the checkpoint, or if a half-written
    checkpoint is taken for a whole one.
    """
    table, rng = table_of(case), random.Random(f"kill {case}")
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    events = attempt(runner, table, unbroken)["events"]
    for share in (0.7, 0.5, 0.5):
        event, torn = rng.randrange(8, int(share * events)), rng.random() < 0.5
        attempt(runner, table, killed, event, torn=torn)
        assert not (killed / "result.json").exists(), "too late a kill to mean anything"
    assert attempt(runner, table, killed)["status"] == 0
    assert weights(killed / "final") == weights(unbroken / "final")
    for kind in ("train", "eval", "end"):
        assert [timeless(r) for r in records(killed, kind)] == [timeless(r) for r in records(unbroken, kind)]
    assert [r["stage_step"] for r in records(killed, "train")] == list(range(1, STEPS + 1))
    one, other = (json.loads((f / "result.json").read_text()) for f in (killed, unbroken))
    assert one["metrics"] == other["metrics"]
    for spent in ("trajectories", "expert_queries", "optimizer_steps"):
        assert one["budget"][spent] == other["budget"][spent]
    assert (killed / "trajectories.jsonl").read_text() == (unbroken / "trajectories.jsonl").read_text()
    if (unbroken / "best").exists():
        assert weights(killed / "best") == weights(unbroken / "best")
    left = [p for p in killed.rglob("*") if p.name.endswith((".part", ".old"))]
    assert not left, "what a kill left behind must not pile up"


def test_killed_after_the_last_checkpoint(runner, tmp_path):
    """The student is done, its result not yet written: metrics are there and the log has no second evaluation."""
    table = table_of("on-policy")
    table["train"]["steps"] = 2
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    events = attempt(runner, table, unbroken)["events"]
    attempt(runner, table, killed, events - 5)
    assert [p.name for p in (killed / "checkpoints").iterdir()] == ["step-000002"]
    assert not (killed / "result.json").exists()
    attempt(runner, table, killed)
    expected = json.loads((unbroken / "result.json").read_text())["metrics"]
    assert json.loads((killed / "result.json").read_text())["metrics"] == expected
    assert weights(killed / "final") == weights(unbroken / "final")
    assert len(records(killed, "eval")) == len(records(unbroken, "eval"))
