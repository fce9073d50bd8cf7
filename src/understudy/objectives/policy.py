"""Learning from rewards: advantages of a group of responses to one prompt, and the clipped loss of a token.

P prompts, G responses to each, n rows of one tile, N gated positions, V vocabulary, p student.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from understudy.objectives.rows import Rows, Watched

AdvantageRule = Literal["grpo", "rloo", "dr-grpo"]
ADVANTAGE_EPSILON = 1e-4
"""Added to the standard deviation, as in TRL."""


def group_advantage(reward_PG: Tensor, rule: AdvantageRule) -> Tensor:
    """How much better each response is than the others to its prompt.

        grpo      (r - mean) / (std + 1e-4),   std with G - 1 in its denominator
        dr-grpo    r - mean
        rloo       r - mean of the other G - 1  =  (r - mean) G / (G - 1)

    A group of equal rewards gives exactly 0: it teaches nothing, and it is still trained on (entropy and KL terms act there,
    and its tokens count in the denominator, as in TRL).

    Args:
        reward_PG: finite, G >= 2.
    Returns:
        advantage_PG, float64; each row sums to 0 up to rounding.
    Raises:
        ValueError: fewer than two responses a prompt, a reward that is no number, or an unknown rule.
    Source: GRPO, arXiv:2402.03300, 4.1.2; Dr. GRPO, arXiv:2503.20783; RLOO, arXiv:2402.14740. Standard deviation and epsilon
        as in TRL 1.16.
    """
    if reward_PG.dim() != 2 or reward_PG.shape[1] < 2:
        raise ValueError(
            f"rewards of at least two responses to each prompt expected, [P, G >= 2], got {tuple(reward_PG.shape)}."
        )
    reward_PG = reward_PG.double()
    if not bool(torch.isfinite(reward_PG).all()):
        raise ValueError("rewards must be finite numbers, got inf or NaN: check the task's grader.")
    centred_PG = reward_PG - reward_PG.mean(dim=1, keepdim=True)
    if rule == "grpo":
        advantage_PG = centred_PG / (reward_PG.std(dim=1, keepdim=True) + ADVANTAGE_EPSILON)
    elif rule == "rloo":
        group = reward_PG.shape[1]
        advantage_PG = centred_PG * (group / (group - 1))
    elif rule == "dr-grpo":
        advantage_PG = centred_PG
    else:
        raise ValueError(f"the rule of the advantage must be grpo, rloo or dr-grpo, got {rule!r}.")
    # Not left to rounding: 1e-17 over 1e-4 would be a gradient.
    return advantage_PG.masked_fill(has_no_variance(reward_PG)[:, None], 0.0)


def has_no_variance(reward_PG: Tensor) -> Tensor:
    """[P] bool: all responses to the prompt have the same reward."""
    return reward_PG.amax(dim=1) == reward_PG.amin(dim=1)


def policy_loss(*, clip_low: float, clip_high: float, entropy: float, kl: float) -> Watched:
    """`clipped_policy_gradient` with these settings; reports `clip_rate`, `entropy_nats` and, with kl > 0, `kl_to_reference`.

    Raises:
        ValueError: a setting out of its range.
    """
    if not (0 <= clip_low <= 1 and clip_high >= 0 and entropy >= 0 and kl >= 0):
        raise ValueError(
            "clip_low in [0, 1], clip_high, entropy and kl >= 0 expected, got "
            f"{clip_low}, {clip_high}, {entropy} and {kl}."
        )
    names = ("clip_rate", "entropy_nats") + (("kl_to_reference",) if kl > 0 else ())
    loss = partial(clipped_policy_gradient, clip_low=clip_low, clip_high=clip_high, entropy=entropy, kl=kl)
    return Watched(function=loss, names=names)


def clipped_policy_gradient(
    student_logp_nV: Tensor, rows: Rows, *, clip_low: float, clip_high: float, entropy: float, kl: float
) -> Tensor:
    """The loss of a token that the student drew, given how good it turned out to be; and what is logged of it.

        ratio    = p(token) / p_old(token)
        value    = - min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A)  -  entropy H(p)  +  kl k3
        k3       = exp(d) - d - 1,    d = log p_ref(token) - log p(token);   H(p) = - sum_v p(v) log p(v)
        gradient = - [not clipped] ratio A grad log p(token)  +  entropy sum_v (log p(v) + H(p)) grad p(v)
                   + kl (1 - exp(d)) grad log p(token)

    Clipped is a ratio above 1 + clip_high with A > 0, or below 1 - clip_low with A < 0; exactly at the border the
    gradient passes. Where ratio = 1 the first term has the gradient of REINFORCE. The gradient of k3 is that of its value at
    the given token, no score function: over tokens of the student its mean is the gradient of KL(p_ref || p), while the mean
    of its value is KL(p || p_ref).

    A ratio is formed only where it counts: where it is clipped, or A = 0, neither value nor gradient depends on it, however
    large it is. Where it counts and overflows (above e^88 in float32) the value is infinite, which stops a run before its step.

    Args:
        student_logp_nV: natural log-probabilities, at least float32, with gradient.
        rows: `token_n`; `old_logp_n`, its log-probability when it was drawn, at temperature 1; `advantage_n`, any sign;
            `reference_logp_n` where kl > 0.
        clip_low, clip_high: >= 0. entropy, kl: coefficients >= 0.
    Returns:
        [n, 3], or [n, 4] where kl > 0: value (any sign, in units of the advantage), 1 where clipped, H(p) in nats, k3 in nats.
        All but the first column are without a graph.
    Raises:
        ValueError: something that is needed was not given.
    Source: PPO-clip, arXiv:1707.06347; GRPO, arXiv:2402.03300, eq. 3, with k3 of Schulman 2020; two clips: DAPO,
        arXiv:2503.14476. The value is the loss of TRL 1.16's GRPO at a token with `use_bias_correction_kl=False` (its default
        multiplies k3 by the ratio), but for the entropy, which TRL averages over tokens whatever else is averaged over; here
        it takes the token's weight like all the rest.
    """
    token_n1 = rows.required("token_n").long()[:, None]
    logp_n = student_logp_nV.gather(-1, token_n1)[:, 0]
    advantage_n = rows.required("advantage_n").to(logp_n.dtype)
    log_ratio_n = logp_n - rows.required("old_logp_n").to(logp_n.dtype)
    seen_n = log_ratio_n.detach().exp()
    is_low_n = (seen_n < 1 - clip_low) & (advantage_n < 0)
    is_high_n = (seen_n > 1 + clip_high) & (advantage_n > 0)
    # By selection: a ratio that overflows where it does not count would make NaN of its gradient, inf * 0.
    counts_n = ~(is_low_n | is_high_n) & (advantage_n != 0)
    ratio_n = log_ratio_n.where(counts_n, 0).exp()
    value_n = -ratio_n.masked_fill(is_low_n, 1 - clip_low).masked_fill(is_high_n, 1 + clip_high) * advantage_n
    entropy_n = entropy_of(student_logp_nV if entropy > 0 else student_logp_nV.detach())
    if entropy > 0:
        value_n = value_n - entropy * entropy_n
    seen = [(is_low_n | is_high_n).to(logp_n.dtype), entropy_n.detach()]
    if kl > 0:
        to_reference_n = rows.required("reference_logp_n").to(logp_n.dtype) - logp_n
        k3_n = to_reference_n.exp() - to_reference_n - 1
        value_n = value_n + kl * k3_n
        seen.append(k3_n.detach())
    return torch.stack([value_n, *seen], dim=-1)


def entropy_of(logp_nV: Tensor) -> Tensor:
    """H = - sum_v p(v) log p(v) of each row in nats; 0 log 0 = 0, in the gradient too."""
    prob_nV = logp_nV.exp()
    return -(prob_nV * logp_nV.where(prob_nV > 0, 0)).sum(dim=-1)
