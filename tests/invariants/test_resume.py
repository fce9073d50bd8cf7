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
STEPS = 12
CASES = {
    "on-policy": {"method.name": "nail-r", "method.estimator": "sampled"},
    "offline": {"method.name": "sft", "optimizer.schedule": "cosine", "evaluate.best_metric": "accuracy_greedy"},
    "aggregating": {"method.name": "dagger", "train.steps_per_round": 2, "train.samples_per_prompt": 2},
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


def attempts(folder: Path, table: dict, plan: list[tuple[Path, int | None, bool]]) -> list[dict]:
    spec = folder / "spec.json"
    rows = [{"recipe": table, "out": str(out), "event": event, "torn": torn} for out, event, torn in plan]
    spec.write_text(json.dumps(rows))
    done = subprocess.run([sys.executable, str(RUNNER), str(spec)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert all(r["status"] in (0, signal.SIGKILL) for r in found), done.stderr
    return found


def records(run: Path, kind: str) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [r for r in rows if r["kind"] == kind]


def timeless(record: dict) -> dict:
    return {k: v for k, v in record.items() if "seconds" not in k}


def weights(folder: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_moments_and_resumed_is_unbroken(tmp_path, case):
    """Five kills at random events (seeded), some in the middle of a record, then left to finish.

    Fails if anything that decides the next step is missing from a checkpoint (optimiser, prompts used, round,
    pool, dropout's random state), if a log keeps what came after the checkpoint, or if a half-written
    checkpoint is taken for a whole one.
    """
    table, rng = table_of(case), random.Random(f"kill {case}")
    # How many events an unbroken run has is not known yet; what is left of a killed one is never more.
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    plan = [(unbroken, None, False)]
    plan += [(killed, rng.randrange(10, 90), rng.random() < 0.5) for _ in range(5)]
    found = attempts(tmp_path, table, [*plan, (killed, None, False)])
    assert found[0]["status"] == found[-1]["status"] == 0
    assert sum(r["status"] == signal.SIGKILL for r in found) >= 3, f"too few kills to mean anything: {found}"
    assert weights(killed / "final") == weights(unbroken / "final")
    for kind in ("train", "eval", "end"):
        assert [timeless(r) for r in records(killed, kind)] == [timeless(r) for r in records(unbroken, kind)]
    total = {r["step"] for r in records(killed, "train")}
    assert len(records(killed, "train")) == len(total) == STEPS
    one, other = (json.loads((f / "result.json").read_text()) for f in (killed, unbroken))
    assert one["metrics"] == other["metrics"]
    for spent in ("trajectories", "expert_queries", "optimizer_steps"):
        assert one["budget"][spent] == other["budget"][spent]
    assert (killed / "trajectories.jsonl").read_text() == (unbroken / "trajectories.jsonl").read_text()
    if (unbroken / "best").exists():
        assert weights(killed / "best") == weights(unbroken / "best")
    left = [p for p in killed.rglob("*") if p.name.endswith((".part", ".old"))]
    assert not left, "what a kill left behind must not pile up"


def test_killed_after_the_last_checkpoint(tmp_path):
    """Every one of the last events, one after another: the result is that of the unbroken run, metrics included."""
    table = table_of("on-policy")
    table["train"]["steps"] = 2
    unbroken = tmp_path / "unbroken"
    (first,) = attempts(tmp_path, table, [(unbroken, None, False)])
    late = range(first["events"] - 24, first["events"], 4)
    plan = [
        row
        for event in late
        for row in ((tmp_path / f"at {event}", event, False), (tmp_path / f"at {event}", None, False))
    ]
    attempts(tmp_path, table, plan)
    expected = json.loads((unbroken / "result.json").read_text())["metrics"]
    assert expected
    for event in late:
        folder = tmp_path / f"at {event}"
        assert json.loads((folder / "result.json").read_text())["metrics"] == expected
        assert weights(folder / "final") == weights(unbroken / "final")
        assert len(records(folder, "eval")) == len(records(unbroken, "eval"))
