"""One process or two: the same trajectories, the same batches, the same weights."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from two_processes import ragged_parts

from small import TABLE, quiet_console
from understudy.config import recipe_from_table
from understudy.run import train
from understudy.settings import set_dotted

RUNNER = Path(__file__).with_name("two_processes.py")
STEPS = 4
CASES = {
    "on-policy": {"method.name": "opd-f", "method.estimator": "sampled", "train.micro_batch_size": 2},
    "offline": {"method.name": "sft", "evaluate.best_metric": "validation_loss_nats"},
    "several samples, stale": {
        "method.name": "opd-pg",
        "train.samples_per_prompt": 2,
        "train.steps_per_round": 2,
    },
    # Five trajectories a step: the processes do not have equally many, and sometimes one has none.
    "aggregating": {"method.name": "dagger", "train.batch_size": 5},
    "one trajectory": {"method.name": "nail-f", "train.batch_size": 1},
    # The second epoch is in another order: a prompt's responses are then trained on by whoever wrote them, in other steps.
    "rewards": {
        "method.name": "grpo",
        "method.epochs": 2,
        "method.kl": 0.1,
        "method.entropy": 0.01,
        "train.samples_per_prompt": 2,
        "train.steps_per_round": 2,
        "train.batch_size": 4,
        "checkpoint.every_steps": 4,
    },
    # As sharded weights want it; epochs give the processes different numbers of trajectories, hence of micro-batches.
    "sharded": {
        "method.name": "grpo",
        "method.epochs": 2,
        "train.samples_per_prompt": 2,
        "train.steps_per_round": 2,
        "train.batch_size": 6,
        "checkpoint.every_steps": 4,
        "train.micro_batch_size": 1,
    },
    "sharded replay": {"method.name": "dagger", "train.batch_size": 5, "train.micro_batch_size": 1},
    # Lengths differ, and so does the number of pieces that each process takes its share of a batch apart into.
    "ragged": {"method.name": "opd-f"},
    # Windows, too: their numbers differ, and which forks are real is one question for both processes.
    "ragged near futures": {
        "method.name": "near-future",
        "method.window_tokens": 4,
        "method.candidate_quantile": 0.6,
        "method.suppress": "matched",
        "method.student_window": "written",
    },
    "ragged near futures of rollouts": {
        "method.name": "near-future",
        "method.window_tokens": 4,
        "method.candidate_quantile": 0.6,
        "method.window_weight": 1.0,
    },
    # The second process never has a trajectory, nor a fork.
    "ragged, one trajectory": {
        "method.name": "near-future",
        "method.window_tokens": 4,
        "method.candidate_quantile": 0.6,
        "train.batch_size": 1,
    },
}


def table_of(case: str, steps: int = STEPS) -> dict:
    table = json.loads(json.dumps(TABLE))
    settings = {
        "train.batch_size": 8,
        "checkpoint.every_steps": 2,
        "evaluate.prompts": 5,
        "train.steps": steps,
    }
    for key, value in {**settings, **CASES[case]}.items():
        set_dotted(table, key, value)
    return table


def row_of(case: str, folder: Path) -> dict:
    return {
        "recipe": table_of(case),
        "out": str(folder / case),
        "resume": False,
        "is_ragged": case.startswith("ragged"),
        "is_sharded": case.startswith("sharded"),
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """Every case trained by two processes; the last checkpoint of one case is then gone on from."""
    folder = tmp_path_factory.mktemp("two")
    rows = [row_of(c, folder) for c in CASES]
    rows.append({**row_of("aggregating", folder), "resume": True})
    (folder / "spec.json").write_text(json.dumps(rows))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "ACCELERATE_USE_CPU": "true",
    }
    with subprocess.Popen(
        [sys.executable, str(RUNNER), str(folder / "spec.json")],
        env={**os.environ, **shared, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            code = process.wait(timeout=240)
        finally:
            # One process that has failed leaves the other waiting.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        assert process.stdout is not None
        assert code == 0, process.stdout.read()[-4000:]
    return folder


def weights(folder: Path) -> torch.Tensor:
    found = load_file(folder / "model.safetensors")
    return torch.cat([found[name].flatten() for name in sorted(found)])


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(two, tmp_path, case):
    """Weights after four steps to 2e-6 (sums in another order, through AdamW), and the same records.

    Fails if the gradient is averaged over processes without their token counts, if a prompt falls to both or to
    none, if random numbers depend on the process, or if the replayed batch does.
    """
    own = ragged_parts() if case.startswith("ragged") else {}
    train(recipe_from_table(table_of(case)), tmp_path / "one", console=quiet_console(), **own)
    one, both = tmp_path / "one", two / case
    moved = (weights(one / "final") - weights(both / "final")).abs().max()
    assert moved < 2e-6
    rows = [[json.loads(x) for x in (f / "metrics.jsonl").read_text().splitlines()] for f in (one, both)]
    for a, b in zip(*rows, strict=True):
        for key in ("kind", "step", "trajectories", "expert_queries", "response_tokens", "trained_tokens"):
            assert a.get(key) == b.get(key), (key, a["kind"])
        if a["kind"] == "train":
            assert a["loss_nats"] == pytest.approx(b["loss_nats"], abs=1e-5)
            for name in (name for name in a if name.startswith(("forks_", "window_"))):
                assert a[name] == pytest.approx(b[name], abs=1e-5)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], abs=1e-4)
        if a["kind"] == "eval":
            assert a["metrics"].keys() == b["metrics"].keys()
            for name, m in a["metrics"].items():
                if m["value"] is not None:
                    assert m["value"] == pytest.approx(b["metrics"][name]["value"], abs=1e-5)
    looks = CASES[case]["method.name"] == "near-future"
    assert (sum(a.get("forks_real", 0) for a in rows[0]) > 2) == looks


def test_ragged_shares_are_other_numbers_of_pieces(two):
    """Or the case above would be none: in most steps one process makes more forward passes than the other, which only
    works if gradients are exchanged at each one's last."""
    counts = [json.loads((two / "ragged" / f"pieces-{rank}.json").read_text()) for rank in range(2)]
    assert sum(a != b for a, b in zip(*counts, strict=True)) >= STEPS // 2
    assert max(map(max, counts)) > 1


@pytest.mark.parametrize("case", ["sharded", "sharded replay"])
def test_processes_that_share_weights_make_as_many_passes(two, case):
    """Fails (with real shards: hangs) if a process with fewer trajectories makes fewer passes."""
    counts = [json.loads((two / case / f"pieces-{rank}.json").read_text()) for rank in range(2)]
    assert counts[0] == counts[1]
    # Or nothing was padded: a step's passes are then exactly its trajectories, and here they are more.
    size = CASES[case]["train.batch_size"]
    assert any(2 * count > size + size % 2 for count in counts[0])


def test_a_checkpoint_of_two_processes_is_whole(two):
    """It has one model, both random states and both pools, and two processes can go on from it.

    Fails if each process writes a checkpoint of its own and the last one wins.
    """
    folder = two / "aggregating" / "checkpoints"
    assert [p.name for p in folder.iterdir()] == ["step-000004"]
    state = {p.name for p in (folder / "step-000004" / "state").iterdir()}
    assert {"model.safetensors", "optimizer.bin", "progress.json"} <= state
    assert {"random_states_0.pkl", "random_states_1.pkl", "pool-0-of-2.json", "pool-1-of-2.json"} <= state
    run = two / "aggregating"
    assert torch.equal(weights(run / "final"), weights(run / "first final"))
    first, second = (json.loads((run / name).read_text()) for name in ("first result.json", "result.json"))
    assert first["metrics"] == second["metrics"]
