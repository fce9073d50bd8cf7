"""Drafts read in one forward: what is accepted, and that decoding goes on as if every token had been decoded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from small import FAMILIES, LOGP_TOLERANCE, VOCAB, make_model, make_prompts
from understudy.objectives.estimators import inverse_cdf
from understudy.rollouts import hf
from understudy.rollouts.hf import HFDecoder

families = pytest.mark.parametrize("family", FAMILIES)
UNEVEN = (4, 1, 9, 6, 2, 9, 3)
LENGTH = 12


def greedy(logp_nV, row_n, t_n):
    return logp_nV.argmax(-1)


def sampled(seed, rows):
    uniform_BT = torch.from_numpy(np.random.default_rng(seed).random((rows, 3 * LENGTH)))
    return lambda logp_nV, row_n, t_n: inverse_cdf(logp_nV, uniform_BT[row_n, t_n])


def decoded(model, prompts, choose, length):
    """Token by token: what was said, and its law each time."""
    decoder = HFDecoder(model, vocab_size=VOCAB)
    law_BV, row_B = decoder.start(prompts), torch.arange(len(prompts))
    tokens, laws = [], []
    for t in range(length):
        laws.append(law_BV)
        tokens.append(choose(law_BV, row_B, torch.full_like(row_B, t)))
        law_BV = decoder.step(tokens[-1])
    return torch.stack(tokens, 1), torch.stack(laws, 1)


def spoilt(token_BT):
    """Drafts of the first tokens: row b is wrong at place b, one is right throughout, one empty, one longer, one wrong twice."""
    drafts = [row[: LENGTH - 2 - b % 3].tolist() for b, row in enumerate(token_BT)]
    for b in range(len(drafts)):
        drafts[b][b] = (drafts[b][b] + 1) % VOCAB
    drafts[2] = token_BT[2, : LENGTH - 4].tolist()
    drafts[4] = []
    drafts[5][3] = (drafts[5][3] + 1) % VOCAB
    drafts[6] = [*token_BT[6, :LENGTH].tolist(), 1, 2, 3]
    accepted = list(range(len(drafts)))
    accepted[2], accepted[4], accepted[5], accepted[6] = LENGTH - 4, 0, 3, LENGTH
    return drafts, accepted


@families
@pytest.mark.parametrize("how", ["greedy", "sampled"])
def test_a_followed_draft_is_plain_decoding(family, how):
    """Accepted counts, chosen tokens, their log-probs, and every law of the decoding that follows.

    Fails if a law is taken one place off, acceptance goes on after a wrong token, rejected tokens stay visible (also
    through a window), a row's next position is off, or rows are mixed up.
    """
    model, prompts = make_model(family, seed=1), make_prompts(UNEVEN, seed=1)
    choose = greedy if how == "greedy" else sampled(7, len(prompts))
    token_BT, law_BTV = decoded(model, prompts, choose, LENGTH + 8)
    drafts, accepted = spoilt(token_BT)
    if token_BT[6, LENGTH] == 1:
        drafts[6][LENGTH] = 0
    decoder = HFDecoder(model, vocab_size=VOCAB)
    accepted_B, found_BT, logp_BT = decoder.follow(prompts, drafts, choose)
    assert accepted_B.tolist() == accepted
    for b, n in enumerate(accepted):
        assert found_BT[b, : n + 1].tolist() == token_BT[b, : n + 1].tolist()
        expected = law_BTV[b, : n + 1].gather(-1, token_BT[b, : n + 1, None])[:, 0]
        torch.testing.assert_close(logp_BT[b, : n + 1], expected, rtol=0, atol=LOGP_TOLERANCE)
    row_B = torch.arange(len(prompts))
    for t in range(6):
        if t == 3:  # rows leave, the longest among them
            row_B = row_B[[5, 1, 4, 0]]
            decoder.keep(torch.tensor([5, 1, 4, 0]))
        law_BV = decoder.step(token_BT[row_B, accepted_B[row_B] + t])
        torch.testing.assert_close(
            law_BV, law_BTV[row_B, accepted_B[row_B] + t + 1], rtol=0, atol=LOGP_TOLERANCE
        )


@pytest.mark.parametrize("places", [1, 3, 100])
@pytest.mark.parametrize("tile", [1, 5 * VOCAB, 1 << 22])
def test_tiles_change_nothing(monkeypatch, places, tile):
    """Fails if a tile's rows or places are not those of its laws, or a row that stays on its draft is dropped."""
    model, prompts = make_model(seed=3), make_prompts(UNEVEN, seed=3)
    token_BT, _ = decoded(model, prompts, greedy, LENGTH + 1)
    drafts, accepted = spoilt(token_BT)
    monkeypatch.setattr(hf, "_TILE", tile)
    monkeypatch.setattr(hf, "_FIRST_PLACES", places)
    sizes = []

    def choose(logp_nV, row_n, t_n):
        sizes.append(len(logp_nV))
        assert len(row_n) == len(t_n) == len(logp_nV)
        return greedy(logp_nV, row_n, t_n)

    accepted_B, found_BT, _ = HFDecoder(model, vocab_size=VOCAB).follow(prompts, drafts, choose)
    assert accepted_B.tolist() == accepted
    assert max(sizes) <= max(1, tile // VOCAB)
    for b, n in enumerate(accepted):
        assert found_BT[b, : n + 1].tolist() == token_BT[b, : n + 1].tolist()
    if places == 1:
        assert sum(sizes) < sum(map(len, drafts)), "rows that have left their draft need no more laws"


def test_a_draft_ends_with_the_context():
    """A draft longer than the model's context is cut; decoding up to the end of the context is plain decoding."""
    model, prompts = make_model("gpt2", seed=4), make_prompts((3, 50), seed=4)
    token_BT, _ = decoded(model, prompts, greedy, 14)
    drafts = [token_BT[0].tolist(), [*token_BT[1].tolist(), *range(20)]]
    decoder = HFDecoder(model, vocab_size=VOCAB)
    accepted_B, found_BT, _ = decoder.follow(prompts, drafts, greedy)
    assert accepted_B.tolist() == [14, 14]
    assert found_BT[1, :14].tolist() == token_BT[1].tolist()


def test_all_drafts_empty():
    """Then it is `start`, with the first token chosen."""
    model, prompts = make_model(seed=5), make_prompts((2, 5), seed=5)
    token_BT, law_BTV = decoded(model, prompts, greedy, 3)
    decoder = HFDecoder(model, vocab_size=VOCAB)
    accepted_B, found_BT, logp_BT = decoder.follow(prompts, [(), ()], greedy)
    assert accepted_B.tolist() == [0, 0]
    assert found_BT.tolist() == token_BT[:, :1].tolist()
    assert logp_BT.shape == (2, 1)
    torch.testing.assert_close(decoder.step(found_BT[:, 0]), law_BTV[:, 1], rtol=0, atol=LOGP_TOLERANCE)
