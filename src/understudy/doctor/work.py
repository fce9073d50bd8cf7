"""Is the work itself in order? Lengths, references, and a grader that accepts its own gold answers."""

from __future__ import annotations

from torch import nn

from understudy.doctor.finding import Finding, fine, problem, warning
from understudy.models import context_length
from understudy.records import Prompt
from understudy.schema import CountdownTask, MixtureTask, Recipe
from understudy.tasks.task import Split, Task
from understudy.tasks.text_task import TextTask

GOLD_ROWS = 64
_LENGTH_ROWS = 2048
_MANY_DROPPED = 0.05
"""Share of rows left out for their length above which the data set is no longer the one that was meant."""


def some_prompts(task: Task, split: Split, count: int) -> list[Prompt]:
    """The first prompts of a split; none where the task has no such split."""
    size = task.size(split)
    return task.prompts(split, 0, count if size is None else min(size, count)) if size != 0 else []


def check_lengths(
    recipe: Recipe, task: Task, student: nn.Module | None, expert: nn.Module | None
) -> list[Finding]:
    """Prompts, responses and references against the limits of the task and the contexts of the models."""
    splits: tuple[Split, ...] = ("train", "validation")
    rows = {split: some_prompts(task, split, _LENGTH_ROWS) for split in splits}
    findings = [_no_rows(split) for split in splits if not rows[split]]
    prompts = [p for found in rows.values() for p in found]
    if not prompts:
        return findings
    longest = max(len(p.token_ids) for p in prompts)
    limit = recipe.train.max_new_tokens or task.max_new_tokens
    told = f"longest prompt {longest} tokens, responses up to {limit}"
    for who, model in (("student", student), ("expert", expert)):
        context = None if model is None else context_length(model)
        if context is None:
            continue
        if longest + limit > context:
            fix = "Lower task.max_new_tokens or train.max_new_tokens, leave long prompts out, or use a longer context."
            findings.append(problem("lengths", f"{told}; the {who}'s context is {context}", fix))
        told += f", {who}'s context {context}"
    references = [len(p.reference_ids) for p in prompts if p.reference_ids]
    cut = sum(n > limit for n in references) / max(len(references), 1)
    if cut:
        found = f"{cut:.1%} of the references are longer than max_new_tokens = {limit}: no response could equal them"
        findings.append(warning("references", found, "Raise max_new_tokens."))
    if isinstance(task, TextTask):
        findings += _dropped(task)
    return findings if any(f.check == "lengths" for f in findings) else [fine("lengths", told), *findings]


def _no_rows(split: Split) -> Finding:
    where = "task.validation, or task.validation_rows" if split == "validation" else f"task.{split}"
    return problem("data", f"there are no {split} prompts", f"Give {where}.")


def _dropped(task: TextTask) -> list[Finding]:
    findings = []
    for split, dropped in task.num_dropped.items():
        share = dropped / (dropped + task.size(split))
        if share > _MANY_DROPPED:
            found = f"{dropped} rows of {split} ({share:.0%}) are left out because they are too long"
            findings.append(
                warning("dropped rows", found, "Raise task.max_prompt_tokens or task.max_new_tokens.")
            )
    return findings


def check_held_out(recipe: Recipe) -> list[Finding]:
    """A task whose training puzzles are those of its held-out splits, too; nothing to say of any other."""
    task = recipe.task
    tasks = [part.task for part in task.parts] if isinstance(task, MixtureTask) else [task]
    if not any(isinstance(t, CountdownTask) and t.train_on_all for t in tasks):
        return []
    found = "task.train_on_all = true: training sees the held-out puzzles, so accuracy on them is what was learnt by heart"
    return [
        warning(
            "unseen prompts", found, "Use it for an expert that is to know them all; never for a student."
        )
    ]


def check_references(recipe: Recipe, task: Task) -> Finding:
    """A reference must end in an end id exactly once, or the student never learns to stop."""
    check = "reference ends"
    prompts = some_prompts(task, "train", GOLD_ROWS)
    ids = [(p.id, p.reference_ids) for p in prompts if p.reference_ids]
    if not ids and recipe.data.offline == "reference":
        fix = "Give every row a reference, or set data.offline = 'expert'."
        return problem(check, "data.offline = 'reference' trains on references, and there are none", fix)
    if not ids:
        return fine(check, "there are no references, and the recipe needs none")
    if not task.eos_ids:
        return fine(check, "responses end by their length; there is no end id")
    wrong = [name for name, r in ids if r[-1] not in task.eos_ids or not task.eos_ids.isdisjoint(r[:-1])]
    if wrong:
        found = (
            f"{len(wrong)} of {len(ids)} references (first: {wrong[0]}) do not end in an end id exactly once"
        )
        return problem(check, found, "Let the task close every reference with an id of its eos_ids.")
    return fine(check, f"all of {len(ids)} references end in an end id, which is trained")


def check_gold(task: Task) -> Finding:
    """A grader that refuses gold answers measures something else than the task."""
    # A reference may be a trace that ends in a wrong answer, and then says so.
    prompts = [
        p
        for p in some_prompts(task, "validation", GOLD_ROWS)
        if p.reference_ids and p.meta.get("is_gold", True)
    ]
    grades = [(p.id, task.grade(p, p.reference_ids or ())) for p in prompts]
    graded = [(name, grade) for name, grade in grades if grade is not None]
    if not graded:
        return fine("grader", "the task has no grader or no references: no accuracy is measured")
    low = [name for name, grade in graded if grade.score < 1]
    if low:
        found = f"{len(low)} of {len(graded)} gold answers (first: {low[0]}) do not score 1 under the task's own grader"
        return problem("grader", found, "Correct these references, or choose another grader.")
    return fine("grader", f"{len(graded)} of {len(graded)} gold answers score 1")
