"""Fabricated run and compare folders: the numbers are made up by formulas here and measured by nobody."""

import json
import math
from pathlib import Path

LENGTH, BATCH, WARM_STEPS, EVERY = 21, 128, 200, 25
SHAPES = {  # method: (greedy at the end, sampled at the end, steps until half of it, final expert KL)
    "sft": (0.35, 0.00, 140, 0.60),
    "sft-known": (0.05, 0.01, 160, 0.58),
    "opd-f": (0.00, 0.00, 50, 0.95),
    "opd-r": (0.01, 0.00, 60, 0.80),
    "nail-f": (0.99, 0.01, 30, 0.05),
    "nail-r": (1.00, 0.01, 40, 0.04),
    "opd-known": (0.02, 0.01, 60, 0.75),
    "nail-known": (0.98, 0.90, 55, 0.02),
}


def fabricated_metric(value: float, n: int = 256) -> dict:
    half = 1.96 * math.sqrt(max(value * (1 - value), 0.0) / n)
    return {"value": value, "low": max(value - half, 0.0), "high": value + half, "n": n}


def fabricated_eval(method: str, seed: int, step: int, stage: str) -> dict:
    greedy, sampled, half_step, kl = SHAPES[method]
    main_step = max(step - WARM_STEPS, 0)
    progress = 1 / (1 + math.exp(-(main_step - half_step - 4 * seed) / 6)) if stage == "main" else 0.0
    wobble = 0.02 * math.sin(1.7 * seed + step / 40) * progress * (1 - progress)
    accuracy = min(max(greedy * progress + wobble + 0.01 * (seed == 1) * (greedy < 0.5), 0.0), 1.0)
    front = 4 + 8 * min(step / WARM_STEPS, 1) + (LENGTH * 1.3 - 12) * (greedy > 0.5) * progress
    by_position = [1 / (1 + math.exp((t - front) / 1.5)) for t in range(LENGTH)]
    loss = 1.1 - 0.2 * step / WARM_STEPS if stage == "warm_start" else 0.9 + (kl - 0.6) * progress
    kl_now = max(loss + 0.002 * seed - 0.1, 0.01)
    return {
        "kind": "eval",
        "stage": stage,
        **fabricated_counters(step, seed),
        "metrics": {
            "accuracy_greedy": fabricated_metric(accuracy),
            "accuracy_sampled": fabricated_metric(sampled * progress),
            "teacher_forced_accuracy": fabricated_metric(sum(by_position) / LENGTH),
            "validation_loss_nats": fabricated_metric(loss),
            "expert_kl_nats": fabricated_metric(kl_now),
        },
        "by_position": {
            "accuracy_greedy": [p**2 for p in by_position],
            "teacher_forced_accuracy": by_position,
            "expert_kl_nats": [kl_now * (1.6 - p) for p in by_position[:-1]] + [None],
        },
    }


def fabricated_counters(step: int, seed: int) -> dict:
    seconds = step * (0.08 + 0.002 * seed)
    return {
        "step": step,
        "round": step,
        "trajectories": step * BATCH,
        "expert_queries": step * BATCH * LENGTH,
        "response_tokens": step * BATCH * LENGTH,
        "cpu_seconds": seconds,
        "wall_seconds": seconds * 1.1,
        "seconds": {
            "collect": 0.35 * seconds,
            "label": 0.05 * seconds,
            "train": 0.5 * seconds,
            "evaluate": 0.08 * seconds,
            "checkpoint": 0.02 * seconds,
        },
    }


def write_run(
    folder: Path, method: str, seed: int, steps: range, stage: str, *, samples: list | None = None
) -> Path:
    """A fabricated run folder as the trainer lays it out."""
    folder.mkdir(parents=True)
    recipe = {"name": "fabricated", "seed": seed, "method": {"name": method}, "optimizer": {"lr": 0.003}}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    (folder / "versions.json").write_text(json.dumps({"understudy": "0.1.0", "torch": "2.13.0"}))
    lines = []
    for step in steps:
        train = {
            "kind": "train",
            "stage": stage,
            **fabricated_counters(step, seed),
            "loss_nats": 0.5,
            "grad_norm": 1.0,
        }
        lines += [train, fabricated_eval(method, seed, step, stage)]
    lines.append({"kind": "end", "reason": "max_steps", "best_step": steps[-1]})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = samples if samples is not None else [fabricated_sample(step) for step in (steps[0], steps[-1])]
    (folder / "trajectories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def fabricated_sample(step: int) -> dict:
    return {
        "step": step,
        "prompt": "2 1 0 2 1 1 =",
        "response": "2 0 0 2 1 2",
        "reference": "2 0 0 2 0 1",
        "score": 0.0,
        "finish": "length",
        "is_student": [True, True, True, False, True, True],
    }


def write_compare(folder: Path, methods: list[str], seeds: list[int], *, failed: set = frozenset()) -> Path:
    """A fabricated compare folder: one shared warm start per seed, cells from step 200 on, some failed."""
    cells = []
    for seed in seeds:
        write_run(
            folder / f"warm_start/seed{seed}", "sft", seed, range(EVERY, WARM_STEPS + 1, EVERY), "warm_start"
        )
        for method in methods:
            place = f"cells/{method}-seed{seed}"
            is_failed = (method, seed) in failed
            cells.append({"label": method, "method": method, "seed": seed, "folder": place})
            cells[-1] |= {"status": "failed" if is_failed else "done", "error": None}
            if is_failed:
                cells[-1]["error"] = "TrainingError: loss <nan> at step 12"
            else:
                last = 600 if method.startswith("sft") else 350
                write_run(folder / place, method, seed, range(WARM_STEPS + EVERY, last + 1, EVERY), "main")
    header = {"recipe": "fabricated", "methods": methods, "seeds": seeds, "cells": cells}
    (folder / "compare.json").write_text(json.dumps(header))
    return folder


def with_stages(folder: Path, *, names: tuple[str, str] = ("rl", "far")) -> Path:
    """The compare folder with an expert each for `sft` and for the others, one a seed, and one start for all."""
    header = json.loads((folder / "compare.json").read_text())
    outside = folder.parent / f"{folder.name}-stages"
    write_run(outside / "base", "sft", 7, range(EVERY, 101, EVERY), "main")
    for seed in header["seeds"]:
        write_run(outside / f"rl-{seed}", "nail-r", seed, range(WARM_STEPS + EVERY, 801, EVERY), "main")
        write_run(folder / f"far-{seed}", "nail-known", seed, range(WARM_STEPS + EVERY, 501, EVERY), "main")
    for cell in header["cells"]:
        kind = cell["label"] == "sft"
        place, inside = (f"far-{cell['seed']}", folder) if kind else (f"rl-{cell['seed']}", outside)
        cell["student"] = stage_entry(f"{outside}/base/final", f"{outside}/base", "base", made=False)
        written = f"{inside}/{place.rpartition('-')[0]}-{{seed}}/final"
        cell["expert"] = stage_entry(written, place if kind else f"{outside}/{place}", names[kind], made=True)
    (folder / "compare.json").write_text(json.dumps(header))
    return folder


def stage_entry(checkpoint: str, folder: str, recipe: str, *, made: bool) -> dict:
    return {"checkpoint": checkpoint, "folder": folder, "recipe": recipe, "made": made}
