"""The order of the examination: each part is made, then looked at; a part that fails hides only what needs it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from understudy.build import (
    Parts,
    build_expert,
    build_student,
    build_task,
    build_tokenizer,
    check_context,
    check_ids,
    device_of,
)
from understudy.config import placed, uses_server
from understudy.doctor.finding import Finding, attempt, fine, warning
from understudy.doctor.numbers import check_noise, check_repeatability
from understudy.doctor.server import check_server
from understudy.doctor.tokens import (
    check_end_ids,
    check_same_prompts,
    check_template,
    check_token_ids,
    check_vocabulary,
)
from understudy.doctor.work import check_gold, check_held_out, check_lengths, check_references
from understudy.experts.expert import Expert
from understudy.experts.local import LocalExpert
from understudy.experts.noisy import Noise, NoisyExpert, build_noise
from understudy.methods import method_named
from understudy.models import generation_eos_ids, load_tokenizer, output_size
from understudy.plans import evaluation_plan, further_plans
from understudy.processor import choose_threads
from understudy.rollouts.hf import evaluating
from understudy.rollouts.sampler import Limits
from understudy.schema import Recipe, is_text
from understudy.stages import Role, Stage, missing_stages
from understudy.tasks.task import Task
from understudy.trainer.reward import require_grader
from understudy.wiring import limits_of

_CHECKED_TOKENS = 32
"""Longest response that is sampled for the checks of log-probabilities."""


@dataclass
class _Patient:
    """The parts of a run as far as they could be made."""

    recipe: Recipe
    """With its seed in its paths."""
    device: torch.device
    is_to_be_made: bool = False
    """Whether another run must make the student first."""
    tokenizer: PreTrainedTokenizerBase | None = None
    task: Task | None = None
    student: nn.Module | None = None
    expert_tokenizer: PreTrainedTokenizerBase | None = None
    expert: Expert | None = None
    noise: Noise | None = None
    vocab_size: int = 0
    eos_ids: frozenset[int] = frozenset()


def examine(recipe: Recipe) -> list[Finding]:
    """Look at a recipe's parts, and at what they do with real prompts, without training.

    Loads the student and the expert once; samples a few short responses. Returns one finding a check, in the order of
    a run: recipe, tokenizer, data, student, expert, and what they agree on.
    """
    torch.set_num_threads(choose_threads(recipe.train.threads))
    p = _Patient(placed(recipe), device_of(recipe))
    findings = [fine("recipe", f"{recipe.name}: every setting is known, and they can be combined")]
    awaited = _awaited(recipe, "student", findings)
    if awaited:
        p.is_to_be_made, p.recipe = True, _with_tokenizer_of(p.recipe, awaited)
    _make_task(p, findings)
    if p.vocab_size and awaited == []:
        _make_student(p, findings)
    if p.recipe.expert is None or _awaited(recipe, "expert", findings) == []:
        _make_expert(p, findings)
    _look_at_text(p, findings)
    if p.task is not None:
        findings += [*check_lengths(p.recipe, p.task, p.student, _model_of(p.expert)), check_gold(p.task)]
        findings += [check_references(p.recipe, p.task), *check_held_out(p.recipe)]
        _look_at_rewards(p.recipe, p.task, findings)
        _look_at_sets(p, p.task, findings)
        _look_at_numbers(p, p.task, findings)
    return findings


def _awaited(recipe: Recipe, role: Role, findings: list[Finding]) -> list[Stage] | None:
    """What must be trained before the student or the expert is there, which is found to be so; None: it cannot be."""
    fix = f"Correct the [{role}] table."
    stages = attempt(findings, role, lambda: missing_stages(recipe, roles=(role,)), fix)
    if stages:
        last = stages[-1]
        found = f"{last.checkpoint} is not there yet; the run trains it first, as {last.source} says"
        findings.append(warning(role, found, f"Examine it again when the {role} is there."))
    return stages


def _with_tokenizer_of(recipe: Recipe, awaited: list[Stage]) -> Recipe:
    """The tokenizer that a student to be made will come with: that of what its own recipe begins with."""
    stages = {str(stage.checkpoint): stage for stage in awaited}
    student = recipe.student
    while student.tokenizer is None and student.checkpoint in stages:
        student = stages[student.checkpoint].recipe.student
    return replace(recipe, student=replace(recipe.student, tokenizer=student.tokenizer or student.checkpoint))


def _make_task(p: _Patient, findings: list[Finding]) -> None:
    fix = "Correct student.tokenizer, or make a tokenizer with `understudy init`."
    p.tokenizer = attempt(findings, "tokenizer", lambda: build_tokenizer(p.recipe), fix)
    if is_text(p.recipe.task) and p.tokenizer is None:
        return
    p.eos_ids = frozenset() if p.is_to_be_made else generation_eos_ids(p.recipe.student.checkpoint)
    fix = "Correct the rows that are named, or the [task] table."
    p.task = attempt(findings, "data", lambda: build_task(p.recipe, p.tokenizer, p.eos_ids), fix)
    if p.task is not None:
        p.eos_ids |= p.task.eos_ids
    own = p.task.vocab_size if p.task is not None else None
    p.vocab_size = own or (len(p.tokenizer) if p.tokenizer is not None else 0)


def _make_student(p: _Patient, findings: list[Finding]) -> None:
    start = p.recipe.warm_start.checkpoint if p.recipe.warm_start is not None else None
    fix = "Correct the [student] table."

    def made() -> nn.Module:
        student = build_student(p.recipe, p.vocab_size, p.eos_ids, start)
        if p.task is not None:
            check_ids(p.task, min(p.vocab_size, output_size(student)))
        return student

    student = attempt(findings, "student", made, fix)
    if student is None:
        return
    p.student = student.to(p.device)
    p.vocab_size = min(p.vocab_size, output_size(student))
    parameters = sum(q.numel() for q in p.student.parameters())
    findings.append(
        fine(
            "student",
            f"{parameters:,} parameters, all finite; head(hidden states) gives the model's own logits",
        )
    )


def _make_expert(p: _Patient, findings: list[Finding]) -> None:
    config = p.recipe.expert
    if config is None:
        needs = method_named(p.recipe.method.name)
        findings.append(fine("expert", f"none, and {needs.name} needs none"))
        return
    fix = "Correct the [expert] table."
    if config.checkpoint is not None and p.tokenizer is not None:
        place = config.checkpoint
        p.expert_tokenizer = attempt(findings, "expert tokenizer", lambda: load_tokenizer(place), fix)
        if p.expert_tokenizer is None:
            return
        found = check_vocabulary(p.tokenizer, p.expert_tokenizer, place)
        findings.append(found)
        if found.status == "problem":
            return
    task = p.task
    if task is None or not p.vocab_size:
        return
    clean = attempt(
        findings, "expert", lambda: build_expert(p.recipe, task, p.tokenizer, p.vocab_size, p.device), fix
    )
    if clean is None:
        return
    findings.append(fine("expert", _describe(clean)))
    if config.noise is not None:
        law, actions = config.noise, task.action_ids
        p.noise = attempt(findings, "noise", lambda: build_noise(law, actions), "Correct expert.noise.")
    p.expert = clean


def _describe(expert: Expert) -> str:
    if not isinstance(expert, LocalExpert):
        return "the task's exact law"
    parameters = sum(q.numel() for q in expert.model.parameters())
    return f"{parameters:,} parameters, all finite; head(hidden states) gives the model's own logits"


def _model_of(expert: Expert | None) -> nn.Module | None:
    return expert.model if isinstance(expert, LocalExpert) else None


def _look_at_text(p: _Patient, findings: list[Finding]) -> None:
    if p.tokenizer is None:
        return
    model = _model_of(p.expert)
    if p.student is not None:
        rows = None if model is None else output_size(model)
        findings.append(check_token_ids(p.tokenizer, p.vocab_size, p.student, rows))
    place = p.recipe.expert.checkpoint if p.recipe.expert is not None else None
    findings += check_end_ids(p.recipe, p.tokenizer, p.eos_ids, p.expert_tokenizer, place)
    findings += check_template(p.tokenizer, p.expert_tokenizer)
    if p.task is not None and p.expert_tokenizer is not None:
        findings.append(check_same_prompts(p.recipe, p.task, p.expert_tokenizer, p.eos_ids))


def _look_at_rewards(recipe: Recipe, task: Task, findings: list[Finding]) -> None:
    method = method_named(recipe.method.name)
    if not method.learns_from_reward:
        return

    def checked() -> bool:
        require_grader(task, method.name)
        return True

    if attempt(findings, "rewards", checked, "Set task.grader."):
        samples = recipe.train.samples_per_prompt
        findings.append(fine("rewards", f"the task grades responses; {samples} to a prompt are compared"))


def _look_at_sets(p: _Patient, task: Task, findings: list[Finding]) -> None:
    """What is measured is made as a run makes it: too few prompts, a missing file of a further set, or a server that is not there
    must not wait for it."""
    if p.student is None:
        return
    parts = Parts(
        task=task,
        tokenizer=p.tokenizer,
        student=p.student,
        expert=p.expert,
        noise=p.noise,
        vocab_size=p.vocab_size,
        eos_ids=p.eos_ids,
    )
    fix = "Correct task.validation, task.validation_rows or evaluate.prompts."
    if uses_server(p.recipe):
        findings += check_server(p.recipe, parts, limits_of(p.recipe, parts))
    own = attempt(
        findings,
        "held-out prompts",
        lambda: evaluation_plan(p.recipe, parts, limits_of(p.recipe, parts)),
        fix,
    )
    if own is None or not p.recipe.evaluate.also:
        return
    fix = "Correct the [evaluate.also] table that is named."
    plans = attempt(findings, "evaluation sets", lambda: further_plans(p.recipe, parts, own), fix)
    if plans is not None:
        told = ", ".join(f"{name} ({len(plan.prompts)} prompts)" for name, plan in plans.items())
        findings.append(fine("evaluation sets", told))


def _look_at_numbers(p: _Patient, task: Task, findings: list[Finding]) -> None:
    student = p.student
    if student is not None:
        fits = attempt(
            findings,
            "context",
            lambda: [check_context(p.recipe, student, task)],
            "Lower task.max_prompt_tokens.",
        )
        if fits is None:
            return
    prompts = task.prompts("train", 0, 8) if task.size("train") != 0 else []
    if not prompts:
        return
    longest = min(_CHECKED_TOKENS, p.recipe.train.max_new_tokens or task.max_new_tokens)
    limits = Limits(max_new_tokens=longest, eos_ids=p.eos_ids)
    if student is not None:
        with evaluating(student):
            scorer = LocalExpert(student, p.vocab_size)
            dtype = next(student.parameters()).dtype
            findings.append(check_repeatability("student", scorer, prompts, limits, dtype, p.device))
    if p.expert is not None:
        dtype = torch.float32
        if isinstance(p.expert, LocalExpert):
            dtype = next(p.expert.model.parameters()).dtype
        noisy = p.expert if p.noise is None else NoisyExpert(p.expert, p.noise)
        findings.append(check_repeatability("expert", noisy, prompts, limits, dtype, p.device))
        if p.noise is not None:
            findings.append(check_noise(p.expert, p.noise, prompts, limits, p.device))
