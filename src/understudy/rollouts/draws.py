"""One token from a law and one random number: two rules, the same distribution.

n rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from understudy.objectives.estimators import inverse_cdf


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """Which tokens may be drawn at all: see `truncated`. For evaluation alone: training draws from the model's own law."""

    top_k: int | None = None
    top_p: float | None = None


def draw(
    logp_nV: Tensor,
    uniform_n: Tensor,
    temperature: float,
    *,
    is_coupled: bool = False,
    truncation: Truncation | None = None,
) -> Tensor:
    """One token a row from softmax(logp / temperature), truncated if asked: by inverting its distribution function, or by a
    race if the draws are to be coupled with those of a similar law; 0 is the argmax."""
    if temperature == 0:
        return logp_nV.argmax(dim=-1)
    if temperature != 1:
        logp_nV = (logp_nV / temperature).log_softmax(dim=-1)
    if truncation is not None:
        logp_nV = truncated(logp_nV, truncation)
    return race(logp_nV, uniform_n) if is_coupled else inverse_cdf(logp_nV, uniform_n)


_GROUP = 32
"""Tokens that share the draw of their first clock; a power of two. The time to draw a token is flat around it."""
_FEW = 1024
"""Up to so many tokens it is cheaper to read every clock than to find out which ones matter."""


@torch.no_grad()
def truncated(logp_nV: Tensor, truncation: Truncation) -> Tensor:
    """The law with its unlikely tokens at -inf, not normalised again (neither rule of drawing asks for it).

    top_k keeps the k most likely tokens, exactly k even where some are equally likely. top_p then keeps the fewest most
    likely of these that hold a share top_p of the mass left, the one that reaches it included, so never none. Of equally
    likely tokens the lower id goes first. Temperature comes before both, as in the usual samplers.

    Args:
        logp_nV: natural log-probabilities, any float dtype; -inf stays so.
    Returns:
        the same shape and dtype.
    Source: top-k as in arXiv:1805.04833, top-p (nucleus) as in arXiv:1904.09751; sums in float64.
    """
    sorted_nV, id_nV = logp_nV.sort(dim=-1, descending=True, stable=True)
    kept_nV = torch.ones_like(sorted_nV, dtype=torch.bool)
    if truncation.top_k is not None:
        kept_nV[:, truncation.top_k :] = False
    if truncation.top_p is not None:
        prob_nV = sorted_nV.double().masked_fill(~kept_nV, -torch.inf).softmax(dim=-1)
        before_nV = torch.zeros_like(prob_nV)
        before_nV[:, 1:] = prob_nV.cumsum(dim=-1)[:, :-1]
        kept_nV &= before_nV < truncation.top_p
    kept_by_id_nV = torch.zeros_like(kept_nV).scatter(-1, id_nV, kept_nV)
    return logp_nV.masked_fill(~kept_by_id_nV, -torch.inf)


@torch.no_grad()
def race(logp_nV: Tensor, uniform_n: Tensor) -> Tensor:
    """One token a row: the winner of a race in which token v runs for a time drawn from an exponential law of rate p(v).

        token = argmin_v e_v / p(v) = argmax_v log p(v) - log e_v,      e_v ~ Exp(1), fixed by (uniform, v, V)

    The winner is v with probability p(v), as by `inverse_cdf`. The difference is what happens when p moves a little and the
    number stays: by `inverse_cdf` the ends of all intervals shift, and the token may change by mass that moved between two
    others; the winner of a race changes with probability at most 2 TV / (1 + TV), TV the distance in total variation. No
    rule makes it less than TV.

    Args:
        logp_nV: natural log-probabilities, any float dtype; need not be normalised. -inf never wins.
        uniform_n: in [0, 1), float64; its 53 bits name the clocks of all tokens.
    Returns:
        token_n, int64.
    """
    name_n = _mixed((uniform_n.double() * 2.0**53).long())
    vocab = logp_nV.shape[1]
    if vocab > _FEW:
        return _Groups(logp_nV, name_n).winner()
    return (logp_nV.double() - _exponential(name_n[:, None], _upto(vocab, logp_nV)).log()).argmax(dim=-1)


class _Groups:
    """A race of which few clocks are read: groups that cannot hold the winner are not looked into.

    Token v is member v // G of group v % G. When the first clock of a group rings is drawn for the group, an exponential
    number of rate `_GROUP`, and whose it is, each member's with the same probability; the clocks of the others ring an
    exponential number of rate 1 later. Exponential laws have no memory: all clocks are independent, each of rate 1.

    n rows, V tokens, G groups, K members of a group, m groups looked into.
    """

    def __init__(self, logp_nV: Tensor, name_n: Tensor) -> None:
        self.logp_nV, self.name_n = logp_nV, name_n
        self.vocab = logp_nV.shape[1]
        self.count = -(-self.vocab // _GROUP)
        bits_nG = _bits(name_n[:, None], _upto(self.count, logp_nV))
        self.first_nG = _as_exponential(bits_nG) / _GROUP
        self.owner_nG = bits_nG & (_GROUP - 1)  # not among the bits that make the time

    def winner(self) -> Tensor:
        """The token that wins, as if all had been looked at."""
        best_nG = self._likeliest()
        bound_nG = best_nG - self.first_nG.log()
        reached_n = self._reached(best_nG)
        # Not `bound >= reached`: a row that is NaN then has a winner, too, and its log-probability says what happened.
        row_m, group_m = (~(bound_nG < reached_n[:, None])).nonzero(as_tuple=True)
        score_m, token_m = self._look_into(row_m, group_m)
        score_nG = torch.full_like(bound_nG, -torch.inf).index_put_((row_m, group_m), score_m)
        token_nG = torch.zeros_like(self.owner_nG).index_put_((row_m, group_m), token_m)
        return token_nG.gather(1, score_nG.argmax(dim=1, keepdim=True))[:, 0]

    def _likeliest(self) -> Tensor:
        """The largest log-probability of each group [n, G]."""
        whole = self.vocab // self.count
        best_nG = self.logp_nV[:, : whole * self.count].unflatten(1, (whole, self.count)).amax(dim=1)
        rest = self.vocab - whole * self.count
        if rest:
            best_nG[:, :rest] = torch.maximum(best_nG[:, :rest], self.logp_nV[:, -rest:])
        return best_nG

    def _reached(self, best_nG: Tensor) -> Tensor:
        """A score [n] that some token has: of the first clocks of all groups, and of the likeliest group's members."""
        token_nG = self.owner_nG * self.count + _upto(self.count, self.logp_nV)
        row_n = _upto(len(best_nG), best_nG)
        score_nG = self._logp_of(row_n[:, None], token_nG) - self.first_nG.log()
        inside_n, _ = self._look_into(row_n, best_nG.argmax(dim=1))
        return torch.maximum(score_nG.amax(dim=1), inside_n)

    def _look_into(self, row_m: Tensor, group_m: Tensor) -> tuple[Tensor, Tensor]:
        """The best score in each of these groups, and whose it is."""
        member_K = _upto(_GROUP, row_m)
        token_mK = group_m[:, None] + member_K * self.count
        later_mK = _exponential(self.name_n[row_m, None], self.count + token_mK)
        is_first_mK = self.owner_nG[row_m, group_m][:, None] == member_K
        clock_mK = self.first_nG[row_m, group_m][:, None] + later_mK.masked_fill(is_first_mK, 0)
        logp_mK = self._logp_of(row_m[:, None], token_mK)
        score_m, member_m = (logp_mK - clock_mK.log()).max(dim=1)
        return score_m, group_m + member_m * self.count

    def _logp_of(self, row: Tensor, token: Tensor) -> Tensor:
        """In float64; -inf for the members behind the last token, which some groups have."""
        logp = self.logp_nV[row, token.clamp(max=self.vocab - 1)]
        return logp.double().masked_fill(token >= self.vocab, -torch.inf)


def _upto(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, device=like.device)


def _exponential(name: Tensor, number: Tensor) -> Tensor:
    """An exponential number of rate 1 for each (name, number), never 0."""
    return _as_exponential(_bits(name, number))


def _as_exponential(bits: Tensor) -> Tensor:
    return ((_shifted(bits, 11).double() + 0.5) * 2.0**-53).log().neg()


def _bits(name: Tensor, number: Tensor) -> Tensor:
    return _mixed(name + number * _GOLDEN)


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
