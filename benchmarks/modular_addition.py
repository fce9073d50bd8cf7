"""Modular addition at the paper's size: trajectories a second and the share of each phase, with drafts and without.

Both sides run the recipe's own loop, in turns, from one student: untrained, and one that has learned the task (the state
in which most of a run of 47 thousand steps is spent).
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from benchmarks.common import Figure, Result, command_of, figure, parser, ratios, write
from benchmarks.step import ROOT, environment, phases, timings
from benchmarks.step_ours import SilentBar, answer, serve
from benchmarks.step_workload import WorkerProcess
from understudy.build import build
from understudy.config import load_recipe
from understudy.processor import keep_freed_memory
from understudy.run import train
from understudy.schema import Recipe
from understudy.wiring import assemble

RECIPE = ROOT / "recipes" / "modular-addition-paper" / "recipe.toml"
SMALL = {"student.new.width": 32, "student.new.heads": 2, "student.new.intermediate": 64, "task.length": 5}
DRAFTS = {"with drafts": "auto", "without drafts": "off"}
ROLLOUT_SHARE_TARGET = 0.1


def recipe_of(settings: dict[str, Any]) -> Recipe:
    return load_recipe(RECIPE, {"evaluate.prompts": 64, "evaluate.every_steps": 1_000_000, **settings})


def learned(folder: Path, settings: dict[str, Any], steps: int) -> Path:
    """A student that knows the task: cross-entropy on the references, at a rate that gets there in a few hundred steps."""
    chosen = {
        "method.name": "sft",
        "expert.noise.eta": 0.0,
        "data.offline": "reference",
        "optimizer.learning_rate": 1e-3,
        "optimizer.warmup_steps": 20,
        "train.steps": steps,
        "evaluate.every_steps": 25,
        "stop": {"metric": "accuracy_greedy", "target": 0.99},
    }
    return train(recipe_of({**settings, **chosen}), folder).checkpoint


def worker(folder: str, settings: str) -> None:
    """The loop of the recipe, one step a line of input."""
    keep_freed_memory()
    chosen = json.loads(settings)
    checkpoint = chosen.pop("checkpoint")
    recipe = recipe_of(chosen)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    parts = build(recipe, device=accelerator.device, checkpoint=checkpoint)
    run = Path(tempfile.mkdtemp(dir=folder))
    bar: Any = SilentBar()
    setup = assemble(recipe, parts, accelerator, run, bar, data_root=run, stage="main")
    assert sys.stdin.readline().strip() == "loss"
    answer({"loss_nats": 0.0})
    serve(setup)


def run_sides(
    folder: Path, settings: dict[str, Any], *, warmup: int, repeats: int
) -> dict[str, dict[str, Any]]:
    """Steps with drafts and without, in turn."""
    workers: dict[str, WorkerProcess] = {}
    found: dict[str, dict[str, Any]] = {name: {"steps": []} for name in DRAFTS}
    try:
        for name, drafts in DRAFTS.items():
            chosen = json.dumps({**settings, "rollouts.drafts": drafts})
            command = [sys.executable, "-m", "benchmarks.modular_addition", "--worker", str(folder), chosen]
            workers[name] = WorkerProcess(command, environment(), folder)
            workers[name].ask("loss")
            for _ in range(warmup):
                workers[name].ask("step")
        for turn in range(repeats):
            for name in DRAFTS if turn % 2 == 0 else reversed(DRAFTS):
                found[name]["steps"].append(workers[name].ask("step"))
    finally:
        for one in workers.values():
            one.close()
    return found


def figures_of(state: str, found: dict[str, dict[str, Any]], batch_size: int) -> list[Figure]:
    ours, plain = (timings(found[name]) for name in DRAFTS)
    made = [figure(f"step time, with drafts / without, {state} student", ratios(ours, plain))]
    for name, side in found.items():
        share = [step["phases"].get("collect", 0.0) / step["wall_seconds"] for step in side["steps"]]
        target = ROLLOUT_SHARE_TARGET if (state, name) == ("trained", "with drafts") else None
        made.append(figure(f"rollout's share of a step, {name}, {state} student", share, target))
        speed = [batch_size / step["wall_seconds"] for step in side["steps"]]
        made.append(figure(f"trajectories a second, {name}, {state} student", speed))
    if state == "trained":
        collect = [
            b["phases"]["collect"] / a["phases"]["collect"]
            for a, b in zip(found["with drafts"]["steps"], found["without drafts"]["steps"], strict=True)
        ]
        made.append(figure("rollout speed, with drafts / without, trained student", collect))
    return made


def measure(*, smoke: bool, repeats: int, command: str) -> Result:
    settings: dict[str, Any] = SMALL if smoke else {}
    figures: list[Figure] = []
    tables: dict[str, Any] = {}
    notes = ["On a CPU; the three-fold rise that is asked for on a GPU was not measured."]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        trained = learned(folder / "learned", settings, 2 if smoke else 600)
        for state, checkpoint in (("untrained", None), ("trained", str(trained))):
            sides = run_sides(
                folder, {**settings, "checkpoint": checkpoint}, warmup=1 if smoke else 3, repeats=repeats
            )
            figures += figures_of(state, sides, recipe_of(settings).train.batch_size)
            tables |= {f"{state} student, {name}": phases(side) for name, side in sides.items()}
    return Result(
        name="modular_addition",
        question="How many trajectories a second does the paper's setting train on, and where does a step's time go?",
        figures=figures,
        command=command,
        phases=tables,
        notes=notes,
    )


def main(arguments: Sequence[str]) -> None:
    if arguments and arguments[0] == "--worker":
        return worker(*arguments[1:])
    options = parser("modular_addition", __doc__)
    options.add_argument("--repeats", type=int, default=9, help="timed steps of each side")
    chosen = options.parse_args(arguments)
    repeats = 2 if chosen.smoke else chosen.repeats
    command = command_of("modular_addition", arguments)
    write(measure(smoke=chosen.smoke, repeats=repeats, command=command), chosen.out)
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
