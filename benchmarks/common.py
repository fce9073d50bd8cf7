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
Clock = Literal["wall", "cpu"]
STEADY_WITHIN = 1.5
"""Largest ratio of two measurements of one speed on a machine that can be called steady."""


# --- time ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """One run: wall time, and the processor time of this process and its threads."""

    wall_seconds: float
    cpu_seconds: float

    def seconds(self, kind: Clock) -> float:
        return self.wall_seconds if kind == "wall" else self.cpu_seconds


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
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def clock_of(device: torch.device) -> Clock:
    """The clock that others on the machine disturb least: processor time on a CPU; on a GPU the processor mostly waits."""
    return "cpu" if device.type == "cpu" else "wall"


def clock_name(device: torch.device) -> str:
    return {"cpu": "processor", "wall": "wall"}[clock_of(device)]


def seconds_now(device: torch.device) -> float:
    """That clock, once the device has done all that was asked of it."""
    wait_for_device()
    return time.process_time() if clock_of(device) == "cpu" else time.perf_counter()


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


def ratios(ours: Sequence[Timing], theirs: Sequence[Timing], kind: Clock = "wall") -> list[float]:
    """ours / theirs, turn by turn."""
    return [a.seconds(kind) / b.seconds(kind) for a, b in zip(ours, theirs, strict=True)]


def median_seconds(timings: Sequence[Timing], kind: Clock = "wall") -> float:
    """The median of one variant by itself: for phase tables, not for comparisons."""
    return statistics.median(t.seconds(kind) for t in timings)


def target_on(device: torch.device, *, cpu: float | None = None, gpu: float | None = None) -> float | None:
    """A target where it is stated for this kind of device, else None."""
    return cpu if device.type == "cpu" else gpu


# --- the machine and its floor -------------------------------------------------------------------------------------------


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """What a ratio may depend on; nothing that names the machine. `device`: where the work ran, if the benchmark chose."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    }
    if device is not None:
        found["device"] = device.type
    if torch.cuda.is_available() and (device is None or device.type == "cuda"):
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


def gemm_gflops(
    dtype: torch.dtype = torch.float32,
    size: int | None = None,
    repeats: int = 5,
    device: torch.device | None = None,
) -> float:
    """The best speed at which this process multiplies square matrices with the threads, or the accelerator, it has.

    On a CPU by processor time, so that others on the machine do not lower it; on a GPU by wall time, and of matrices
    large enough to fill it. Call it in the same run as what it is compared with.
    """
    device = device or torch.device("cpu")
    on_cpu = device.type == "cpu"
    size = size or (1024 if on_cpu else 8192)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    torch.mm(a, b)
    threads = torch.get_num_threads() if on_cpu else 1
    best = min(timed(lambda: torch.mm(a, b)).seconds(clock_of(device)) for _ in range(repeats))
    return 2 * size**3 * threads / best / 1e9


def speed_notes(speeds: Sequence[float]) -> list[str]:
    """A warning where the same product ran at different speeds in one run: floors are of the first of them."""
    apart = max(speeds) / min(speeds)
    if apart <= STEADY_WITHIN:
        return []
    return [
        f"Unsteady machine: the speed of the same matrix product differed by a factor of {apart:.1f} within this run "
        f"({min(speeds):.0f} to {max(speeds):.0f} GFLOP/s). Floors are at {speeds[0]:.0f} GFLOP/s and no better known than that."
    ]


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


def forward_flops(
    model: nn.Module, *, layers: int, width: int, vocab_size: int, prompt_tokens: int, response_tokens: int
) -> float:
    """Operations of one sequence's way forward: every token once through the layers, the head at response tokens alone."""
    positions = prompt_tokens + response_tokens
    head = 2.0 * vocab_size * width
    layer_flops = linear_flops_per_token(model) - head
    attention = attention_flops_per_token(layers, width, positions / 2)
    return positions * (layer_flops + attention) + response_tokens * head


# --- the file ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Result:
    """What `results/NAME.json` holds and `docs/performance.md` is made from; of a GPU `results/NAME.cuda.json`, beside it.

    `phases`: for each setting, seconds (or shares) by phase. `floor`: counted operations, measured speed and what follows.
    `notes`: what a reader must know, such as a peer that could not be run, or the unit of the phases. `device`: where it ran.
    """

    name: str
    question: str
    figures: Sequence[Figure]
    command: str
    phases: Mapping[str, Any] = field(default_factory=dict)
    floor: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    device: torch.device | None = None

    @property
    def full_name(self) -> str:
        """Of its file and its section: what was measured on a GPU never takes the place of what a processor did."""
        kind = "cpu" if self.device is None else self.device.type
        return self.name if kind == "cpu" else f"{self.name}.{kind}"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.full_name,
            "question": self.question,
            "command": self.command,
            "machine": machine(self.device),
            "figures": [f.to_json() for f in self.figures],
            "phases": dict(self.phases),
            "floor": dict(self.floor),
            "notes": list(self.notes),
        }


def write(result: Result, folder: Path) -> Path:
    """Keep a result and show it. Replaced whole, so that no reader sees half of it."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{result.full_name}.json"
    unfinished = target.with_suffix(".tmp")
    unfinished.write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")
    unfinished.replace(target)
    show(result)
    return target


def show(result: Result) -> None:
    print(f"\n{result.full_name}: {result.question}")
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


def add_device(options: argparse.ArgumentParser) -> None:
    """The option `--device`; `device_named` turns what was given into a device."""
    options.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one"
    )


def device_named(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "--device cuda: torch sees no GPU here. Use --device cpu or install torch with CUDA."
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


_OF_THIS_MACHINE = {"--out": None, "--peer-python": "PYTHON", "--gsm8k": "FOLDER"}
"""Options whose values are paths, and what stands for them in a published command; None: left out."""


def command_of(module: str, arguments: Sequence[str]) -> str:
    """The command as a reader would type it: places on this machine are named by what belongs there."""
    kept: list[str] = []
    left = iter(arguments)
    for argument in left:
        option, is_joined, _ = argument.partition("=")
        if option not in _OF_THIS_MACHINE:
            kept.append(argument)
            continue
        if not is_joined:
            next(left, None)
        stand_in = _OF_THIS_MACHINE[option]
        kept += [] if stand_in is None else [option, stand_in]
    return shlex.join(["python", "-m", f"benchmarks.{module}", *kept])
