"""What an expert in bfloat16 changes: the loss of a trained pair, beside the same expert in float32.

Student and expert learn Countdown from its references, the expert for longer. The student then writes responses, and both
losses are computed at each of their tokens with the expert in either precision. The student stays in float32 and the tokens
are the same, so what differs between two losses is the rounding of the expert.

N response tokens.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.common import Figure, Result, add_device, command_of, device_named, figure, parser, write
from benchmarks.drafts import train_device
from benchmarks.step_ours import as_written
from understudy.build import Parts, build
from understudy.config import recipe_from_table
from understudy.experts.local import LocalExpert
from understudy.objectives.divergences import against_expert, forward_kl_from_logp, reverse_kl_from_logp
from understudy.objectives.rows import RowLoss
from understudy.records import Trajectory
from understudy.rollouts.hf import HFDecoder
from understudy.rollouts.sampler import sample_all
from understudy.run import train
from understudy.schema import Recipe
from understudy.trainer.collate import collate
from understudy.trainer.loss import Labels, position_values
from understudy.wiring import limits_of

TARGET = 1e-3
"""Nats a token, as for untrained pairs in `benchmarks.step`."""
LOSSES: dict[str, RowLoss] = {
    "reverse KL": against_expert(reverse_kl_from_logp),
    "forward KL": against_expert(forward_kl_from_logp),
}
TASK: dict[str, Any] = {
    "kind": "countdown",
    "format": "compact",
    "operands": [3],
    "max_number": 16,
    "max_target": 10,
    "trace": "search",
    "max_tries": 3,
    "max_value": 60,
    "max_new_tokens": 96,
}


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A Llama, and how long it learns."""

    layers: int
    width: int
    heads: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Pair:
    """`blocks` times `block_prompts` responses are compared; a block makes one value of each figure."""

    student: Learner
    expert: Learner
    blocks: int
    block_prompts: int


PAIR = Pair(
    student=Learner(layers=2, width=64, heads=4, steps=120),
    expert=Learner(layers=4, width=256, heads=8, steps=120),
    blocks=5,
    block_prompts=64,
)
SMOKE = Pair(
    student=Learner(layers=1, width=32, heads=2, steps=2),
    expert=Learner(layers=1, width=64, heads=2, steps=2),
    blocks=2,
    block_prompts=4,
)


def taught(learner: Learner, folder: Path, device: torch.device) -> str:
    """Trained on the task's references; its checkpoint."""
    recipe = recipe_from_table(
        {
            "name": folder.name,
            "task": TASK,
            "student": {
                "new": {
                    "family": "llama",
                    "layers": learner.layers,
                    "width": learner.width,
                    "heads": learner.heads,
                    "intermediate": 3 * learner.width,
                    "max_positions": 256,
                }
            },
            "method": {"name": "sft"},
            "data": {"offline": "reference"},
            "train": {"steps": learner.steps, "batch_size": 32, "device": train_device(device)},
            "optimizer": {
                "learning_rate": 2e-3,
                "warmup_steps": 10,
                "schedule": "linear",
                "final_rate": 0.05,
            },
            "evaluate": {"every_steps": 10**6, "prompts": 2, "sampled": False, "expert_kl": False},
        }
    )
    return str(train(recipe, folder, console=Console(quiet=True)).checkpoint)


def parts_of(student: str, expert: str, dtype: str, device: torch.device) -> tuple[Recipe, Parts]:
    recipe = recipe_from_table(
        {
            "name": "distilled",
            "task": TASK,
            "student": {"checkpoint": student},
            "expert": {"kind": "local", "checkpoint": expert, "dtype": dtype},
            "method": {"name": "opd-r"},
            "train": {"steps": 1, "batch_size": 1},
            "optimizer": {"learning_rate": 1e-3},
            "evaluate": {"every_steps": 1, "prompts": 1},
        }
    )
    return recipe, build(recipe, device=device)


@torch.no_grad()
def responses_of(recipe: Recipe, parts: Parts, count: int) -> list[Trajectory]:
    """What the student writes to prompts it has not learnt."""
    prompts = parts.task.prompts("validation", 0, count)
    student = parts.student.eval()
    found = sample_all(
        prompts,
        [(0, p.id) for p in prompts],
        limits=limits_of(recipe, parts),
        student=lambda: HFDecoder(student, vocab_size=parts.vocab_size),
    )
    return as_written([p.token_ids for p in prompts], [r.token_ids for r in found])


def losses_of(parts: Parts, block: Sequence[Trajectory], device: torch.device) -> dict[str, Tensor]:
    """Both losses at every response token, [N] each."""
    assert parts.expert is not None
    batch = collate(block, device)
    gate_BT = batch.is_response_BT
    labels = Labels(gate_BT=gate_BT, law=parts.expert.law(batch, gate_BT), token_N=None, uniform_N=None)
    return position_values(parts.student, parts.vocab_size, batch, labels, LOSSES)


def compared(
    float32: Sequence[Mapping[str, Tensor]], bfloat16: Sequence[Mapping[str, Tensor]]
) -> tuple[list[Figure], dict[str, Any]]:
    """Of each loss: the change of its mean, a value a block; the largest change at a token; and what it is a change of."""
    figures, table = [], {}
    for name in LOSSES:
        pairs = [(a[name].double(), b[name].double()) for a, b in zip(float32, bfloat16, strict=True)]
        change = [float((b - a).mean().abs()) for a, b in pairs]
        figures += [
            figure(f"{name}, |bfloat16 expert - float32 expert|, nats a token", change, TARGET),
            figure(
                f"{name}, largest change at one token, nats", [float((b - a).abs().max()) for a, b in pairs]
            ),
        ]
        whole_N, rounded_N = (torch.cat(side) for side in zip(*pairs, strict=True))
        table[name] = {
            "float32 expert": float(whole_N.mean()),
            "bfloat16 expert": float(rounded_N.mean()),
            "mean change at a token": float((rounded_N - whole_N).abs().mean()),
            "response tokens": len(whole_N),
        }
    return figures, table


def measure(pair: Pair, command: str, device: torch.device) -> Result:
    with tempfile.TemporaryDirectory() as place:
        student, expert = (
            taught(learner, Path(place) / name, device)
            for name, learner in (("student", pair.student), ("expert", pair.expert))
        )
        recipe, parts = parts_of(student, expert, "float32", device)
        written = responses_of(recipe, parts, pair.blocks * pair.block_prompts)
        starts = range(0, len(written), pair.block_prompts)
        blocks = [written[i : i + pair.block_prompts] for i in starts]
        whole = [losses_of(parts, block, device) for block in blocks]
        _, rounded_parts = parts_of(student, expert, "bfloat16", device)
        rounded = [losses_of(rounded_parts, block, device) for block in blocks]
    figures, table = compared(whole, rounded)
    assert isinstance(parts.expert, LocalExpert)
    return Result(
        name="expert_dtype",
        question="How much does an expert in bfloat16 change the loss of a trained pair?",
        figures=figures,
        command=command,
        phases=table,
        notes=[
            f"Countdown, characters. Student: {described(parts.student)}, {pair.student.steps} steps on references; expert: "
            f"{described(parts.expert.model)}, {pair.expert.steps} steps.",
            f"{pair.blocks} blocks of {pair.block_prompts} responses sampled from the student: medians and ranges over blocks.",
            "Phases: nats a token, over all blocks.",
        ],
        device=device,
    )


def described(model: torch.nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2g}M parameters"


def main(arguments: Sequence[str]) -> None:
    options = parser("expert_dtype", __doc__)
    add_device(options)
    chosen = options.parse_args(arguments)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    device = device_named(chosen.device)
    result = measure(SMOKE if chosen.smoke else PAIR, command_of("expert_dtype", arguments), device)
    write(result, chosen.out)


if __name__ == "__main__":
    main(sys.argv[1:])
