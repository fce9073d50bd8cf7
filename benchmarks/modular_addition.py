"""Modular addition at the paper's size: trajectories a second and what writing the responses adds, with drafts and without.

1. The recipe's own loop, in turns, from one student: untrained, and one that has learned the task (the state in which most
   of a run of 47 thousand steps is spent). Three sides train on the same trajectories: written with drafts, written without,
   and given beforehand. What writing adds to a step is 1 - (step that is given them) / (step that writes them): with drafts,
   the pass that checks them is the forward pass of the loss, so the seconds by phase do not tell.
2. The learning curve with drafts and without, on the smaller recipe `modular-addition`: whole runs from the same seeds.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console

from benchmarks.common import (
    Figure,
    Result,
    add_device,
    clock_name,
    clock_of,
    command_of,
    device_named,
    figure,
    forward_flops,
    gemm_gflops,
    median_seconds,
    parser,
    ratios,
    speed_notes,
    target_on,
    write,
)
from benchmarks.drafts import train_device
from benchmarks.step import ROOT, in_turns, phases, timings
from benchmarks.step_ours import SilentBar, answer, serve, this_round
from understudy.build import build
from understudy.config import load_recipe
from understudy.evaluation.statistics import mean_interval
from understudy.processor import keep_freed_memory
from understudy.rollouts.collect import collect
from understudy.rollouts.hf import evaluating
from understudy.rollouts.sampler import Response
from understudy.run import RunResult, train
from understudy.schema import Recipe
from understudy.trainer.checkpoint import Progress
from understudy.trainer.setup import Setup
from understudy.wiring import assemble

RECIPE = ROOT / "recipes" / "modular-addition-paper" / "recipe.toml"
LEARNING_RECIPE = ROOT / "recipes" / "modular-addition"
SMALL = {"student.new.width": 32, "student.new.heads": 2, "student.new.intermediate": 64, "task.length": 5}
GIVEN = "given responses"
SIDES = {"with drafts": "auto", "without drafts": "off", GIVEN: "off"}
"""`rollouts.drafts` of each."""
WRITING_TARGET = 0.1
GPU_SPEED_TARGET = 3.0
LEAST_ACCURACY = 0.9
"""Of a student that may be called trained."""
MOST_STEPS_TO_LEARN = 2000
"""It ends sooner, at an accuracy of 0.99."""
LARGEST_LOSS_GAP = 1e-2
"""Nats between the sides: they are to train on the same trajectories, up to rounding."""


def recipe_of(settings: dict[str, Any]) -> Recipe:
    return load_recipe(RECIPE, {"evaluate.prompts": 64, "evaluate.every_steps": 1_000_000, **settings})


def learned(folder: Path, settings: dict[str, Any], steps: int) -> RunResult:
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
    return train(recipe_of({**settings, **chosen}), folder)


def require_learned(accuracy: float) -> None:
    if accuracy < LEAST_ACCURACY:
        raise RuntimeError(
            f"the student that is to be measured as trained has accuracy {accuracy:.2f}, less than {LEAST_ACCURACY}: what drafts "
            "save would be that of another student. Give it more steps (`learned`)."
        )


# --- steps -----------------------------------------------------------------------------------------------------------------


@dataclass
class GivenResponses:
    """In place of the expert's samples: responses that were made before the clock ran."""

    rows: list[Response] = field(default_factory=list)

    def responses(self, start: int, count: int) -> list[Response]:
        return self.rows


def as_given(s: Setup) -> tuple[Setup, Callable[[Progress], None]]:
    """A setup that trains on fixed data, and what fills these with the responses that the student would have written."""
    held: Any = GivenResponses()
    num_prompts = s.recipe.train.batch_size // s.recipe.train.samples_per_prompt

    def prepare(progress: Progress) -> None:
        with evaluating(s.model), s.accelerator.autocast():
            found = collect(s.sources, s.method.prefixes, s.options, this_round(progress, num_prompts))
        held.rows = [
            Response(token_ids=t.response_ids, is_student=t.is_student, logp=t.logp, finish=t.finish)
            for t in found
        ]

    fixed = replace(s.method.prefixes, temperature=None)
    given = replace(
        s, method=replace(s.method, prefixes=fixed), sources=replace(s.sources, offline=held, drafts=None)
    )
    return given, prepare


def worker(folder: str, settings: str, device_type: str, side: str) -> None:
    """The loop of the recipe, one step a line of input; its log is in the folder."""
    keep_freed_memory()
    chosen = json.loads(settings)
    checkpoint = chosen.pop("checkpoint")
    recipe = recipe_of({**chosen, "rollouts.drafts": SIDES[side]})
    accelerator = Accelerator(cpu=device_type == "cpu")
    parts = build(recipe, device=accelerator.device, checkpoint=checkpoint)
    run = Path(folder)
    bar: Any = SilentBar()
    setup = assemble(recipe, parts, accelerator, run, bar, data_root=run, stage="main")
    before = None
    if side == GIVEN:
        setup, before = as_given(setup)
    assert sys.stdin.readline().strip() == "loss"
    answer({"loss_nats": 0.0})
    serve(setup, before)


def train_rows(folder: Path) -> list[dict[str, Any]]:
    """What a run logged of each step."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "train"]


def run_sides(
    folder: Path, settings: dict[str, Any], *, warmup: int, repeats: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Steps of the three sides, in turn: their timings, and what they logged."""
    places = {name: folder / name.replace(" ", "-") for name in SIDES}
    commands: dict[str, list[str]] = {}
    for name, place in places.items():
        place.mkdir(parents=True)
        commands[name] = [sys.executable, "-m", "benchmarks.modular_addition", "--worker", str(place)]
        commands[name] += [json.dumps(settings), device.type, name]
    found = in_turns(commands, folder, repeats=repeats, warmup=warmup)
    for name, place in places.items():
        found[name]["log"] = train_rows(place)[warmup:]
    require_same_losses({name: [row["loss_nats"] for row in side["log"]] for name, side in found.items()})
    return found


def require_same_losses(losses_of: Mapping[str, Sequence[float]]) -> None:
    for at_once in zip(*losses_of.values(), strict=True):
        apart = max(at_once) - min(at_once)
        assert apart <= LARGEST_LOSS_GAP, f"the sides do not train on the same responses: {apart} nats apart"


def figures_of(
    state: str, found: dict[str, dict[str, Any]], batch_size: int, device: torch.device
) -> list[Figure]:
    drafts, plain, given = (timings(found[name]) for name in SIDES)
    clock, is_trained = clock_of(device), state == "trained"
    target = target_on(device, gpu=GPU_SPEED_TARGET) if is_trained else None
    gain = [b.wall_seconds / a.wall_seconds for a, b in zip(drafts, plain, strict=True)]
    made = [
        figure(f"step time, with drafts / without, {state} student", ratios(drafts, plain, clock)),
        figure(f"trajectories a second, with drafts / without, {state} student", gain, target, ">="),
    ]
    for name, side in (("with drafts", drafts), ("without drafts", plain)):
        added = [1 - ratio for ratio in ratios(given, side, clock)]
        target = target_on(device, cpu=WRITING_TARGET) if is_trained and name == "with drafts" else None
        made.append(
            figure(f"what writing adds to a step, share of it, {name}, {state} student", added, target)
        )
        speed = [batch_size / t.wall_seconds for t in side]
        made.append(figure(f"trajectories a second, {name}, {state} student", speed))
    return made


def table_row(side: dict[str, Any], device: torch.device) -> dict[str, float]:
    """Median wall seconds of the phases, then the whole step by the clock that is compared, then rates of the log."""
    row = phases(side)
    row[f"step, {clock_name(device)}"] = median_seconds(timings(side), clock_of(device))
    for name in ("draft_acceptance_rate", "read_rate"):
        logged = [r[name] for r in side["log"] if r[name] is not None]
        row[name] = statistics.mean(logged) if logged else 0.0
    return row


def floors(
    settings: dict[str, Any], speed_gflops: float, trained: dict[str, dict[str, Any]], device: torch.device
) -> dict[str, dict[str, float]]:
    """Counted operations of a step, every draft right: the pass that checks them is then the forward pass of the loss.

    The expert is a formula: its labels cost no products.
    """
    recipe = recipe_of(settings)
    parts = build(recipe, device=torch.device("cpu"))
    shape = recipe.student.new
    assert shape is not None
    forward = recipe.train.batch_size * forward_flops(
        parts.student,
        layers=shape.layers,
        width=shape.width,
        vocab_size=parts.vocab_size,
        prompt_tokens=len(parts.task.prompts("train", 0, 1)[0].token_ids),
        response_tokens=parts.task.max_new_tokens,
    )
    passes = {
        "with drafts": {"collect": 1, "train": 2},
        "without drafts": {"collect": 1, "train": 3},
        GIVEN: {"collect": 0, "train": 3},
    }
    rows: dict[str, dict[str, float]] = {}
    for name, counted in passes.items():
        flops = {phase: n * forward for phase, n in counted.items()}
        least = sum(flops.values()) / speed_gflops / 1e9
        measured = median_seconds(timings(trained[name]), clock_of(device))
        rows[name] = {
            "gflop": sum(flops.values()) / 1e9,
            "gflops_measured": speed_gflops,
            **{f"{phase}_seconds": n / speed_gflops / 1e9 for phase, n in flops.items()},
            "step_seconds": least,
            "measured / floor, trained student": measured / least,
        }
    return rows


# --- learning --------------------------------------------------------------------------------------------------------------


LAST_STEPS = 10
LEARNING = {
    "train.steps": 30,
    "evaluate.every_steps": 3,
    "evaluate.sampled": False,
    "evaluate.expert_kl": False,
}
LEARNING_SMOKE = {
    **LEARNING,
    "train.steps": 3,
    "train.batch_size": 8,
    "warm_start.max_steps": 2,
    "evaluate.every_steps": 2,
    "evaluate.prompts": 8,
}


def learning_curve(recipe: Recipe, folder: Path, warm_start: Path | None = None) -> dict[str, float]:
    """One run: its loss and accuracy at the end and over the run, and how drafts did."""
    train(recipe, folder, warm_start=warm_start, console=Console(quiet=True))
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row.get("stage") == "main"]
    losses = [row["loss_nats"] for row in rows if row["kind"] == "train"]
    accuracies = [row["metrics"]["accuracy_greedy"]["value"] for row in rows if row["kind"] == "eval"]
    accepted = [row["draft_acceptance_rate"] or 0.0 for row in rows if row["kind"] == "train"]
    return {
        f"loss, mean of the last {LAST_STEPS} steps, nats": statistics.mean(losses[-LAST_STEPS:]),
        "loss, mean of all steps, nats": statistics.mean(losses),
        "greedy accuracy after the last step": accuracies[-1],
        "greedy accuracy, mean over the run": statistics.mean(accuracies),
        "draft acceptance rate": statistics.mean(accepted),
        "read rate": statistics.mean(row["read_rate"] for row in rows if row["kind"] == "train"),
    }


def compare_learning(
    folder: Path, device: torch.device, *, seeds: Sequence[int], settings: dict[str, Any]
) -> tuple[list[Figure], dict[str, Any]]:
    """Runs with drafts and without, pairwise from the same seeds and warm starts: differences, with the interval of the mean."""
    chosen = {**settings, "train.device": train_device(device)}
    curves: dict[str, list[dict[str, float]]] = {"with drafts": [], "without drafts": []}
    for seed in seeds:
        warm = None
        for side, found in curves.items():
            recipe = load_recipe(LEARNING_RECIPE, {**chosen, "seed": seed, "rollouts.drafts": SIDES[side]})
            run = folder / f"learning-{seed}" / side.replace(" ", "-")
            found.append(learning_curve(recipe, run, warm))
            warm = warm or run / "warm_start"
    quantities = [name for name in curves["with drafts"][0] if not name.endswith("rate")]
    figures = [
        difference(
            name, [c[name] for c in curves["with drafts"]], [c[name] for c in curves["without drafts"]]
        )
        for name in quantities
    ]
    table = {
        f"learning, {side}, mean of {len(seeds)} seeds": {
            name: statistics.mean(c[name] for c in found) for name in found[0]
        }
        for side, found in curves.items()
    }
    return figures, table


def difference(name: str, ours: Sequence[float], theirs: Sequence[float]) -> Figure:
    """Mean of the paired differences with Student's 95 % interval in place of median and range, which the name says."""
    found = mean_interval([a - b for a, b in zip(ours, theirs, strict=True)])
    assert found.low is not None
    assert found.high is not None
    head = f"learning: {name}, with drafts - without (mean of {len(ours)} seeds, 95 % interval)"
    return Figure(name=head, ratio_median=found.value, low=found.low, high=found.high)


# --- the whole -------------------------------------------------------------------------------------------------------------


def notes_of(device: torch.device, accuracy: float) -> list[str]:
    clock = clock_name(device)
    notes = [
        "Phases: wall seconds, medians; the last step column, step times and shares are by "
        f"{clock} seconds, trajectories a second by wall seconds. "
        "With drafts `collect` holds the forward pass that `train` then need not make, so the share of "
        "`collect` is not what writing costs; `given responses` trains on the same trajectories, written before the clock ran.",
        f"The trained student's greedy accuracy is {accuracy:.3f} on its validation prompts.",
        f"Floor: {clock} seconds, every draft right, at the speed of square products measured once at the start of the run.",
        f"Learning: whole runs of recipes/{LEARNING_RECIPE.name} (0.1M parameters), differences between equal seeds.",
    ]
    if device.type == "cpu":
        notes.append("On a CPU; the three-fold rise that is asked for on a GPU was not measured.")
    return notes


def measure(*, smoke: bool, repeats: int, num_seeds: int, command: str, device: torch.device) -> Result:
    settings: dict[str, Any] = (SMALL if smoke else {}) | {"train.device": train_device(device)}
    speeds = [gemm_gflops(device=device)]
    figures: list[Figure] = []
    tables: dict[str, Any] = {}
    sides: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        made = learned(folder / "learned", settings, 2 if smoke else MOST_STEPS_TO_LEARN)
        accuracy = made.metrics["accuracy_greedy"]["value"]
        assert accuracy is not None
        if not smoke:
            require_learned(accuracy)
        for state, checkpoint in (("untrained", None), ("trained", str(made.checkpoint))):
            sides = run_sides(
                folder / state,
                {**settings, "checkpoint": checkpoint},
                warmup=1 if smoke else 3,
                repeats=repeats,
                device=device,
            )
            figures += figures_of(state, sides, recipe_of(settings).train.batch_size, device)
            tables |= {f"{state} student, {name}": table_row(side, device) for name, side in sides.items()}
            speeds.append(gemm_gflops(device=device))
        figures.append(figure("greedy accuracy of the trained student", [accuracy], LEAST_ACCURACY, ">="))
        compared, curves = compare_learning(
            folder, device, seeds=range(num_seeds), settings=LEARNING_SMOKE if smoke else LEARNING
        )
    return Result(
        name="modular_addition",
        question="How many trajectories a second does the paper's setting train on, and what does writing them add to a step?",
        figures=[*figures, *compared],
        command=command,
        phases=tables | curves,
        floor=floors(settings, speeds[0], sides, device),
        notes=[*notes_of(device, accuracy), *speed_notes(speeds)],
        device=device,
    )


def main(arguments: Sequence[str]) -> None:
    if arguments and arguments[0] == "--worker":
        return worker(*arguments[1:])
    options = parser("modular_addition", __doc__)
    add_device(options)
    options.add_argument("--repeats", type=int, default=9, help="timed steps of each side")
    options.add_argument(
        "--seeds", type=int, default=3, help="pairs of runs whose learning is compared, 2 at least"
    )
    chosen = options.parse_args(arguments)
    result = measure(
        smoke=chosen.smoke,
        repeats=2 if chosen.smoke else chosen.repeats,
        num_seeds=2 if chosen.smoke else chosen.seeds,
        command=command_of("modular_addition", arguments),
        device=device_named(chosen.device),
    )
    write(result, chosen.out)
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
