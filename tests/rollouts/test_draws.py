"""The rules that draw: a race has the law's own frequencies, and its winner seldom changes when the law moves a little."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from understudy.randomness import uniforms
from understudy.rollouts import draws
from understudy.rollouts.draws import draw, race

N = 20_000


@pytest.fixture(params=["every clock", "groups"])
def _either_way(request, monkeypatch):
    """Both ways to run a race, each at any size of vocabulary; groups of four, some of which have members to spare."""
    monkeypatch.setattr(draws, "_FEW", 1 << 40 if request.param == "every clock" else 0)
    monkeypatch.setattr(draws, "_GROUP", 4)


either_way = pytest.mark.usefixtures("_either_way")


def numbers(what: str) -> torch.Tensor:
    return torch.from_numpy(uniforms([(what,)], N)[0])


@either_way
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


def joint_law(p_V, q_V):
    """P(v wins by p and w by q) of independent exponential clocks e of rate 1, by hand.

    v at s = e_v / p_v and w at t = e_w / q_w win if every other clock rings after max(p_u s, q_u t), and e_v after q_v t, e_w
    after p_w s. With t = x s the integral over s is that of s exp(-s rate(x)), 1 / rate(x)^2; x lies between p_w / q_w and
    p_v / q_v.
    """
    size = len(p_V)
    joint = np.zeros((size, size))
    for v in range(size):
        joint[v, v] = 1 / np.maximum(p_V / p_V[v], q_V / q_V[v]).sum()
        for w in set(range(size)) - {v}:
            x_X = np.linspace(p_V[w] / q_V[w], max(p_V[w] / q_V[w], p_V[v] / q_V[v]), 20_001)
            others = sum(np.maximum(p_V[u], q_V[u] * x_X) for u in range(size) if u not in (v, w))
            joint[v, w] = np.trapezoid(p_V[v] * q_V[w] / (p_V[v] + q_V[w] * x_X + others) ** 2, x_X)
    return joint


@either_way
def test_winners_of_two_laws_are_those_of_independent_clocks():
    """Two laws over six tokens, one number for both: the 36 pairs of winners against their joint law; chi-square, false alarm
    below 1e-6 for new names (they are fixed).

    One law's frequencies cannot show it if the clocks of a group hang together, or one of them is not the same for both.
    """
    p_V = np.array([0.35, 0.25, 0.15, 0.12, 0.08, 0.05])
    q_V = np.array([0.1, 0.1, 0.4, 0.05, 0.05, 0.3])
    first_n, second_n = (
        race(torch.tensor(law_V).log().expand(N, -1), numbers("pairs")).numpy() for law_V in (p_V, q_V)
    )
    count = np.bincount(6 * first_n + second_n, minlength=36)
    expected = N * joint_law(p_V, q_V).ravel()
    assert expected.sum() == pytest.approx(N, rel=1e-6)
    many = expected > 5
    assert many.sum() > 12
    merged = np.append(expected[many], N - expected[many].sum())
    assert stats.chisquare(np.append(count[many], count[~many].sum()), merged).pvalue > 1e-6


def laws(rows: int, vocab: int) -> dict[str, torch.Tensor]:
    noise_nV = torch.from_numpy(np.random.default_rng(vocab).normal(size=(rows, vocab))).float()
    rank_nV = noise_nV.argsort(dim=-1) + 1.0
    return {
        "sharp": (6 * noise_nV).log_softmax(-1),
        "long tail": (-1.2 * rank_nV.log()).log_softmax(-1),
        "flat": noise_nV.log_softmax(-1),
        "equal": torch.zeros(rows, vocab),
        "mostly forbidden": noise_nV.masked_fill(noise_nV < 2, -torch.inf),
        "one": torch.full((rows, vocab), -torch.inf).index_fill_(1, torch.tensor([vocab - 1]), 0.0),
    }


@pytest.mark.parametrize("vocab", [1025, 5000, 32_000])
def test_what_is_not_looked_into_would_not_win(monkeypatch, vocab):
    """The winner of few groups is that of all, whatever the law; of 32,000 tokens less than a twentieth is looked at.

    Fails if a group's bound is too low, the last tokens belong to no group, or the bound reached is no token's.
    """
    uniform_n = numbers("few")[:40]
    looked = []
    look_into = draws._Groups._look_into

    def counted(self, row_m, group_m):
        looked.append(len(row_m))
        return look_into(self, row_m, group_m)

    monkeypatch.setattr(draws._Groups, "_look_into", counted)
    for name, logp_nV in laws(40, vocab).items():
        looked.clear()
        found_n = race(logp_nV, uniform_n)
        assert sum(looked) * draws._GROUP < 40 * max(vocab, 32_000) / 20, name
        with monkeypatch.context() as everywhere:
            everywhere.setattr(draws._Groups, "_reached", lambda _, best_nG: best_nG[:, 0] - torch.inf)
            assert race(logp_nV, uniform_n).equal(found_n), name
        assert logp_nV.gather(1, found_n[:, None]).isfinite().all(), name


def test_a_winner_does_not_depend_on_the_other_rows():
    logp_nV, uniform_n = laws(40, 3000)["long tail"], numbers("rows")[:40]
    alone = [race(logp_nV[n : n + 1], uniform_n[n : n + 1]) for n in range(40)]
    assert race(logp_nV, uniform_n).equal(torch.cat(alone))
    logp_nV[3] = torch.nan
    assert race(logp_nV, uniform_n)[4:].equal(torch.cat(alone[4:]))


@either_way
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


@either_way
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
