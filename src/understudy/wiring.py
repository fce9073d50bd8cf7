"""Wiring: the parts of a run put together for the loop and for the evaluator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import gather_object
from torch import nn

from understudy.build import Parts
from understudy.errors import ConfigError
from understudy.evaluation.score import Evaluation, Plan, evaluate
from understudy.methods import LossSettings, method_named
from understudy.models import has_dropout
from understudy.progress import Bar
from understudy.rollouts.collect import Sources
from understudy.rollouts.drafts import DraftBook
from understudy.rollouts.hf import HFDecoder
from understudy.rollouts.offline import OfflineData, offline_folder
from understudy.rollouts.sampler import Limits
from understudy.schema import Recipe
from understudy.settings import to_table
from understudy.tasks.task import Split
from understudy.trainer.checkpoint import Progress
from understudy.trainer.journal import Journal
from understudy.trainer.loss import StudentLoss
from understudy.trainer.setup import Setup
from understudy.trainer.step import FREE_TO_SPLIT

SHOWN = (
    "accuracy_greedy",
    "accuracy_sampled",
    "teacher_forced_accuracy",
    "validation_loss_nats",
    "expert_kl_nats",
)


def assemble(
    recipe: Recipe,
    parts: Parts,
    accelerator: Accelerator,
    folder: Path,
    bar: Bar,
    *,
    data_root: Path,
    stage: str,
) -> Setup:
    """Wire parts, method and accelerator together for the loop."""
    method = method_named(recipe.method.name)
    options = method.resolve_options(
        {k: v for k, v in to_table(recipe.method).items() if k not in ("name", "estimator")}
    )
    objective = method.objective(recipe.method.estimator)
    channel = (
        parts.noise.channel(parts.vocab_size) if method.uses_channel and parts.noise is not None else None
    )
    if method.uses_channel and channel is None:
        raise ConfigError(
            f"{method.name} needs a noise law that is a known channel; this one is none. Use {method.plain}."
        )
    if recipe.train.micro_batch_tokens is not None and accelerator.distributed_type not in FREE_TO_SPLIT:
        raise ConfigError(
            "train.micro_batch_tokens does not fit sharded weights (FSDP, DeepSpeed): every forward pass gathers them from all "
            "processes, which therefore need equally many. Use train.micro_batch_size."
        )
    limits = limits_of(recipe, parts)
    trainable = [p for p in parts.student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable,
        lr=recipe.optimizer.learning_rate,
        betas=(recipe.optimizer.betas[0], recipe.optimizer.betas[1]),
        weight_decay=recipe.optimizer.weight_decay,
        fused=True,
    )
    loss = StudentLoss(parts.student, parts.vocab_size, is_compiled=recipe.train.compile)
    student, optimizer = accelerator.prepare(loss, optimizer)
    model = accelerator.unwrap_model(student).model
    drafts = None if recipe.rollouts.drafts == "off" else DraftBook()
    readings = [] if drafts is not None and _can_train_on_readings(recipe, accelerator, model) else None
    plan = replace(evaluation_plan(recipe, parts, limits), drafts=drafts)
    journal = Journal(folder, is_writing=accelerator.is_main_process)

    def report(progress: Progress, evaluation: Evaluation | None) -> None:
        bar.move(progress.step, None if evaluation is None else headline(evaluation))

    return Setup(
        recipe=recipe,
        method=method,
        objective=objective,
        options=options,
        row_loss=objective.build(LossSettings(beta=options.get("beta"), channel=channel)),
        sources=Sources(
            task=parts.task,
            limits=limits,
            seed=recipe.seed,
            samples_per_prompt=recipe.train.samples_per_prompt,
            batch_size=recipe.train.rollout_batch_size,
            student=lambda: HFDecoder(model, vocab_size=parts.vocab_size, readings=readings),
            expert=None if parts.expert is None else parts.expert.decoder,
            offline=_offline(recipe, parts, limits, data_root),
            drafts=drafts,
            readings=readings,
            is_coupled=recipe.rollouts.drafts == "coupled",
        ),
        expert=parts.expert,
        accelerator=accelerator,
        student=student,
        model=model,
        optimizer=optimizer,
        tokenizer=parts.tokenizer,
        folder=folder,
        journal=journal,
        stage=stage,
        evaluate=_evaluator(model, plan, accelerator, bar),
        report=report,
    )


def _can_train_on_readings(recipe: Recipe, accelerator: Accelerator, model: nn.Module) -> bool:
    """Whether a pass that checked drafts is the pass that training would make (see `rollouts.readings`).

    The weights must still be the same, training must not drop anything at random, and neither data-parallel wrappers nor
    a limit on what is held in memory at once may want to see the pass themselves.
    """
    return (
        recipe.train.steps_per_round == 1
        and recipe.train.micro_batch_size is None
        and recipe.train.micro_batch_tokens is None
        and recipe.train.rollout_batch_size is None
        and not recipe.train.compile
        and accelerator.distributed_type == DistributedType.NO
        and not any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
        and not has_dropout(model)
    )


def limits_of(recipe: Recipe, parts: Parts) -> Limits:
    """When a response ends: the task's and the checkpoint's end ids, stop strings, and a length."""
    return Limits(
        max_new_tokens=recipe.train.max_new_tokens or parts.task.max_new_tokens,
        eos_ids=parts.eos_ids,
        stop_strings=parts.task.stop_strings,
        decode=parts.task.decode,
    )


def evaluation_plan(recipe: Recipe, parts: Parts, limits: Limits, split: Split = "validation") -> Plan:
    """What a run of this recipe measures, on its validation prompts unless another split is asked for.

    Raises:
        ConfigError: there are none.
    """
    prompts = parts.task.prompts(split, 0, recipe.evaluate.prompts)
    if not prompts:
        raise ConfigError(
            f"the task has no {split} prompts. Give task.validation (a file) or task.validation_rows (held out of train)."
        )
    return Plan(
        task=parts.task,
        prompts=prompts,
        limits=limits,
        vocab_size=parts.vocab_size,
        expert=parts.expert,
        sampled=recipe.evaluate.sampled,
        expert_kl=recipe.evaluate.expert_kl,
        samples_per_prompt=recipe.evaluate.samples_per_prompt,
        batch_size=recipe.evaluate.batch_size,
        seed=recipe.seed,
    )


def _evaluator(
    model: torch.nn.Module, plan: Plan, accelerator: Accelerator, bar: Bar
) -> Callable[[], Evaluation]:
    def measure() -> Evaluation:
        # In the precision that the student is trained and rolled out in.
        with accelerator.autocast():
            return evaluate(
                model,
                plan,
                process=accelerator.process_index,
                num_processes=accelerator.num_processes,
                gather=gather_object,
                advance=lambda done: bar.hint(f"evaluating: {done} done"),
            )

    return measure


def _offline(recipe: Recipe, parts: Parts, limits: Limits, root: Path) -> Any:
    if recipe.data.offline == "reference":
        return "reference"
    if parts.expert is None:
        return None
    identity = {
        "task": parts.task.identity,
        "expert": parts.expert.identity,
        "seed": recipe.seed,
        "max_new_tokens": limits.max_new_tokens,
        "eos_ids": sorted(limits.eos_ids),
        "stop_strings": list(limits.stop_strings),
        "samples_per_prompt": recipe.train.samples_per_prompt,
    }
    return OfflineData(
        folder=offline_folder(root, identity),
        task=parts.task,
        identity=identity,
        seed=recipe.seed,
        limits=limits,
        samples_per_prompt=recipe.train.samples_per_prompt,
        batch_size=recipe.train.rollout_batch_size,
        decoder=parts.expert.decoder,
    )


def headline(evaluation: Evaluation) -> str:
    """The evaluation in one line, as it stands behind a progress bar."""
    short = {"accuracy_greedy": "greedy", "accuracy_sampled": "T=1", "teacher_forced_accuracy": "forced"}
    short |= {"validation_loss_nats": "val nats", "expert_kl_nats": "KL nats"}
    found = ((short[n], evaluation.metrics[n].value) for n in SHOWN if n in evaluation.metrics)
    return "  ".join(f"{name} {value:.3f}" for name, value in found)
