"""What a look into the near future costs: a step of `near-future` beside one of `opd-r` on the same rollouts.

1. Windows that lie in the rollouts (`student_window = "rollout"`): the expert alone writes, and what it would have said is
   trained in the rollouts' own pass. The target is the paper's ratio of training times (arXiv:2606.00305).
2. Windows that the student writes, too, and that are trained behind their prefixes (`student_window = "written"`).

Each method runs in a process of its own, with one thread, and they take turns. The rate of learning is next to none, so that
weights stay as they are, and with them responses and their lengths: at every turn all methods train on the same ones.
Models are random. What is left to chance in them decides little about time: candidates are a share of the tokens and forks a
share of the candidates, however high losses and distances are. A response ends at one token of the vocabulary, whose size thus
sets how long responses are; windows end so, too.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
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
    median_seconds,
    parser,
    ratios,
    write,
)
from benchmarks.modular_addition import require_same_losses, train_rows
from benchmarks.step import in_turns, ours_command, phases, timings
from benchmarks.step_workload import Shape, Workload, write_workload

TARGET = 1.41
"""The paper's training time over that of on-policy distillation."""
STILL = 1e-30
"""A learning rate whose steps are lost in rounding."""
PLAIN, IN_ROLLOUTS, WRITTEN = "opd-r", "near-future, windows in the rollouts", "near-future, windows written"
STUDENT_WINDOW = {IN_ROLLOUTS: "rollout", WRITTEN: "written"}


@dataclass(frozen=True, kw_only=True)
class Case:
    work: Workload
    window_tokens: int
    candidate_quantile: float = 0.9775
    """Published are 218 candidates in 9,688 tokens, 2.25 %; short responses round their number up and need a higher one."""

    def settings(self, arm: str) -> dict[str, Any]:
        still = {"optimizer.learning_rate": STILL}
        if arm == PLAIN:
            return {"method.name": "opd-r", **still}
        return {
            "method.name": "near-future",
            "method.student_window": STUDENT_WINDOW[arm],
            "method.window_tokens": self.window_tokens,
            "method.candidate_quantile": self.candidate_quantile,
            **still,
        }


STUDENT, EXPERT = Shape(layers=3, width=96), Shape(layers=4, width=288)


def case(
    name: str, expert: Shape, *, vocab_size: int, new_tokens: int, window_tokens: int, quantile: float
) -> Case:
    work = Workload(
        name=name,
        student=STUDENT,
        expert=expert,
        vocab_size=vocab_size,
        batch_size=64,
        prompt_tokens=12,
        new_tokens=new_tokens,
        end_id=0,
    )
    return Case(work=work, window_tokens=window_tokens, candidate_quantile=quantile)


CASES = (
    case("0.5M / 0.5M, 80 tokens", STUDENT, vocab_size=96, new_tokens=192, window_tokens=24, quantile=0.985),
    case("0.5M / 5.4M, 80 tokens", EXPERT, vocab_size=96, new_tokens=192, window_tokens=24, quantile=0.985),
    case(
        "0.5M / 5.5M, 200 tokens", EXPERT, vocab_size=256, new_tokens=400, window_tokens=50, quantile=0.9775
    ),
)
SMOKE = Case(
    work=Workload(
        name="smoke",
        student=Shape(layers=1, width=32),
        expert=Shape(layers=1, width=64),
        vocab_size=16,
        batch_size=4,
        prompt_tokens=4,
        new_tokens=12,
        end_id=0,
    ),
    window_tokens=4,
)


def run_case(chosen: Case, *, repeats: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """Steps of every method in turn: their timings, and what they logged of them. One step of each is not timed."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_workload(chosen.work, folder)
        commands = {
            arm: ours_command(folder, chosen.settings(arm), device) for arm in (PLAIN, *STUDENT_WINDOW)
        }
        found = in_turns(commands, folder, repeats=repeats)
        for side in found.values():
            side["log"] = train_rows(Path(side["folder"]))[1:]
    require_same_losses({arm: [row["loss_nats"] for row in side["log"]] for arm, side in found.items()})
    return found


def figures_of(name: str, found: dict[str, dict[str, Any]], device: torch.device) -> list[Figure]:
    plain, made = timings(found[PLAIN]), []
    for arm in STUDENT_WINDOW:
        ours, target = timings(found[arm]), TARGET if arm == IN_ROLLOUTS else None
        head = f"step time, near-future / opd-r, {name}, {arm.removeprefix('near-future, ')}"
        made.append(figure(head, ratios(ours, plain), target))
        if clock_of(device) == "cpu":
            made.append(figure(f"{head} (processor time)", ratios(ours, plain, "cpu"), target))
    return made


def table_row(side: dict[str, Any], device: torch.device) -> dict[str, float]:
    """Median wall seconds of phases and steps, the step by the clock that others disturb least, then what was looked at."""
    log = side["log"]
    tokens = sum(row["trained_tokens"] for row in log)
    row = phases(side)
    row[f"step, {clock_name(device)}"] = median_seconds(timings(side), clock_of(device))
    row["response tokens, mean"] = statistics.mean(r["response_length_mean"] for r in log)
    if "forks_candidates" in log[0]:
        candidates = sum(r["forks_candidates"] for r in log)
        row["candidates / rollout tokens"] = candidates / tokens
        row["real forks / candidates"] = sum(r["forks_real"] for r in log) / candidates
        row["window tokens written / rollout tokens"] = sum(r["window_tokens"] for r in log) / tokens
    return row


def notes_of(device: torch.device) -> list[str]:
    return [
        f"Phases: wall seconds, the median of each phase and of whole steps; the last step column: {clock_name(device)} seconds; "
        "the other columns: rates over all timed steps.",
        "Random weights and prompts, batches of 64, no drafts: this is about time alone and says nothing of what windows teach. "
        "Windows of 24 tokens at responses of 80 on average (192 at most), of 50 at 200 (400 at most).",
        "Two independent random models nearly never write the same window, so the share of real forks is what real_quantile "
        "leaves, 0.7; trained pairs that at times agree have fewer of them, and less to train where windows are written.",
        "The target is that of a student of 4 billion parameters and an expert that computes with 3 billion for each token, on "
        "GPUs; the nearest case here is the first, with models of equal size.",
    ]


def measure(cases: Sequence[Case], *, repeats: int, command: str, device: torch.device) -> Result:
    figures: list[Figure] = []
    tables: dict[str, Any] = {}
    for chosen in cases:
        found = run_case(chosen, repeats=repeats, device=device)
        figures += figures_of(chosen.work.name, found, device)
        tables |= {f"{chosen.work.name}, {arm}": table_row(side, device) for arm, side in found.items()}
    return Result(
        name="near_future",
        question="How much longer is a step that looks ahead from its most expensive tokens than one of plain on-policy "
        "distillation?",
        figures=figures,
        command=command,
        phases=tables,
        notes=notes_of(device),
        device=device,
    )


def main(arguments: Sequence[str]) -> None:
    options = parser("near_future", __doc__)
    add_device(options)
    options.add_argument("--repeats", type=int, default=5, help="timed steps of each method")
    chosen = options.parse_args(arguments)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    result = measure(
        (SMOKE,) if chosen.smoke else CASES,
        repeats=2 if chosen.smoke else chosen.repeats,
        command=command_of("near_future", arguments),
        device=device_named(chosen.device),
    )
    write(result, chosen.out)


if __name__ == "__main__":
    main(sys.argv[1:])
