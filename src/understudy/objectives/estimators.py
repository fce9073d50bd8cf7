"""Losses of a position from one sampled token. Each states its value AND its gradient, two different things.

n rows of one tile, V vocabulary, p student, q expert, sg stop-gradient. All are row losses: (student_logp_nV,
rows).
"""

from __future__ import annotations

import torch
from torch import Tensor

from understudy.objectives.divergences import EXPERT_PROB_FLOOR, cross_entropy_from_logp, floored
from understudy.objectives.rows import Rows

_TILE = 1 << 18
"""Probabilities made at once when tokens are drawn on a CPU: float64, small enough to stay in its cache."""


def single_label_forward_kl(student_logp_nV: Tensor, rows: Rows) -> Tensor:
    """Forward KL from one label drawn by the expert at each row.

        value    = -log p(token),    token ~ q;  its mean is KL(q || p) + H(q), H the entropy of the expert
        gradient = p(v) - [v == token] by student logit;  its mean is p(v) - q(v), that of the exact forward
        KL

    Right on average, noisier than `forward_kl`, which a local expert gives at the same cost. On the tokens of
    a fixed data set it is plain cross-entropy.

    Args:
        student_logp_nV: natural log-probabilities, at least float32, with gradient.
        rows: `token_n`, ids in 0..V - 1, drawn from the expert's law at temperature 1 at this very prefix.
    Returns:
        value_n in nats, >= 0; inf where the student forbids the token.
    Raises:
        ValueError: no token.
    Source: NAIL-F and OPD-F (arXiv:2606.30923, A.3.3).
    """
    return cross_entropy_from_logp(student_logp_nV, rows.required("token_n"))


def policy_gradient_reverse_kl(
    student_logp_nV: Tensor, rows: Rows, *, floor_prob: float = EXPERT_PROB_FLOOR
) -> Tensor:
    """Reverse KL from the rollout's own token, by policy gradient.

        value    = log p(token) - log max(q(token), floor),    token ~ p;  its mean is KL(p || q), q floored
        gradient = (log p(token) - log max(q(token), floor)) * grad log p(token)

    The mean of the gradient over token ~ p is that of the exact reverse KL at the given prefix. The gradient
    is not that of the value: differentiating the value directly would give grad log p(token), whose mean is
    zero. It holds for tokens sampled from this very student at temperature 1, without top-k or top-p;
    `gates.require_student_only` refuses others.

    Args:
        student_logp_nV: natural log-probabilities, at least float32, with gradient.
        rows: `token_n`, the token of the rollout; `expert_logp_nV`, the expert's law.
        floor_prob: least probability of the expert's token, > 0: it bounds the reward of a forbidden token.
    Returns:
        value_n in nats, any sign; NaN for a token the student cannot emit, which is no sample of it.
    Raises:
        ValueError: no token, no expert law, or a floor outside (0, 1].
    Source: OPD-R (arXiv:2606.30923, A.3.3), q clamped as in its code. The published loss has this gradient;
        its value is the advantage with the other sign, ours estimates the KL.
    """
    token_n = rows.required("token_n").long()[:, None]
    expert_logp_n = floored(rows.required("expert_logp_nV").gather(-1, token_n)[:, 0], floor_prob)
    logp_n = student_logp_nV.gather(-1, token_n)[:, 0]
    log_ratio_n = logp_n.detach() - expert_logp_n.detach()
    # The factor is 1 in value; it carries the gradient of log p.
    return log_ratio_n * (logp_n - logp_n.detach()).exp()


def auxiliary_token_reverse_kl(
    student_logp_nV: Tensor, rows: Rows, *, floor_prob: float = EXPERT_PROB_FLOOR
) -> Tensor:
    """Reverse KL from one auxiliary token drawn here from sg(p), whatever token the rollout took.

    Value and gradient are those of `policy_gradient_reverse_kl` at the drawn token, so their means are the
    reverse KL and its exact gradient on prefixes of any origin, greedy ones included.

    Args:
        student_logp_nV: natural log-probabilities, at least float32, with gradient.
        rows: `uniform_n`, independent and uniform in [0, 1), fresh at each step; `expert_logp_nV`. `token_n`
            is not looked at.
        floor_prob: least probability of the expert's token, > 0.
    Returns:
        value_n in nats, any sign.
    Raises:
        ValueError: no uniform numbers, no expert law, or a floor outside (0, 1].
    Source: NAIL-R (arXiv:2606.30923, A.3.3); the token is drawn by inverse CDF from given uniform numbers.
    """
    token_n = inverse_cdf(student_logp_nV, rows.required("uniform_n"))
    drawn = Rows(expert_logp_nV=rows.expert_logp_nV, token_n=token_n)
    return policy_gradient_reverse_kl(student_logp_nV, drawn, floor_prob=floor_prob)


@torch.no_grad()
def inverse_cdf(logp_nV: Tensor, uniform_n: Tensor) -> Tensor:
    """One token a row: the first whose cumulative probability exceeds the row's uniform number.

        token = min { v : P(0) + ... + P(v) > uniform * total,  P(v) > 0 }

    Sums in float64 and compares with the row's own total, so that rounding cannot run past the last token; a
    token of probability zero is never returned, even for a uniform number that rounds to 1.

    Args:
        logp_nV: natural log-probabilities, any float dtype; need not be normalised.
        uniform_n: in [0, 1), any float dtype; float64 reaches tokens rarer than 1e-7.
    Returns:
        token_n, int64.
    """
    tile = max(1, _TILE // logp_nV.shape[-1]) if logp_nV.device.type == "cpu" else max(1, len(logp_nV))
    parts = zip(logp_nV.split(tile), uniform_n.split(tile), strict=True)
    tokens = [draw(part_nV.double().exp(), part_n) for part_nV, part_n in parts]
    return tokens[0] if len(tokens) == 1 else torch.cat(tokens)


def draw(prob_nV: Tensor, uniform_n: Tensor) -> Tensor:
    """`inverse_cdf` of probabilities in float64, which need not be normalised."""
    if prob_nV.device.type != "cpu":
        return draw_by_scan(prob_nV, uniform_n)
    # By bisection: on a CPU a row is summed from left to right, so its sums are sorted to the last bit.
    cumulative_nV = prob_nV.cumsum(dim=-1)
    target_n1 = uniform_n.double()[:, None] * cumulative_nV[:, -1:]
    token_n = torch.searchsorted(cumulative_nV, target_n1, right=True)[:, 0]
    return token_n if bool((token_n < prob_nV.shape[-1]).all()) else draw_by_scan(prob_nV, uniform_n)


def draw_by_scan(prob_nV: Tensor, uniform_n: Tensor) -> Tensor:
    """`draw` by comparing every sum: a parallel cumulative sum need not be sorted to the last bit."""
    cumulative_nV = prob_nV.cumsum(dim=-1)
    target_n1 = uniform_n.double()[:, None] * cumulative_nV[:, -1:]
    possible_nV = prob_nV > 0
    beyond_nV = possible_nV & (cumulative_nV > target_n1)
    first_n = beyond_nV.byte().argmax(dim=-1)
    last_possible_n = prob_nV.shape[-1] - 1 - possible_nV.flip(-1).byte().argmax(dim=-1)
    return first_n.where(beyond_nV.any(dim=-1), last_possible_n)
