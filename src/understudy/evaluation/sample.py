"""Held-out rollouts of the student."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from understudy.randomness import uniforms
from understudy.records import Prompt, Trajectory
from understudy.rollouts.hf import HFDecoder, evaluating
from understudy.rollouts.sampler import Limits, sample


def rollouts(
    model: nn.Module,
    prompts: Sequence[Prompt],
    *,
    vocab_size: int,
    limits: Limits,
    temperature: float,
    samples_per_prompt: int,
    batch_size: int,
    seed: int,
    student_version: int = 0,
) -> list[Trajectory]:
    """`samples_per_prompt` responses to every prompt, in order.

    The streams are named by prompt and sample only: every evaluation of every method of a comparison draws with the
    same numbers, which takes their noise out of the differences.
    """
    slots = [(p, s) for p in prompts for s in range(samples_per_prompt)]
    # Neighbours in length share a batch, so that little padding is computed; the order of the result is kept.
    order = sorted(range(len(slots)), key=lambda i: len(slots[i][0].token_ids))
    found: dict[int, Trajectory] = {}
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            names = [(seed, "evaluate", slots[i][0].id, slots[i][1]) for i in chosen]
            responses = sample(
                [slots[i][0] for i in chosen],
                limits=limits,
                uniform_BT=uniforms(names, limits.max_new_tokens),
                student=HFDecoder(model, vocab_size=vocab_size),
                temperature=temperature,
            )
            for i, r in zip(chosen, responses, strict=True):
                found[i] = Trajectory(
                    prompt=slots[i][0],
                    sample_index=slots[i][1],
                    response_ids=r.token_ids,
                    is_student=r.is_student,
                    logp=r.logp,
                    temperature=temperature,
                    finish=r.finish,
                    round=0,
                    student_version=student_version,
                )
    return [found[i] for i in range(len(slots))]
