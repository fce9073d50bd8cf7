"""Our side of `benchmarks.step`: the loop of a run, one step a line of input."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from benchmarks.common import wait_for_device
from benchmarks.step_workload import Workload, read_workload
from understudy.build import build
from understudy.config import recipe_from_table
from understudy.evaluation.score import Evaluation
from understudy.processor import keep_freed_memory
from understudy.records import Prompt, Trajectory
from understudy.rollouts.collect import Round
from understudy.tasks.task import Grade
from understudy.trainer.checkpoint import Progress
from understudy.trainer.collate import collate
from understudy.trainer.loop import run_rounds
from understudy.trainer.loss import gate_of, label, position_values
from understudy.trainer.setup import Setup
from understudy.wiring import assemble


@dataclass(frozen=True, kw_only=True)
class FixedPrompts:
    """A task of given prompts. Without end ids every response has its full length."""

    token_ids: tuple[tuple[int, ...], ...]
    vocab_size: int
    max_new_tokens: int
    name: str = "fixed"
    identity: str = "fixed"
    eos_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    action_ids: tuple[int, ...] | None = None

    def size(self, split: str) -> int | None:
        return len(self.token_ids)

    def prompts(self, split: str, start: int, count: int) -> list[Prompt]:
        numbers = (i % len(self.token_ids) for i in range(start, start + count))
        return [Prompt(id=str(i), token_ids=self.token_ids[i]) for i in numbers]

    def grade(self, prompt: Prompt, response_ids: Sequence[int]) -> Grade | None:
        return None

    def token_grades(self, prompt: Prompt, response_ids: Sequence[int]) -> None:
        return None

    def oracle(self) -> None:
        return None

    def decode(self, token_ids: Sequence[int]) -> str:
        return " ".join(map(str, token_ids))


class SilentBar:
    """In place of a progress bar."""

    def hint(self, note: str) -> None: ...

    def move(self, completed: int, note: str | None = None) -> None: ...


def recipe_table(work: Workload, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    table: dict[str, Any] = {
        "name": "benchmark",
        # The task's place is taken by FixedPrompts; a task of bare token ids needs no tokenizer.
        "task": {"kind": "modular_addition", "modulus": 3, "length": 3},
        "student": {"checkpoint": str(folder / "student")},
        "expert": {"kind": "local", "checkpoint": str(folder / "expert")},
        "method": {"name": "opd-r"},
        # The comparison is without drafts: every response is decoded.
        "rollouts": {"drafts": "off"},
        "train": {"steps": 1_000_000, "batch_size": work.batch_size},
        "optimizer": {"learning_rate": 1e-4},
        "evaluate": {"every_steps": 1_000_000, "prompts": 1},
    }
    for name, value in settings.items():
        part, key = name.split(".")
        table.setdefault(part, {})[key] = value
    return table


def make_setup(
    folder: Path, settings: dict[str, Any], device: torch.device
) -> tuple[Setup, Workload, list[Any], list[Any]]:
    work, prompts, responses = read_workload(folder)
    recipe = recipe_from_table(recipe_table(work, folder, settings))
    accelerator = Accelerator(mixed_precision=recipe.train.mixed_precision, cpu=device.type == "cpu")
    task = FixedPrompts(
        token_ids=tuple(map(tuple, prompts)),
        vocab_size=work.vocab_size,
        max_new_tokens=work.new_tokens,
        eos_ids=frozenset() if work.end_id is None else frozenset({work.end_id}),
    )
    parts = build(recipe, device=accelerator.device, task=task)
    bar: Any = SilentBar()
    run = Path(tempfile.mkdtemp(dir=folder))
    return (
        assemble(recipe, parts, accelerator, run, bar, data_root=run, stage="main"),
        work,
        prompts,
        responses,
    )


def as_written(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[Trajectory]:
    """Given responses, as if the student had written them."""
    return [
        Trajectory(
            prompt=Prompt(id=str(i), token_ids=tuple(p)),
            sample_index=0,
            response_ids=tuple(r),
            is_student=(True,) * len(r),
            logp=(0.0,) * len(r),
            temperature=1.0,
            finish="length",
            round=0,
            student_version=0,
        )
        for i, (p, r) in enumerate(zip(prompts, responses, strict=True))
    ]


def fixed_loss(s: Setup, work: Workload, prompts: list[Any], responses: list[Any]) -> float:
    """Our loss of the untrained student on the fixed batch: mean over response tokens."""
    batch = collate(as_written(prompts[: work.batch_size], responses), s.accelerator.device)
    gate_BT = gate_of(s.method, batch)
    labels = label(batch, gate_BT, s.objective, s.expert, s.recipe.seed)
    with s.accelerator.autocast():
        found = position_values(s.model, work.vocab_size, batch, labels, {"loss": s.row_loss})
    return float(found["loss"].mean())


def serve(s: Setup, before: Callable[[Progress], object] | None = None) -> None:
    """The loop of a run, stopped after every step until the next line comes.

    `before`: what is to be done before each step without being timed.
    """
    seconds: dict[str, float] = {}
    start = (0.0, 0.0)

    def wait(progress: Progress) -> None:
        nonlocal start
        if sys.stdin.readline().strip() != "step":
            os._exit(0)
        if before is not None:
            before(progress)
        wait_for_device()
        start = (time.perf_counter(), time.process_time())

    def report(progress: Progress, evaluation: Evaluation | None) -> None:
        if evaluation is not None:
            return wait(progress)
        wait_for_device()
        wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        phases = {name: total - seconds.get(name, 0.0) for name, total in progress.seconds.items()}
        seconds.update(progress.seconds)
        answer({"wall_seconds": wall, "cpu_seconds": cpu, "phases": phases})
        return wait(progress)

    # No evaluation: only steps are timed.
    nothing = Evaluation(metrics={}, by_position={}, rollouts=[])
    run_rounds(replace(s, report=report, evaluate=lambda: nothing), Progress(), [])


def this_round(progress: Progress, num_prompts: int) -> Round:
    """The round that a run in one process would collect next."""
    return Round(
        number=progress.round,
        first_prompt=progress.prompts,
        num_prompts=num_prompts,
        student_version=progress.step,
    )


def answer(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def main(folder: str, settings: str, device_type: str) -> None:
    chosen = json.loads(settings)
    if chosen.pop("allocator", True):
        keep_freed_memory()
    s, work, prompts, responses = make_setup(Path(folder), chosen, torch.device(device_type))
    torch.manual_seed(0)
    assert sys.stdin.readline().strip() == "loss"
    answer({"loss_nats": fixed_loss(s, work, prompts, responses), "folder": str(s.folder)})
    serve(s)


if __name__ == "__main__":
    main(*sys.argv[1:])
