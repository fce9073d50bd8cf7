"""One token from a law and one random number: two rules, the same distribution.

n rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from understudy.objectives.estimators import inverse_cdf


def draw(logp_nV: Tensor, uniform_n: Tensor, temperature: float, *, is_coupled: bool = False) -> Tensor:
    """One token a row from softmax(logp / temperature): by inverting its distribution function, or by a race if the draws
    are to be coupled with those of a similar law; 0 is the argmax."""
    if temperature == 0:
        return logp_nV.argmax(dim=-1)
    if temperature != 1:
        logp_nV = (logp_nV / temperature).log_softmax(dim=-1)
    return race(logp_nV, uniform_n) if is_coupled else inverse_cdf(logp_nV, uniform_n)


@torch.no_grad()
def race(logp_nV: Tensor, uniform_n: Tensor) -> Tensor:
    """One token a row: the winner of a race in which token v runs for a time drawn from an exponential law of rate p(v).

        token = argmin_v e_v / p(v) = argmax_v log p(v) - log e_v,      e_v = -log u_v,  u_v fixed by (uniform, v)

    The winner is v with probability p(v), as by `inverse_cdf`. The difference is what happens when p moves a little and the
    number stays: by `inverse_cdf` the ends of all intervals shift, and the token may change by mass that moved between two
    others; the winner of a race changes with probability at most 2 TV / (1 + TV), TV the distance in total variation. No
    rule makes it less than TV.

    Args:
        logp_nV: natural log-probabilities, any float dtype; need not be normalised. -inf never wins.
        uniform_n: in [0, 1), float64; its 53 bits name the numbers of all tokens.
    Returns:
        token_n, int64.
    """
    token_V = torch.arange(logp_nV.shape[-1], device=logp_nV.device)
    name_n = (uniform_n.double() * 2.0**53).long()
    bits_nV = _mixed(_mixed(name_n)[:, None] + token_V * _GOLDEN)
    u_nV = (_shifted(bits_nV, 11).double() + 0.5) * 2.0**-53  # never 0 nor 1
    return (logp_nV.double() - u_nV.log().neg().log()).argmax(dim=-1)


_GOLDEN, _FIRST, _SECOND = (
    number - (1 << 64) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def _mixed(bits: Tensor) -> Tensor:
    """splitmix64's finaliser: every bit of the argument reaches every bit of the value. Products wrap around."""
    bits = (bits ^ _shifted(bits, 30)) * _FIRST
    bits = (bits ^ _shifted(bits, 27)) * _SECOND
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """To the right, zeros from the left: these are 64 bits, not a number with a sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
