"""The peer's side of `benchmarks.step`: trl.DistillationTrainer, in its own environment, one step a line of input."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DistillationConfig, DistillationTrainer  # pyright: ignore[reportMissingImports]

from benchmarks.common import wait_for_device
from benchmarks.step_workload import Workload, read_workload, word_of


def answer(found: dict[str, Any]) -> None:
    sys.__stdout__.write(json.dumps(found) + "\n")  # pyright: ignore[reportOptionalMemberAccess]
    sys.__stdout__.flush()  # pyright: ignore[reportOptionalMemberAccess]


class OneStepALine(TrainerCallback):
    """Waits for a line before every step and answers with its time after it."""

    def __init__(self, phases: dict[str, float]) -> None:
        self.phases = phases
        self.start = (0.0, 0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if sys.stdin.readline().strip() != "step":
            os._exit(0)
        self.phases.clear()
        self.start = (time.perf_counter(), time.process_time())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wait_for_device()
        wall, cpu = time.perf_counter() - self.start[0], time.process_time() - self.start[1]
        phases = {**self.phases, "rest": wall - sum(self.phases.values())}
        answer({"wall_seconds": wall, "cpu_seconds": cpu, "phases": phases})


def make_trainer(
    folder: Path, precision: str, device_type: str
) -> tuple[DistillationTrainer, Workload, list[Any], list[Any]]:
    work, prompts, responses = read_workload(folder)
    models = [
        AutoModelForCausalLM.from_pretrained(folder / n, dtype=torch.float32) for n in ("student", "expert")
    ]
    settings = DistillationConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=work.batch_size,
        gradient_accumulation_steps=1,
        max_steps=1_000_000,
        max_completion_length=work.new_tokens,
        beta=1.0,
        bf16=precision == "bf16",
        gradient_checkpointing=precision.endswith("-recomputed"),
        learning_rate=1e-4,
        use_cpu=device_type == "cpu",
        report_to="none",
        save_strategy="no",
        logging_steps=1_000_000,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    texts = [" ".join(word_of(t) for t in prompt) for prompt in prompts]
    phases: dict[str, float] = {}
    trainer = DistillationTrainer(
        model=models[0],
        teacher_model=models[1],
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=AutoTokenizer.from_pretrained(folder / "student", padding_side="left"),
        callbacks=[OneStepALine(phases)],
    )
    generate = trainer._generate_single_turn

    def timed_generate(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        found = generate(*args, **kwargs)
        wait_for_device()
        phases["collect"] = phases.get("collect", 0.0) + time.perf_counter() - start
        assert all(len(ids) == work.new_tokens for ids in found), "responses must have the length asked for"
        return found

    trainer._generate_single_turn = timed_generate  # pyright: ignore[reportAttributeAccessIssue]
    return trainer, work, prompts, responses


def fixed_loss(
    trainer: DistillationTrainer, work: Workload, prompts: list[Any], responses: list[Any]
) -> float:
    """Its loss of the untrained student on the fixed batch: mean over response tokens."""
    prompt, response = torch.tensor(prompts[: work.batch_size]), torch.tensor(responses)
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": response,
        "completion_mask": torch.ones_like(response),
    }
    inputs = {name: tensor.to(trainer.accelerator.device) for name, tensor in inputs.items()}
    model: Any = trainer.model
    with torch.no_grad(), trainer.compute_loss_context_manager():
        return float(trainer._compute_loss(model, inputs, None)[0])


def main(folder: str, precision: str, device_type: str) -> None:
    trainer, work, prompts, responses = make_trainer(Path(folder), precision, device_type)
    assert sys.stdin.readline().strip() == "loss"
    answer({"loss_nats": fixed_loss(trainer, work, prompts, responses)})
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
