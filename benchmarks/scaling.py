"""Cost of a whole step against batch, length, vocabulary and model size: a slope of 1 on log-log axes is proportional cost.

Each axis is varied alone, sizes in turn. Processor time, because a slope compares times that are seconds apart.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Figure, Result, command_of, figure, interleaved, parser, ratios, write
from benchmarks.step import step_flops
from benchmarks.step_ours import as_written, make_setup
from benchmarks.step_workload import SMALL, SMOKE, Shape, Workload, write_workload
from understudy.processor import keep_freed_memory
from understudy.rollouts.collect import Round, collect
from understudy.rollouts.hf import evaluating
from understudy.trainer.checkpoint import Progress
from understudy.trainer.setup import Clock, Setup
from understudy.trainer.step import optimizer_step

SLOPE_TARGET = 1.1
"""Of the time against the counted operations; above it, something grows faster than the arithmetic."""


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


def one_step(s: Setup, work: Workload) -> Callable[[], None]:
    """What a run does in a round, without its log."""
    progress = Progress()
    clock = Clock(progress, s.accelerator.device)

    def step() -> None:
        this = Round(
            number=progress.round,
            first_prompt=progress.prompts,
            num_prompts=work.batch_size,
            student_version=progress.step,
            process=0,
            num_processes=1,
        )
        with evaluating(s.model):
            fresh = collect(s.sources, s.method.prefixes, s.options, this)
        progress.round += 1
        progress.prompts += work.batch_size
        optimizer_step(s, fresh, progress, clock)
        progress.step += 1

    return step


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Least squares of log seconds on log size."""
    x, y = [math.log(s) for s in sizes], [math.log(s) for s in seconds]
    centre = statistics.mean(x)
    return sum((a - centre) * b for a, b in zip(x, y, strict=True)) / sum((a - centre) ** 2 for a in x)


def measure_axis(
    name: str, works: Mapping[str, Workload], *, repeats: int
) -> tuple[list[Figure], dict[str, float]]:
    with tempfile.TemporaryDirectory() as place:
        actions = {}
        for size, work in works.items():
            folder = Path(place) / size
            folder.mkdir()
            write_workload(work, folder)
            actions[size] = one_step(make_setup(folder, {"rollouts.drafts": "off"})[0], work)
        found = interleaved(actions, repeats=repeats)
    sizes = [float(size) for size in works]
    flops = [sum(step_flops(work).values()) for work in works.values()]
    turns = [[found[size][turn].cpu_seconds for size in works] for turn in range(repeats)]
    figures = [
        figure(f"slope of time against {name}, {' / '.join(works)}", [slope(sizes, t) for t in turns]),
        figure(
            f"slope of time against counted operations, by {name}",
            [slope(flops, t) for t in turns],
            SLOPE_TARGET,
        ),
    ]
    return figures, {size: statistics.median(t.cpu_seconds for t in found[size]) for size in works}


def measure_padding(base: Workload, *, repeats: int) -> list[Figure]:
    """Labels, loss and gradient on responses with a long tail: one padded batch against pieces of like length."""
    work = replace(base, batch_size=2 * base.batch_size)
    draw = torch.Generator().manual_seed(0)
    tail = torch.empty(work.batch_size).exponential_(1 / 45, generator=draw)
    lengths = [min(1 + int(n), 256) for n in tail.tolist()]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_workload(replace(work, prompt_tokens=64, new_tokens=256), folder)
        setups = {
            "pieces": make_setup(folder, {"rollouts.drafts": "off"}),
            "whole": make_setup(
                folder, {"rollouts.drafts": "off", "train.micro_batch_size": work.batch_size}
            ),
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
            "processor time on long-tailed lengths, pieces / padded whole",
            ratios(found["pieces"], found["whole"], "cpu"),
        ),
        figure("padding of long-tailed lengths, padded whole", [padding["whole"]]),
        figure("padding of long-tailed lengths, pieces", [padding["pieces"]], 0.05),
    ]


def measure(base: Workload, *, repeats: int, command: str) -> Result:
    figures: list[Figure] = []
    tables: dict[str, Any] = {}
    for name, works in axes(base).items():
        made, tables[f"processor seconds of a step by {name}"] = measure_axis(name, works, repeats=repeats)
        figures += made
    figures += measure_padding(base, repeats=repeats)
    return Result(
        name="scaling",
        question="Does a step cost more than in proportion to batch, length, vocabulary or model size?",
        figures=figures,
        command=command,
        phases=tables,
        notes=[
            f"The base is {base.name}: batch {base.batch_size}, {base.new_tokens} new tokens, float32, no drafts."
        ],
    )


def main(arguments: Sequence[str]) -> None:
    options = parser("scaling", __doc__)
    options.add_argument("--repeats", type=int, default=5, help="timed steps of each size")
    chosen = options.parse_args(arguments)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    keep_freed_memory()
    base, repeats = (SMOKE, 2) if chosen.smoke else (SMALL, chosen.repeats)
    write(measure(base, repeats=repeats, command=command_of("scaling", arguments)), chosen.out)


if __name__ == "__main__":
    main(sys.argv[1:])
