"""What the student's own window should have said, and the loss of not saying it.

B pairs of windows, I positions of the student's window, J of the expert's, K tokens a position is to spread its mass
over, N positions of all windows, n rows of one tile, V vocabulary, p student. A target is sparse: K ids and K weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from understudy.objectives.rows import Given, Rows
from understudy.objectives.shapes import require_same_shape


class Targets(NamedTuple):
    """A law over at most K tokens at every position of B windows; constants."""

    token_BIK: Tensor
    """int64; 0 where the weight is 0, which is always inside the vocabulary."""
    weight_BIK: Tensor
    """>= 0; sums to 1 over K at a real position and is 0 at padding. A token has one entry of weight > 0."""

    def given(self, gate_BI: Tensor) -> Given:
        """The gated positions in row-major order, under the names that `soft_target_kl` asks for."""
        return {
            "target_token_nK": self.token_BIK[gate_BI],
            "target_weight_nK": self.weight_BIK[gate_BI],
        }


@torch.no_grad()
def soft_targets(plan_BIJ: Tensor, expert_token_BJ: Tensor) -> Targets:
    """The expert's tokens that a plan puts at each position of the student's window, shared out as the plan does.

        y[b, i, v] = sum_j gamma[b, i, j] [expert_token[b, j] = v] / sum_j gamma[b, i, j]

    gamma has the student's positions first, as everywhere here. The context of row i is the student's own window up to
    i; only the targets are the expert's. A token that the expert wrote twice gets one entry, at its first place, with
    the sum of its mass. A row of the plan without mass - padding - has no target.

    Args:
        plan_BIJ: >= 0, of `transport`; a constant.
        expert_token_BJ: ids; at padding anything, unless its column has mass.
    Returns:
        K = J entries a position, in the dtype of the plan.
    Raises:
        ValueError: shapes that do not fit.
    Source: arXiv:2606.00305 writes gamma[teacher, student] where it finds forks and gamma[student, teacher] here: the sum
        runs over teacher tokens in both readings, and with gamma indexed one way that is the formula above. Its windows
        have equal lengths, where dividing by the row's mass 1 / K is multiplying by K.
    """
    if plan_BIJ.dim() != 3 or expert_token_BJ.shape != plan_BIJ.shape[::2]:
        raise ValueError(
            f"expected plan_BIJ [B, I, J] and expert_token_BJ [B, J], got {tuple(plan_BIJ.shape)} and "
            f"{tuple(expert_token_BJ.shape)}: the plan has the student's positions first."
        )
    is_same_BJJ = expert_token_BJ[:, :, None] == expert_token_BJ[:, None, :]
    first_BJ = is_same_BJJ.byte().argmax(dim=1)
    is_first_BJ = first_BJ == torch.arange(plan_BIJ.shape[2], device=plan_BIJ.device)
    merged_BIJ = plan_BIJ @ is_same_BJJ.to(plan_BIJ.dtype)
    weight_BIJ = merged_BIJ.where(is_first_BJ[:, None, :], 0)
    mass_BI1 = weight_BIJ.sum(dim=2, keepdim=True)
    weight_BIJ = (weight_BIJ / mass_BI1).where(mass_BI1 > 0, 0)
    token_BIJ = expert_token_BJ.long()[:, None, :].expand_as(weight_BIJ).where(weight_BIJ > 0, 0)
    return Targets(token_BIJ, weight_BIJ)


@torch.no_grad()
def heaviest(targets: Targets) -> Targets:
    """One token a position, the one with most weight; of equal ones that which the expert wrote first. K = 1."""
    weight_BI1 = targets.weight_BIK.amax(dim=2, keepdim=True)
    is_most_BIK = targets.weight_BIK == weight_BI1
    at_BI1 = is_most_BIK.byte().argmax(dim=2, keepdim=True)
    return Targets(targets.token_BIK.gather(2, at_BI1), (weight_BI1 > 0).to(weight_BI1.dtype))


def given_targets(token_BI: Tensor, is_real_BI: Tensor) -> Targets:
    """The tokens of a window themselves, K = 1: plain teacher forcing, with contexts of the window that they belong to.

    On the expert's window this is supervised fine-tuning on its continuation: the ablation that follows the expert
    instead of correcting the student.

    Args:
        token_BI: ids; at padding anything. is_real_BI: bool.
    Returns:
        float64 weights: 1 at real tokens.
    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape(token_BI=token_BI, is_real_BI=is_real_BI)
    return Targets(token_BI.long().where(is_real_BI, 0)[..., None], is_real_BI.double()[..., None])


def listed_cross_entropy(logp_NK: Tensor, weight_NK: Tensor) -> Tensor:
    """Cross-entropy of a sparse target from the log-probabilities of its tokens alone.

        ce[n] = - sum over k with y[n, k] > 0 of  y[n, k] log p(token[n, k])
        d ce / d logit[v] = (sum_k y[n, k]) p(v) - y(v)        (through a log-softmax over the whole vocabulary)

    Args:
        logp_NK: natural log-probabilities of the listed tokens, normalised over the vocabulary, with gradient.
        weight_NK: y >= 0; a constant. A row of zeros has value and gradient 0.
    Returns:
        ce_N in nats, >= 0, in the dtype of logp_NK; inf where the student forbids a token with weight, the gradient by
        logit is finite even there.
    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape(logp_NK=logp_NK, weight_NK=weight_NK)
    weight_NK = weight_NK.detach()
    # By selection: an entry without weight may name a token that the student forbids, and 0 * inf is NaN.
    return -(logp_NK.where(weight_NK > 0, 0) * weight_NK.to(logp_NK.dtype)).sum(dim=-1)


def listed_kl(logp_NK: Tensor, weight_NK: Tensor) -> Tensor:
    """KL(y || p) of a sparse target from the log-probabilities of its tokens alone.

        kl[n] = sum over k with y[n, k] > 0 of  y[n, k] (log y[n, k] - log p(token[n, k]))

    The entropy of y is a constant: the gradient is that of `listed_cross_entropy`. A token must not stand in two entries
    with weight (`soft_targets` sees to it), or the value is too small by the entropy of its split. Several laws in one row,
    one behind the other, have the sum of their divergences.

    Args, Returns, Raises:
        As `listed_cross_entropy`; >= 0 up to rounding where weights sum to 1, 0 for a row of zeros.
    Source: the window term of arXiv:2606.00305 at one position.
    """
    weight_NK = weight_NK.detach()
    entropy_N = -torch.special.xlogy(weight_NK, weight_NK).sum(dim=-1)
    return listed_cross_entropy(logp_NK, weight_NK) - entropy_N.to(logp_NK.dtype)


def soft_target_kl(student_logp_nV: Tensor, rows: Rows) -> Tensor:
    """A row loss: `listed_kl` to the row's target; how much it counts beside the other losses is the caller's weight.

    Args:
        rows: `target_token_nK`, `target_weight_nK` (`Targets.given`).
    Raises:
        ValueError: one of them was not given.
    """
    return listed_kl(_listed(student_logp_nV, rows), rows.required("target_weight_nK"))


def soft_target_cross_entropy(student_logp_nV: Tensor, rows: Rows) -> Tensor:
    """A row loss: `listed_cross_entropy` to the row's target; the same gradient as `soft_target_kl`."""
    return listed_cross_entropy(_listed(student_logp_nV, rows), rows.required("target_weight_nK"))


def _listed(student_logp_nV: Tensor, rows: Rows) -> Tensor:
    return student_logp_nV.gather(-1, rows.required("target_token_nK").long())
