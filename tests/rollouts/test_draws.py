"""The rules that draw: a race has the law's own frequencies, and its winner seldom changes when the law moves a little."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from understudy.randomness import uniforms
from understudy.rollouts.draws import draw, race

N = 20_000


def numbers(what: str) -> torch.Tensor:
    return torch.from_numpy(uniforms([(what,)], N)[0])


def test_frequencies_of_a_race():
    """20,000 winners against the law, forbidden tokens among them, at temperatures 1 and 2: chi-square, false alarm below
    1e-6 for new names (they are fixed). Fails if a rate is inverted, or a token's number depends on the law."""
    prob_V = torch.tensor([0.4, 0.0, 0.3, 0.15, 0.1, 0.05], dtype=torch.float64)
    for temperature in (1.0, 2.0):
        expected_V = (prob_V ** (1 / temperature)).numpy()
        expected_V *= N / expected_V.sum()
        logp_nV = prob_V.log().expand(N, -1)
        token_n = draw(logp_nV, numbers(f"t{temperature}"), temperature, is_coupled=True)
        count_V = np.bincount(token_n, minlength=6)
        assert count_V[1] == 0
        keep = [0, 2, 3, 4, 5]
        assert stats.chisquare(count_V[keep], expected_V[keep]).pvalue > 1e-6


def test_numbers_of_a_large_vocabulary_are_independent():
    """A uniform law over 1,000 tokens, 4,000 numbers: every hundred tokens win as often as any other,
    neighbouring numbers have nothing in common, and consecutive winners have not either.
    Chi-square, false alarm below 1e-6 each."""
    count, vocab = 4000, 1000
    near_n = torch.arange(count).double() / count  # not random at all: what is mixed must not show it
    for uniform_n in (numbers("u")[:count], near_n, near_n * 2.0**-40):
        group_n = race(torch.zeros(count, vocab), uniform_n).numpy() // 100
        assert stats.chisquare(np.bincount(group_n, minlength=10)).pvalue > 1e-6
        pairs = np.bincount(10 * group_n[:-1] + group_n[1:], minlength=100)
        assert stats.chisquare(pairs).pvalue > 1e-6


def test_a_law_that_moves_a_little_draws_the_same():
    """200 tokens, mass moved from the first to the last: the race changes its winner by 2 TV / (1 + TV) at most, and by no
    less than TV; inverting the distribution function shifts every interval between. Within six standard errors (2e-9).

    Fails if the numbers of the tokens are not each their own and the same for both laws.
    """
    before_V = torch.full((200,), 1 / 200, dtype=torch.float64)
    after_V = before_V.clone()
    after_V[0], after_V[-1] = 0.0, 2 / 200
    tv = 1 / 200
    uniform_n = numbers("moved")

    def changed(is_coupled: bool) -> float:
        tokens = [
            draw(law_V.log().expand(N, -1), uniform_n, 1.0, is_coupled=is_coupled)
            for law_V in (before_V, after_V)
        ]
        return float((tokens[0] != tokens[1]).double().mean())

    error = 6 * (2 * tv / N) ** 0.5
    assert tv - error < changed(True) < 2 * tv / (1 + tv) + error
    assert changed(False) > 0.9
