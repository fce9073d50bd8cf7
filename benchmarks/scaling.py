"""Cost of a whole step against batch, length, vocabulary and model size: a slope of 1 on log-log axes is proportional cost.

Each axis is varied alone, sizes in turn. On a CPU processor time, because a slope compares times that are seconds apart; on a
GPU wall time.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import (
    Figure,
    Result,
    add_device,
    clock_name,
    clock_of,
    command_of,
    device_named,
    figure,
    gemm_gflops,
    interleaved,
    median_seconds,
    parser,
    ratios,
    seconds_now,
    speed_notes,
    write,
)
from benchmarks.step import step_flops
from benchmarks.step_ours import as_written, make_setup, this_round
from benchmarks.step_workload import SMALL, SMOKE, Shape, Workload, write_workload
from understudy.processor import keep_freed_memory
from understudy.rollouts.collect import collect
from understudy.rollouts.hf import evaluating
from understudy.trainer.checkpoint import Progress
from understudy.trainer.setup import Clock, Setup
from understudy.trainer.step import optimizer_step

SLOPE_TARGET = 1.1
"""Of the time against the counted operations; above it, something grows faster than the arithmetic."""
PHASES = ("collect", "label", "train")


def axes(base: Workload) -> dict[str, dict[str, Workload]]:
    """For each axis, the base workload at several sizes."""
    widths = (base.student.width, 2 * base.student.width, 3 * base.student.width)
    shapes = {w: Shape(layers=base.student.layers, width=w) for w in widths}
    return {
        "batch": {
            str(n): replace(base, batch_size=n)
            for n in (base.batch_size // 2, base.batch_size, base.batch_size * 2)
        },
        "response length": {
            str(n): replace(base, new_tokens=n)
            for n in (base.new_tokens // 2, base.new_tokens, base.new_tokens * 2)
        },
        "vocabulary": {
            str(n): replace(base, vocab_size=n)
            for n in (base.vocab_size, base.vocab_size * 4, base.vocab_size * 8)
        },
        "width": {str(w): replace(base, student=shape) for w, shape in shapes.items()},
    }


class PhaseClock(Clock):
    """A clock of a run that keeps the phases of each step by the benchmark's clock, too."""

    def __init__(self, progress: Progress, device: torch.device) -> None:
        super().__init__(progress, device)
        self.steps: list[dict[str, float]] = []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = seconds_now(self.device)
        with super().phase(name):
            yield
        this = self.steps[-1]
        this[name] = this.get(name, 0.0) + seconds_now(self.device) - start


@dataclass(frozen=True)
class Stepper:
    """What a run does in a round, without its log."""

    s: Setup
    work: Workload
    progress: Progress
    clock: PhaseClock

    @classmethod
    def of(cls, s: Setup, work: Workload) -> Stepper:
        progress = Progress()
        return cls(s, work, progress, PhaseClock(progress, s.accelerator.device))

    def __call__(self) -> None:
        s, progress = self.s, self.progress
        self.clock.steps.append({})
        this = this_round(progress, self.work.batch_size)
        with self.clock.phase("collect"), evaluating(s.model):
            fresh = collect(s.sources, s.method.prefixes, s.options, this)
        progress.round += 1
        progress.prompts += self.work.batch_size
        optimizer_step(s, fresh, progress, self.clock)
        progress.step += 1


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Least squares of log seconds on log size."""
    x, y = [math.log(s) for s in sizes], [math.log(s) for s in seconds]
    centre = statistics.mean(x)
    return sum((a - centre) * b for a, b in zip(x, y, strict=True)) / sum((a - centre) ** 2 for a in x)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What was found along one axis; `tables` and `floors` are rows of the result's."""

    figures: list[Figure]
    tables: dict[str, dict[str, float]]
    floors: dict[str, dict[str, float]]
    note: str


def measure_axis(
    name: str, works: Mapping[str, Workload], *, repeats: int, speed_gflops: float, device: torch.device
) -> Axis:
    """Slopes turn by turn, of whole steps and of their phases; all sizes have their step in every turn."""
    with tempfile.TemporaryDirectory() as place:
        steppers: dict[str, Stepper] = {}
        for size, work in works.items():
            folder = Path(place) / size
            folder.mkdir()
            write_workload(work, folder)
            steppers[size] = Stepper.of(make_setup(folder, {}, device)[0], work)
        found = interleaved(steppers, repeats=repeats, warmup=1)
    clock = clock_of(device)
    sizes = [float(size) for size in works]
    flops = {size: step_flops(work) for size, work in works.items()}
    whole = {size: sum(parts.values()) for size, parts in flops.items()}
    turns = [[found[size][turn].seconds(clock) for size in works] for turn in range(repeats)]
    figures = [
        figure(f"slope of time against {name}, {' / '.join(works)}", [slope(sizes, t) for t in turns]),
        figure(
            f"slope of time against counted operations, by {name}",
            [slope(list(whole.values()), t) for t in turns],
            SLOPE_TARGET,
        ),
    ]
    seconds = {size: median_seconds(found[size], clock) for size in works}
    tables, parts = {f"seconds of a step by {name}": seconds}, []
    for phase in PHASES:
        # The first step of each was the warm-up.
        spent = {size: [step[phase] for step in s.clock.steps[1:]] for size, s in steppers.items()}
        tables[f"seconds of {phase} by {name}"] = {size: statistics.median(t) for size, t in spent.items()}
        by_turn = list(zip(*spent.values(), strict=True))
        counted = [flops[size][phase] for size in works]
        said = f"{phase} {spread([slope(sizes, t) for t in by_turn])}"
        # The expert has nothing more to do for a wider student.
        if len(set(counted)) > 1:
            said += f", against its operations {spread([slope(counted, t) for t in by_turn])}"
        parts.append(said)
    return Axis(
        figures=figures,
        tables=tables,
        floors={f"{name} {size}": floor_row(whole[size], speed_gflops, seconds[size]) for size in works},
        note=f"Slopes of the phases against {name}: {'; '.join(parts)}.",
    )


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def floor_row(flops: float, speed_gflops: float, seconds: float) -> dict[str, float]:
    """The counted operations of a step, their time at the measured speed, and how far above it the step is."""
    least = flops / speed_gflops / 1e9
    return {
        "gflop": flops / 1e9,
        "gflops_measured": speed_gflops,
        "step_seconds": least,
        "measured_seconds": seconds,
        "measured / floor": seconds / least,
    }


def measure_padding(base: Workload, *, repeats: int, device: torch.device) -> list[Figure]:
    """Labels, loss and gradient on responses with a long tail: one padded batch against pieces of like length."""
    work = replace(base, batch_size=2 * base.batch_size)
    draw = torch.Generator().manual_seed(0)
    tail = torch.empty(work.batch_size).exponential_(1 / 45, generator=draw)
    lengths = [min(1 + int(n), 256) for n in tail.tolist()]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_workload(replace(work, prompt_tokens=64, new_tokens=256), folder)
        setups = {
            "pieces": make_setup(folder, {}, device),
            "whole": make_setup(folder, {"train.micro_batch_size": work.batch_size}, device),
        }
        _, _, prompts, responses = setups["whole"]
        rows = [r[:n] for r, n in zip(responses, lengths, strict=True)]
        trajectories = as_written(prompts[: len(rows)], rows)
        padding: dict[str, float] = {}

        def action(name: str) -> Callable[[], None]:
            s = setups[name][0]
            progress = Progress()
            clock = Clock(progress, s.accelerator.device)

            def step() -> None:
                padding[name] = optimizer_step(s, trajectories, progress, clock).padding_rate

            return step

        found = interleaved({name: action(name) for name in setups}, repeats=repeats)
    return [
        figure(
            f"{clock_name(device)} time on long-tailed lengths, pieces / padded whole",
            ratios(found["pieces"], found["whole"], clock_of(device)),
        ),
        figure("padding of long-tailed lengths, padded whole", [padding["whole"]]),
        figure("padding of long-tailed lengths, pieces", [padding["pieces"]], 0.05),
    ]


def measure(base: Workload, *, repeats: int, command: str, device: torch.device) -> Result:
    figures: list[Figure] = []
    tables: dict[str, Any] = {}
    floors: dict[str, Any] = {}
    speeds = [gemm_gflops(device=device)]
    notes: list[str] = []
    for name, works in axes(base).items():
        found = measure_axis(name, works, repeats=repeats, speed_gflops=speeds[0], device=device)
        figures += found.figures
        tables |= found.tables
        floors |= found.floors
        notes.append(found.note)
        speeds.append(gemm_gflops(device=device))
    figures += measure_padding(base, repeats=repeats, device=device)
    return Result(
        name="scaling",
        question="Does a step cost more than in proportion to batch, length, vocabulary or model size?",
        figures=figures,
        command=command,
        phases=tables,
        floor=floors,
        notes=[
            f"The base is {base.name}: batch {base.batch_size}, {base.new_tokens} new tokens, float32, no drafts.",
            f"Phases: {clock_name(device)} seconds of whole steps and their parts, medians.",
            f"Floor: {clock_name(device)} seconds, at the speed of square products measured once at the start of the run.",
            *notes,
            *speed_notes(speeds),
        ],
        device=device,
    )


def main(arguments: Sequence[str]) -> None:
    options = parser("scaling", __doc__)
    add_device(options)
    options.add_argument("--repeats", type=int, default=5, help="timed steps of each size")
    chosen = options.parse_args(arguments)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    keep_freed_memory()
    base, repeats = (SMOKE, 2) if chosen.smoke else (SMALL, chosen.repeats)
    command, device = command_of("scaling", arguments), device_named(chosen.device)
    write(measure(base, repeats=repeats, command=command, device=device), chosen.out)


if __name__ == "__main__":
    main(sys.argv[1:])
