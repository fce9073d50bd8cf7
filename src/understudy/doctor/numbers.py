"""Do log-probabilities repeat? What is trained on are differences of them: noise in a label is noise in the gradient.

B sequences, N response tokens in row-major order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from understudy.doctor.finding import Finding, fine, problem
from understudy.experts.expert import Expert
from understudy.experts.noisy import Noise, NoisyExpert, argmax_of
from understudy.randomness import uniforms
from understudy.records import Prompt, Trajectory
from understudy.rollouts.offline import as_trajectory
from understudy.rollouts.sampler import Limits, sample
from understudy.trainer.collate import collate

REPEAT_LIMIT_NATS = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.25}
"""Largest difference between two scores of one token that is taken for rounding.

A signal worth distilling is 0.1 nats a token and more. Float32 sums in another order move a log-probability by about
1e-5, so 1e-3 is far from both. Half-precision logits around 20 have steps of 0.016 (float16) and 0.125 (bfloat16);
each limit is two to three such steps.
"""
MIN_ARGMAX_KEPT = 0.99


def check_repeatability(
    who: str,
    expert: Expert,
    prompts: Sequence[Prompt],
    limits: Limits,
    dtype: torch.dtype,
    device: torch.device,
) -> Finding:
    """Score the same sequences again, alone instead of in a batch, and against what the sampler saw."""
    check = f"{who}'s log-probs repeat"
    trajectories = _write(expert, prompts, limits, is_greedy=False)
    first_N = _score(expert, trajectories, device)
    again_N = _score(expert, trajectories, device)
    alone_N = torch.cat([_score(expert, [t], device) for t in trajectories])
    sampled_N = torch.tensor([x for t in trajectories for x in t.logp], dtype=torch.float64)
    differences = {
        "scored twice": _difference(first_N, again_N),
        "alone or in a padded batch": _difference(first_N, alone_N),
        "sampled or scored": _difference(first_N, sampled_N),
    }
    limit = REPEAT_LIMIT_NATS.get(dtype, min(REPEAT_LIMIT_NATS.values()))
    told = ", ".join(f"{what}: {value:.1e}" for what, value in differences.items())
    found = f"largest difference in nats over {len(first_N)} tokens - {told} (limit {limit:g})"
    if max(differences.values()) <= limit:
        return fine(check, found)
    fix = "Do not train on it: this family's cached or padded forward pass is not the model's own law."
    if dtype != torch.float32:
        fix = f'Use float32 (expert.dtype = "float32") for the {who}.'
    return problem(check, found, fix)


def check_noise(
    clean: Expert, noise: Noise, prompts: Sequence[Prompt], limits: Limits, device: torch.device
) -> Finding:
    """Greedy decoding recovers the clean expert only where noise leaves its first choice first."""
    batch = collate(_write(clean, prompts, limits, is_greedy=True), device)
    gate_BT = batch.is_response_BT
    clean_N = argmax_of(clean.law(batch, gate_BT))
    noisy_N = argmax_of(NoisyExpert(clean, noise).law(batch, gate_BT))
    kept = (clean_N == noisy_N).double().mean().item()
    found = f"the expert's first choice stays first at {kept:.1%} of {len(clean_N)} positions of its own greedy path"
    if kept >= MIN_ARGMAX_KEPT:
        return fine("noise", found)
    fix = "Lower expert.noise.eta, until the right token is still the most probable one."
    return problem("noise", f"{found}; elsewhere greedy decoding cannot recover the clean expert", fix)


def _write(expert: Expert, prompts: Sequence[Prompt], limits: Limits, *, is_greedy: bool) -> list[Trajectory]:
    responses = sample(
        prompts,
        limits=limits,
        uniform_BT=uniforms([("doctor", p.id) for p in prompts], limits.max_new_tokens),
        student=expert.decoder(),
        temperature=0.0 if is_greedy else 1.0,
    )
    return [as_trajectory(p, 0, r, round=0) for p, r in zip(prompts, responses, strict=True)]


@torch.no_grad()
def _score(expert: Expert, trajectories: Sequence[Trajectory], device: torch.device) -> Tensor:
    batch = collate(trajectories, device)
    law = expert.law(batch, batch.is_response_BT)
    token_N = batch.token_BT[batch.is_response_BT]
    return law.logp(0, law.num_rows).gather(-1, token_N[:, None])[:, 0].double().cpu()


def _difference(left_N: Tensor, right_N: Tensor) -> float:
    """Largest absolute difference; two equal infinities do not differ."""
    return (left_N - right_N).abs().where(left_N != right_N, 0.0).max().item()
