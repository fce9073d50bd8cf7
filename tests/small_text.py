"""A small world of text for the tests: rows of sums, a tokenizer of their text, and two checkpoints that share it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from understudy.schema import NewModel
from understudy.starter import make_starter

CONTEXT = 96


def rows(first: int, count: int) -> list[dict[str, str]]:
    """Sums such as `3+14=` with the answer `17`; no prompt occurs twice."""
    return [
        {"prompt": f"{i % 10}+{i // 10}=", "reference": str(i % 10 + i // 10)}
        for i in range(first, first + count)
    ]


def write_rows(path: Path, made: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def model(family: Any = "llama", width: int = 16) -> NewModel:
    return NewModel(
        family=family, layers=1, width=width, heads=2, max_positions=CONTEXT, initializer_range=0.3
    )


def make_world(folder: Path, **task: Any) -> dict[str, Any]:
    """Files in `folder`; returns the table of a recipe that uses them."""
    train = write_rows(folder / "train.jsonl", rows(0, 40))
    validation = write_rows(folder / "validation.jsonl", rows(40, 16))
    for name, family in (("student", "llama"), ("expert", "gpt2")):
        make_starter(folder / name, model=model(family), texts=[train], vocab_size=270, seed=len(name))
    return {
        "name": "sums",
        "task": {
            "kind": "jsonl",
            "train": str(train),
            "validation": str(validation),
            "grader": "exact",
            "max_prompt_tokens": 16,
            "max_new_tokens": 8,
            **task,
        },
        "student": {"checkpoint": str(folder / "student")},
        "expert": {"kind": "local", "checkpoint": str(folder / "expert")},
        "method": {"name": "opd-f"},
        "train": {"steps": 2, "batch_size": 4, "device": "cpu"},
        "optimizer": {"learning_rate": 1e-3},
        "evaluate": {"every_steps": 2, "prompts": 8},
    }
