"""What every benchmark shares: interleaved timing, the machine in words, the floor, and the file a result is kept in.

Needs torch and the standard library alone, so that a benchmark can run inside a peer's environment.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

RESULTS = Path(__file__).resolve().parent / "results"


# --- time ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """One run: wall time, and the processor time of this process and its threads."""

    wall_seconds: float
    cpu_seconds: float


def timed(action: Callable[[], object], *, calls: int = 1) -> Timing:
    """How long one of `calls` calls takes."""
    wait_for_device()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        action()
    wait_for_device()
    return Timing((time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls)


def wait_for_device() -> None:
    """Work on an accelerator is queued: without this the queueing is timed, not the work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleaved(
    variants: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 1, calls: int = 1
) -> dict[str, list[Timing]]:
    """Time variants in turn: A B C, C B A, A B C ...

    What else the machine does then falls on all of them, and only ratios within one turn are compared.
    """
    for action in variants.values():
        for _ in range(warmup):
            action()
    found: dict[str, list[Timing]] = {name: [] for name in variants}
    order = list(variants)
    for turn in range(repeats):
        for name in order if turn % 2 == 0 else reversed(order):
            found[name].append(timed(variants[name], calls=calls))
    return found


# --- figures -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number of a result: a ratio (or another quantity, its name says which), its range, and what was aimed at."""

    name: str
    ratio_median: float
    low: float
    high: float
    target: float | None = None
    direction: Literal["<=", ">="] = "<="

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the target; None without one."""
        if self.target is None:
            return None
        return (
            self.ratio_median <= self.target if self.direction == "<=" else self.ratio_median >= self.target
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "ratio_median": self.ratio_median,
            "low": self.low,
            "high": self.high,
            "target": self.target,
            "direction": self.direction,
            "met": self.met,
        }


def figure(
    name: str, values: Iterable[float], target: float | None = None, direction: Literal["<=", ">="] = "<="
) -> Figure:
    """The median and the whole range of repeated measurements of one quantity."""
    found = list(values)
    return Figure(
        name=name,
        ratio_median=statistics.median(found),
        low=min(found),
        high=max(found),
        target=target,
        direction=direction,
    )


def ratios(
    ours: Sequence[Timing], theirs: Sequence[Timing], kind: Literal["wall", "cpu"] = "wall"
) -> list[float]:
    """ours / theirs, turn by turn."""
    name = f"{kind}_seconds"
    return [getattr(a, name) / getattr(b, name) for a, b in zip(ours, theirs, strict=True)]


def median_seconds(timings: Sequence[Timing], kind: Literal["wall", "cpu"] = "wall") -> float:
    """The median of one variant by itself: for phase tables, not for comparisons."""
    return statistics.median(getattr(t, f"{kind}_seconds") for t in timings)


# --- the machine and its floor -------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What a ratio may depend on; nothing that names the machine."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    }
    if torch.cuda.is_available():
        found["accelerator"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (about.read_text().splitlines() if about.exists() else [])
        if line.startswith("model name")
    ]
    return names[0] if names else platform.machine()


def gemm_gflops(dtype: torch.dtype = torch.float32, size: int = 1024, repeats: int = 5) -> float:
    """The best speed at which this process multiplies square matrices with the threads it has.

    By processor time, so that others on the machine do not lower it. Call it in the same run as what it is compared with.
    """
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    a @ b
    threads = torch.get_num_threads()
    return max(2 * size**3 * threads / timed(lambda: a @ b).cpu_seconds for _ in range(repeats)) / 1e9


def linear_flops_per_token(model: nn.Module) -> float:
    """Multiplications and additions of one token's way through the weight matrices, the head among them."""
    weights = (
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    )
    return 2.0 * sum(weight.numel() for weight in weights if isinstance(weight, torch.Tensor))


def attention_flops_per_token(layers: int, width: int, context_mean: float) -> float:
    """Scores and weighted sums: 2 * 2 * width multiply-adds for every position that is looked at."""
    return 4.0 * layers * width * context_mean


# --- the file ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Result:
    """What `results/NAME.json` holds and `docs/performance.md` is made from.

    `phases`: for each setting, seconds (or shares) by phase. `floor`: counted operations, measured speed and what follows.
    `notes`: what a reader must know, such as a peer that could not be run.
    """

    name: str
    question: str
    figures: Sequence[Figure]
    command: str
    phases: Mapping[str, Any] = field(default_factory=dict)
    floor: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "question": self.question,
            "command": self.command,
            "machine": machine(),
            "figures": [f.to_json() for f in self.figures],
            "phases": dict(self.phases),
            "floor": dict(self.floor),
            "notes": list(self.notes),
        }


def write(result: Result, folder: Path) -> Path:
    """Keep a result and show it. Replaced whole, so that no reader sees half of it."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{result.name}.json"
    unfinished = target.with_suffix(".tmp")
    unfinished.write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")
    unfinished.replace(target)
    show(result)
    return target


def show(result: Result) -> None:
    print(f"\n{result.name}: {result.question}")
    for f in result.figures:
        aim = (
            ""
            if f.target is None
            else f"   target {f.direction} {f.target:g}: {'met' if f.met else 'MISSED'}"
        )
        print(f"  {f.name:<70} {f.ratio_median:8.3f}  [{f.low:.3f}, {f.high:.3f}]{aim}")
    for note in result.notes:
        print(f"  note: {note}")


def parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """The options every benchmark has: `--smoke` (sizes of a test, seconds) and `--out` (where the JSON goes)."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=description)
    made.add_argument(
        "--smoke", action="store_true", help="the smallest sizes, in seconds: checks that it runs"
    )
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of the result's JSON file")
    return made


def command_of(module: str, arguments: Sequence[str]) -> str:
    """The command as a reader would type it; folders and interpreters of this machine are left out."""
    kept = [a for a in arguments if "/" not in a and a not in ("--out", "--peer-python")]
    return shlex.join(["python", "-m", f"benchmarks.{module}", *kept])
