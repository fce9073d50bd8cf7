"""Do student and expert read the same ids in the same way? Vocabulary, output rows, ends of responses, chat templates."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from torch import nn
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from understudy.build import build_task, check_same_vocabulary
from understudy.doctor.finding import Finding, fine, from_error, problem, warning
from understudy.doctor.work import some_prompts
from understudy.errors import ModelError, UnderstudyError
from understudy.models import inner_model, output_size, quiet_transformers
from understudy.schema import Recipe
from understudy.tasks.task import Task

_SAME_PROMPTS = 64


def check_vocabulary(student: PreTrainedTokenizerBase, expert: PreTrainedTokenizerBase, name: str) -> Finding:
    """Every id must stand for the same text, or the expert's law is about other words."""
    try:
        check_same_vocabulary(student, expert, name)
    except ModelError as error:
        fix = "Use an expert of the student's model family, or train an expert with the student's tokenizer."
        return problem("expert tokenizer", str(error), fix)
    return fine("expert tokenizer", f"the same {len(student)} tokens under the same ids")


def check_token_ids(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, student: nn.Module, expert_rows: int | None
) -> Finding:
    """Ids must fit the embeddings and the heads; rows beyond the tokenizer are padding and are never emitted."""
    highest = max(tokenizer.get_vocab().values())
    embedded = inner_model(student).get_input_embeddings().weight.shape[0]  # pyright: ignore
    if highest >= len(tokenizer):
        found = f"the tokenizer has {len(tokenizer)} tokens and ids up to {highest}: the ids have holes"
        return problem("token ids", found, "Renumber the added tokens so that the ids are 0 .. tokens - 1.")
    if highest >= embedded:
        found = (
            f"the tokenizer has ids up to {highest} and the student {embedded} input embeddings; the first prompts and "
            "references use none beyond them"
        )
        return warning(
            "token ids",
            found,
            "Resize the student's embeddings if your text can hold such tokens (images, say).",
        )
    rows = {"student": output_size(student), "expert": expert_rows}
    told = [
        f"{who} {n} output rows"
        + (f" ({n - vocab_size} of padding, never emitted)" if n > vocab_size else "")
        for who, n in rows.items()
        if n is not None
    ]
    return fine("token ids", f"{vocab_size} tokens; {', '.join(told)}")


def check_end_ids(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    eos_ids: frozenset[int],
    expert_tokenizer: PreTrainedTokenizerBase | None,
    expert_place: str | None,
) -> list[Finding]:
    """Which ids end a response: by the student's files, by the expert's, and in this run."""
    findings = [_student_ends(recipe, tokenizer, eos_ids)]
    if expert_tokenizer is None or expert_place is None:
        return findings
    theirs = stated_ends(expert_tokenizer, expert_place)
    ids = frozenset[int]().union(*theirs.values())
    unknown = sorted(ids - eos_ids)
    if not unknown:
        return [
            *findings,
            fine("expert's end of sequence", f"{_names(tokenizer, ids)}, which ends a response here too"),
        ]
    found = f"the expert ends its responses with {_names(tokenizer, ids)} and this run with {_names(tokenizer, eos_ids)}"
    token = tokenizer.convert_ids_to_tokens(unknown[0])
    fix = f"Set task.end_token = {token!r} if the expert ends its turns with it."
    if ids.isdisjoint(eos_ids):
        return [*findings, problem("expert's end of sequence", f"{found}: its samples never end", fix)]
    return [*findings, warning("expert's end of sequence", f"{found}: some may never end", fix)]


def _student_ends(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, eos_ids: frozenset[int]) -> Finding:
    ours = stated_ends(tokenizer, recipe.student.checkpoint)
    found = f"a response ends at {_names(tokenizer, eos_ids)}"
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id in eos_ids:
        found += (
            "; padding has the same id, which is harmless: masks go by position, so the end is still trained"
        )
    if len(set(ours.values())) <= 1:
        return fine("end of sequence", found)
    told = ", ".join(f"{source}: {_names(tokenizer, ids)}" for source, ids in ours.items())
    fix = (
        "Set task.end_token to the one that the checkpoint was trained to end with (references are closed with it), or "
        "make tokenizer_config.json, generation_config.json and config.json agree."
    )
    return warning("end of sequence", f"the student's files disagree ({told}); {found}", fix)


def stated_ends(tokenizer: PreTrainedTokenizerBase, place: str | None) -> dict[str, frozenset[int]]:
    """End ids by who states them: the tokenizer, the generation config, the config; silence is left out."""
    found = {"tokenizer": _as_set(tokenizer.eos_token_id)}
    if place is not None:
        with quiet_transformers():
            # A checkpoint need not have a generation config, nor a folder with a tokenizer alone a config.
            with suppress(OSError, ValueError):
                found["generation config"] = _as_set(GenerationConfig.from_pretrained(place).eos_token_id)
            with suppress(OSError, ValueError):
                config = AutoConfig.from_pretrained(place, trust_remote_code=False).get_text_config()
                found["config"] = _as_set(config.eos_token_id)
    return {source: ids for source, ids in found.items() if ids}


def _as_set(ids: Any) -> frozenset[int]:
    return frozenset() if ids is None else frozenset(ids if isinstance(ids, list | tuple) else [ids])


def _names(tokenizer: PreTrainedTokenizerBase, ids: frozenset[int]) -> str:
    named = [f"{tokenizer.convert_ids_to_tokens(i)!r} (id {i})" for i in sorted(ids)]
    return " or ".join(named) or "its length limit only"


def check_template(student: PreTrainedTokenizerBase, expert: PreTrainedTokenizerBase | None) -> list[Finding]:
    """A teacher scored under another template gives numbers that look right and are not."""
    ours, theirs = _template(student), _template(expert)
    findings = [_generation_prompt(student, ours)]
    if expert is None or ours == theirs:
        return findings
    copy = "Copy the expert's chat template into the student's tokenizer folder, unless the student was trained with its own."
    if theirs and not ours:
        found = "the expert has a chat template and the student none: the expert reads prompts of a form it was not made for"
    elif ours and not theirs:
        found = "the student has a chat template and the expert none: the expert reads tags it was perhaps not trained with"
    else:
        found = "student and expert have different chat templates; the expert reads prompts in the student's"
    return [*findings, warning("expert's chat template", found, copy)]


def _template(tokenizer: PreTrainedTokenizerBase | None) -> str:
    return str(tokenizer.chat_template or "") if tokenizer is not None else ""


def _generation_prompt(tokenizer: PreTrainedTokenizerBase, template: str) -> Finding:
    check = "chat template"
    if not template:
        return fine(check, "none: prompts are plain text")
    turns = [{"role": "user", "content": "a"}]
    try:
        with_prompt, without = (
            str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add))
            for add in (True, False)
        )
    except Exception as error:  # noqa: BLE001 - a template is a program of its own and raises what it likes
        return problem(
            check, f"the template cannot render one user turn: {error}", "Correct the chat template."
        )
    if with_prompt == without:
        fix = "Let the template open the assistant's turn when add_generation_prompt is true."
        return warning(
            check, "add_generation_prompt changes nothing: the student must open its own turn", fix
        )
    return fine(check, f"present; the generation prompt is {with_prompt[len(without) :]!r}")


def check_same_prompts(
    recipe: Recipe, task: Task, expert_tokenizer: PreTrainedTokenizerBase, eos_ids: frozenset[int]
) -> Finding:
    """The prompts as the expert's own tokenizer and template would have written them."""
    check = "prompts for the expert"
    try:
        theirs = build_task(recipe, expert_tokenizer, eos_ids)
    except UnderstudyError as error:
        return from_error(check, error, "Give the expert's tokenizer what the message asks for.")
    pairs = [
        (a, b)
        for split in ("validation", "train")
        for a, b in zip(
            some_prompts(task, split, _SAME_PROMPTS), some_prompts(theirs, split, _SAME_PROMPTS), strict=True
        )
    ]
    differing = [a.id for a, b in pairs if a.token_ids != b.token_ids]
    if not differing:
        return fine(
            check, f"the same tokens by the expert's own tokenizer and template ({len(pairs)} prompts)"
        )
    found = f"{len(differing)} of {len(pairs)} prompts (first: {differing[0]}) have other tokens by the expert's own files"
    fix = (
        "Give student and expert the same tokenizer files and chat template; an expert that is asked in another form "
        "than it was trained with labels wrongly, and no number shows it."
    )
    return problem(check, found, fix)
