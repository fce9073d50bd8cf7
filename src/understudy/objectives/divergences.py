"""Exact divergences between student and expert next-token laws.

V vocabulary, n rows of one tile, "..." any leading shape ([V], [N, V], [B, T, V]). One value per position, in
nats, ungated and unreduced. Each divergence exists twice: on logits, and `_from_logp` on natural
log-probabilities, which a loss walks tile by tile (`chunked.loss_from_hidden`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from understudy.objectives.rows import RowLoss, Rows
from understudy.objectives.shapes import require_same_shape, require_tokens, wide_log_softmax

Divergence = Callable[[Tensor, Tensor], Tensor]
"""(student_logp_nV with gradient, expert_logp_nV) -> value_n in nats."""

EXPERT_PROB_FLOOR = 1e-10
"""Least probability an expert's token counts with in a log-ratio; as in the published code of NAIL."""


def forward_kl(student_logits: Tensor, expert_logits: Tensor) -> Tensor:
    """KL(expert || student) at every position: low where the student covers all that the expert may say.

        kl[...] = sum_v q(v) * (log q(v) - log p(v)),    p student, q expert
        d kl / d student_logits[..., v] = p(v) - q(v)

    The sum is over the whole vocabulary: no sampling noise. The positions are taken as given: how a token
    changes later positions is not in the gradient.

    Args:
        student_logits: [..., V], any float dtype; -inf marks a token that cannot be emitted.
        expert_logits: same shape and tokenizer; a constant, whatever its requires_grad.
    Returns:
        kl [...] in nats, >= 0 up to rounding, at least float32. inf where the student forbids a token to
        which the expert gives mass; the gradient is finite even there.
    Raises:
        ValueError: the shapes differ.
    Source: GKD (arXiv:2306.13649) section 3; the loss of NAIL-F (arXiv:2606.30923) without its sampled label.
    """
    require_same_shape(student_logits=student_logits, expert_logits=expert_logits)
    return forward_kl_from_logp(wide_log_softmax(student_logits), wide_log_softmax(expert_logits))


def forward_kl_from_logp(student_logp_nV: Tensor, expert_logp_nV: Tensor) -> Tensor:
    """`forward_kl` of log-probabilities [..., V] that already sum to 1."""
    return _relative_entropy(expert_logp_nV.detach(), student_logp_nV)


def reverse_kl(student_logits: Tensor, expert_logits: Tensor) -> Tensor:
    """KL(student || expert) at every position: low where the student stays inside what the expert may say.

        kl[...] = sum_v p(v) * (log p(v) - log q(v)),    p student, q expert
        d kl / d student_logits[..., v] = p(v) * (log p(v) - log q(v) - kl)

    The sum is over the whole vocabulary: no sampling noise. The positions are taken as given: how a token
    changes later positions is not in the gradient.

    Args:
        student_logits: [..., V], any float dtype; -inf marks a token that cannot be emitted.
        expert_logits: same shape and tokenizer; a constant, whatever its requires_grad.
    Returns:
        kl [...] in nats, >= 0 up to rounding, at least float32. inf, with a gradient that is not finite,
        where the student gives mass to a token the expert forbids: `floored` bounds it, as
        published.
    Raises:
        ValueError: the shapes differ.
    Source: MiniLLM (arXiv:2306.08543) section 2 at one position; the loss of NAIL-R (arXiv:2606.30923) and of
        OPD-R without their sampled token.
    """
    require_same_shape(student_logits=student_logits, expert_logits=expert_logits)
    return reverse_kl_from_logp(wide_log_softmax(student_logits), wide_log_softmax(expert_logits))


def reverse_kl_from_logp(student_logp_nV: Tensor, expert_logp_nV: Tensor) -> Tensor:
    """`reverse_kl` of log-probabilities [..., V]; the expert's may sum to more (`floored`)."""
    return _relative_entropy(student_logp_nV, expert_logp_nV.detach())


def generalized_jsd(student_logits: Tensor, expert_logits: Tensor, *, beta: float) -> Tensor:
    """Generalised Jensen-Shannon divergence at every position: finite whatever the two laws forbid.

        m = beta q + (1 - beta) p,    p student, q expert
        jsd[...] = beta KL(q || m) + (1 - beta) KL(p || m)
        d jsd / d student_logits[..., v] = (1 - beta) p(v) * (log(p(v) / m(v)) - KL(p || m))

    jsd / beta tends to the forward KL as beta -> 0 and jsd / (1 - beta) to the reverse KL as beta -> 1, but
    jsd itself tends to 0 at both ends: lower beta with the learning rate in mind.

    Args:
        student_logits: [..., V], any float dtype; -inf marks a token that cannot be emitted.
        expert_logits: same shape and tokenizer; a constant, whatever its requires_grad.
        beta: weight of the expert in the mixture m, 0 < beta < 1.
    Returns:
        jsd [...] in nats, in [0, -beta log beta - (1 - beta) log(1 - beta)] up to rounding, at least float32.
    Raises:
        ValueError: the shapes differ, or beta is outside the open interval.
    Source: GKD (arXiv:2306.13649) section 3, equation for D_JSD(beta). Ours refuses the end points, where
        some programs silently switch to a KL and so change the loss by a factor.
    """
    require_same_shape(student_logits=student_logits, expert_logits=expert_logits)
    return generalized_jsd_from_logp(
        wide_log_softmax(student_logits), wide_log_softmax(expert_logits), beta=beta
    )


def generalized_jsd_from_logp(student_logp_nV: Tensor, expert_logp_nV: Tensor, *, beta: float) -> Tensor:
    """`generalized_jsd` of log-probabilities [..., V] that already sum to 1."""
    if not 0 < beta < 1:
        wanted = "forward_kl" if beta <= 0 else "reverse_kl"
        raise ValueError(f"beta must be in (0, 1), got {beta}. For beta = {int(beta > 0)} use {wanted}.")
    expert_logp_nV = expert_logp_nV.detach()
    # A token neither can emit has no place in the mixture: -inf - -inf would be NaN in the gradient.
    reachable_nV = (student_logp_nV.exp() > 0) | (expert_logp_nV.exp() > 0)
    mixture_logp_nV = (expert_logp_nV.where(reachable_nV, 0) + math.log(beta)).logaddexp(
        student_logp_nV.where(reachable_nV, 0) + math.log1p(-beta)
    )
    expert_part_n = _relative_entropy(expert_logp_nV, mixture_logp_nV)
    student_part_n = _relative_entropy(student_logp_nV, mixture_logp_nV)
    return beta * expert_part_n + (1 - beta) * student_part_n


def mixed_kl(student_logits: Tensor, expert_logits: Tensor, *, beta: float) -> Tensor:
    """The straight mixture of both directions of KL at every position.

        mixed[...] = (1 - beta) KL(expert || student) + beta KL(student || expert)

    Args:
        student_logits: [..., V], any float dtype; -inf marks a token that cannot be emitted.
        expert_logits: same shape and tokenizer; a constant, whatever its requires_grad.
        beta: share of the reverse KL, 0 <= beta <= 1; at an end the other direction is not computed at all,
            so that an infinite one cannot enter.
    Returns:
        mixed [...] in nats, >= 0 up to rounding, at least float32; inf where a part with a share is inf.
    Raises:
        ValueError: the shapes differ, or beta is outside [0, 1].
    Source: the mixed loss of NAIL (arXiv:2606.30923), (1 - beta) L_F + beta L_R, with both parts exact.
    """
    require_same_shape(student_logits=student_logits, expert_logits=expert_logits)
    return mixed_kl_from_logp(wide_log_softmax(student_logits), wide_log_softmax(expert_logits), beta=beta)


def mixed_kl_from_logp(student_logp_nV: Tensor, expert_logp_nV: Tensor, *, beta: float) -> Tensor:
    """`mixed_kl` of log-probabilities [..., V] that already sum to 1."""
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be in [0, 1], got {beta}: it is the share of the reverse KL.")
    if beta == 0:
        return forward_kl_from_logp(student_logp_nV, expert_logp_nV)
    if beta == 1:
        return reverse_kl_from_logp(student_logp_nV, expert_logp_nV)
    forward_n = forward_kl_from_logp(student_logp_nV, expert_logp_nV)
    return (1 - beta) * forward_n + beta * reverse_kl_from_logp(student_logp_nV, expert_logp_nV)


def cross_entropy(student_logits: Tensor, token: Tensor) -> Tensor:
    """The surprise of the student at a given token, at every position.

        ce[...] = -log p(token[...]),    p student
        d ce / d student_logits[..., v] = p(v) - [v == token[...]]

    No id is ignored: a position that must not be trained is left out by its gate.

    Args:
        student_logits: [..., V], any float dtype; -inf marks a token that cannot be emitted.
        token: [...], integer ids in 0..V - 1.
    Returns:
        ce [...] in nats, >= 0, at least float32; inf where the token cannot be emitted.
    Raises:
        ValueError: token has not the leading shape of the logits, or an id is outside the vocabulary.
    """
    if token.shape != student_logits.shape[:-1]:
        raise ValueError(
            f"token must have the leading shape of student_logits {tuple(student_logits.shape)}, "
            f"got {tuple(token.shape)}: one id a position."
        )
    require_tokens(student_logits.shape[-1], token=token)
    return cross_entropy_from_logp(wide_log_softmax(student_logits), token)


def cross_entropy_from_logp(student_logp_nV: Tensor, token_n: Tensor) -> Tensor:
    """`cross_entropy` of log-probabilities [..., V]; the ids must be inside the vocabulary."""
    return -student_logp_nV.gather(-1, token_n.long()[..., None])[..., 0]


def floored(logp: Tensor, floor_prob: float = EXPERT_PROB_FLOOR) -> Tensor:
    """log max(q, floor_prob), not renormalised: finite on forbidden tokens, V * floor_prob too much in all.

    `reverse_kl_from_logp(student, floored(expert))` is the exact twin of the sampled reverse losses of
    `estimators`.
    """
    if not 0 < floor_prob <= 1:
        raise ValueError(f"floor_prob must be in (0, 1], got {floor_prob}: the published value is 1e-10.")
    return logp.clamp_min(math.log(floor_prob))


@dataclass(frozen=True)
class AgainstExpert:
    """A row loss: the divergence of the student's law from the expert's, `floored` where a floor is given."""

    divergence: Divergence
    floor_prob: float | None = None

    def __call__(self, student_logp_nV: Tensor, rows: Rows) -> Tensor:
        expert_logp_nV = rows.expert_logp_nV
        if expert_logp_nV is None:
            raise ValueError("this loss compares with the expert's law: give rows.expert_logp_nV (a law).")
        if self.floor_prob is not None:
            expert_logp_nV = floored(expert_logp_nV, self.floor_prob)
        return self.divergence(student_logp_nV, expert_logp_nV)


def against_expert(divergence: Divergence, *, floor_prob: float | None = None) -> RowLoss:
    """The row loss that compares the law with the expert's: `against_expert(reverse_kl_from_logp)`.

    A divergence of this file, or a `functools.partial` of one, is walked with its gradient in closed form
    (`closed_forms`); any other function by autograd.
    """
    return AgainstExpert(divergence, floor_prob)


def _relative_entropy(logp_nV: Tensor, other_logp_nV: Tensor) -> Tensor:
    """sum_v p (log p - log other), where 0 log 0 = 0 in value and gradient."""
    prob_nV = logp_nV.exp()
    # Restrict to the support before subtracting: -inf - -inf is NaN, and masking it afterwards leaves NaN
    # gradients.
    support_nV = prob_nV > 0
    log_ratio_nV = logp_nV.where(support_nV, 0) - other_logp_nV.where(support_nV, 0)
    return (prob_nV * log_ratio_nV).sum(dim=-1)
