"""The pessimistic learner for models: from responses of the base model and one score each, without ever sampling again.

B sequences, N gated positions of them in row-major order, n rows of one tile, V vocabulary, pi student, pi_base its start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from understudy.objectives.rows import Rows
from understudy.objectives.shapes import require_rows, require_same_shape


def bounded_score(expert_logp_B: Tensor, *, score_nats: float) -> Tensor:
    """f in [0, 1] from the expert's log-probability of a whole response: V_max = 1.

        f = clip(1 + log pi_e(y | x) / score_nats, 0, 1)

    A response that the expert is sure of scores 1; one with e^-score_nats of its probability or less scores 0, and all of
    those alike. The shift to values >= 0 is not free at finite samples: a student that gives nothing that was sampled
    scores 0, which is the worst of such scores and would be the best of negative ones.

    Args:
        expert_logp_B: sums over the response in nats, <= 0; -inf allowed.
        score_nats: > 0.
    Raises:
        ValueError: score_nats is not > 0.
    Source: arXiv:2606.30445 Thm 5 asks for |f| <= V_max and leaves f open; shift, scale and clip are ours.
    """
    if not 0 < score_nats < math.inf:
        raise ValueError(f"score_nats must be > 0 and finite, got {score_nats}.")
    return (1 + expert_logp_B / score_nats).clamp(0, 1)


def sequence_sums(value_N: Tensor, sequence_N: Tensor, num_sequences: int) -> Tensor:
    """[B] float64: the sum of [N] over each sequence. `sequence_N`: which one a position belongs to."""
    require_same_shape(value_N=value_N, sequence_N=sequence_N)
    zeros_B = torch.zeros(num_sequences, dtype=torch.float64, device=value_N.device)
    return zeros_B.index_add(0, sequence_N, value_N.double())


def pessimistic_terms(
    logp_N: Tensor, sequence_N: Tensor, base_logp_B: Tensor, score_B: Tensor, *, pessimism: float
) -> dict[str, Tensor]:
    """What `surrogate` needs at every token, so that its sum is the pessimistic objective and so is its gradient.

        rho_b       = pi(y_b | x_b) / pi_base(y_b | x_b)
        J           = mean of rho f,   penalty = mean of rho^2  (its mean over pi_base is E_pi[pi / pi_base])
        loss_b      = - rho f + pessimism rho^2,     spread evenly over the n_b tokens of b
        advantage_b = - d loss_b / d log pi(y_b | x_b) = rho f - 2 pessimism rho^2,   the same at each of them

    The penalty as printed, sum_y pi(y|x)/pi_base(y|x), grows with the number of responses for students that are not
    deterministic. Its unbiased estimate from the samples, rho / pi_base, is useless: its second moment is the sum of
    pi^2 / pi_base^3 over whole responses. The second moment of rho itself is at most the coverage, and rho^2 estimates it.

    With beta = 0 there is no penalty, and rho^2 is not formed: it overflows long before rho does.

    Args:
        logp_N: log-probabilities of the tokens under the student as it is; a constant.
        sequence_N: which sequence each belongs to, 0..B - 1.
        base_logp_B, score_B: of the whole sequences; f in [0, V_max].
        pessimism: beta, >= 0.
    Returns:
        `loss_n` and `advantage_n`, [N] float64.
    Raises:
        ValueError: shapes that do not fit, or beta < 0.
    Source: arXiv:2606.30445 Thm 5 with another penalty, see `theory.pessimism`.
    """
    if not 0 <= pessimism < math.inf:
        raise ValueError(f"pessimism must be >= 0 and finite, got {pessimism}.")
    require_rows(len(base_logp_B), score_B=score_B)
    ratio_B = (sequence_sums(logp_N, sequence_N, len(base_logp_B)) - base_logp_B).exp()
    num_tokens_B = sequence_sums(torch.ones_like(logp_N), sequence_N, len(base_logp_B))
    # Where f = 0 the response says nothing of pi, whatever the ratio: inf * 0 would be NaN.
    gain_B = torch.where(score_B > 0, ratio_B * score_B, 0.0)
    square_B = pessimism * ratio_B.square() if pessimism > 0 else torch.zeros_like(ratio_B)
    loss_B = square_B - gain_B
    advantage_B = gain_B - 2 * square_B
    return {"loss_n": (loss_B / num_tokens_B)[sequence_N], "advantage_n": advantage_B[sequence_N]}


def surrogate(student_logp_nV: Tensor, rows: Rows) -> Tensor:
    """A loss whose value and whose gradient by the token's log-probability are both given.

        value    = loss
        gradient = - advantage * grad log p(token)

    Args:
        rows: `token_n`, `loss_n`, `advantage_n`.
    Returns:
        value_n, any sign.
    Raises:
        ValueError: something was not given.
    """
    token_n1 = rows.required("token_n").long()[:, None]
    logp_n = student_logp_nV.gather(-1, token_n1)[:, 0]
    advantage_n = rows.required("advantage_n").to(logp_n.dtype)
    return rows.required("loss_n").to(logp_n.dtype) - advantage_n * (logp_n - logp_n.detach())


class Estimate(NamedTuple):
    """What a student is worth by samples of another one."""

    mean: float
    standard_error: float
    """Over prompts."""
    effective_share: float
    """(sum rho)^2 / (B sum rho^2), in (0, 1]: small where few samples carry the estimate."""
    num_samples: int
    """B."""

    @property
    def lower(self) -> float:
        return self.mean - self.standard_error


def importance_estimate(logp_B: Tensor, base_logp_B: Tensor, score_B: Tensor, prompt_B: Tensor) -> Estimate:
    """The importance-weighted mean of the score, unbiased for E_pi f where pi_base covers pi; from held-out samples.

        value_p        = mean of rho f over the samples of prompt p
        mean           = mean of value_p over the P prompts
        standard_error = std of value_p (P - 1 in its denominator) / sqrt(P)

    Samples of one prompt are not independent of each other as those of two prompts are: prompts are what was drawn.

    Args:
        logp_B, base_logp_B: log-probabilities of whole responses that pi_base wrote. score_B: f.
        prompt_B: which prompt each answers, any integers; at least two different ones.
    Returns:
        NaN or inf where a weight is not finite.
    Raises:
        ValueError: shapes that do not fit, or fewer than two prompts.
    """
    require_same_shape(logp_B=logp_B, base_logp_B=base_logp_B, score_B=score_B, prompt_B=prompt_B)
    prompts_P, owner_B = torch.unique(prompt_B, return_inverse=True)
    if len(prompts_P) < 2:
        raise ValueError(f"at least two prompts are needed for a standard error, got {len(prompts_P)}.")
    ratio_B = (logp_B.double() - base_logp_B.double()).exp()
    sum_P = sequence_sums(ratio_B * score_B.double(), owner_B, len(prompts_P))
    value_P = sum_P / torch.bincount(owner_B, minlength=len(prompts_P))
    effective = ratio_B.sum().square() / (len(ratio_B) * ratio_B.square().sum())
    return Estimate(
        mean=value_P.mean().item(),
        standard_error=value_P.std().item() / math.sqrt(len(value_P)),
        effective_share=effective.nan_to_num().item(),
        num_samples=len(ratio_B),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """Responses of the base model with their scores; called with the student's log-probabilities it is `pessimistic_terms`."""

    sequence_N: Tensor
    base_logp_B: Tensor
    score_B: Tensor
    pessimism: float

    def __call__(self, logp_N: Tensor) -> dict[str, Tensor]:
        return pessimistic_terms(
            logp_N, self.sequence_N, self.base_logp_B, self.score_B, pessimism=self.pessimism
        )

    def logp_B(self, logp_N: Tensor) -> Tensor:
        return sequence_sums(logp_N, self.sequence_N, len(self.base_logp_B))
