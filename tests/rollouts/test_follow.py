"""Drafts read in one forward: what is accepted, and that decoding goes on as if every token had been decoded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from small import FAMILIES, LOGP_TOLERANCE, VOCAB, make_model, make_prompts
from understudy.models import hidden_states
from understudy.objectives.estimators import inverse_cdf
from understudy.rollouts import hf
from understudy.rollouts.drafts import agreement
from understudy.rollouts.hf import HFDecoder
from understudy.rollouts.readings import Reading

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
@pytest.mark.parametrize(("how", "least"), [("greedy", 256), ("sampled", 1)])
def test_a_followed_draft_is_plain_decoding(monkeypatch, family, how, least):
    """Accepted counts, chosen tokens, their log-probs, and every law of the decoding that follows. Read at once (`least` 256)
    and in pieces.

    Fails if a law is taken one place off, acceptance goes on after a wrong token, rejected tokens stay visible (also
    through a window), a row's next position is off, or rows are mixed up.
    """
    model, prompts = make_model(family, seed=1), make_prompts(UNEVEN, seed=1)
    choose = greedy if how == "greedy" else sampled(7, len(prompts))
    token_BT, law_BTV = decoded(model, prompts, choose, LENGTH + 8)
    drafts, accepted = spoilt(token_BT)
    if token_BT[6, LENGTH] == 1:
        drafts[6][LENGTH] = 0
    monkeypatch.setattr(hf, "MIN_PIECE_TOKENS_CPU", least)
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


def shapes_read(model):
    read = []
    model.get_input_embeddings().register_forward_hook(
        lambda _, given, __: read.append(tuple(given[0].shape))
    )
    return read


def test_one_long_draft_among_many_rows(monkeypatch):
    """48 rows of four prompts, one draft of 50 tokens: it is read alone, and every prompt beside it once.

    Fails if a draft makes padding of the others, or prompts or drafts that are the same are read twice.
    """
    monkeypatch.setattr(hf, "MIN_PIECE_TOKENS_CPU", 16)
    model, four = make_model(seed=6), make_prompts((5, 6, 5, 6), seed=6)
    prompts = four * 12
    token_BT, law_BTV = decoded(model, four, greedy, 54)
    read = shapes_read(model)
    drafts = [()] * 47 + [token_BT[3, :50].tolist()]
    decoder = HFDecoder(model, vocab_size=VOCAB)
    accepted_B, found_BT, _ = decoder.follow(prompts, drafts, greedy)
    assert sorted(read) == [(1, 56), (4, 6)]
    assert accepted_B.tolist() == [0] * 47 + [50]
    law_BV = decoder.step(found_BT[torch.arange(48), accepted_B])
    expected_BV = torch.cat([law_BTV[:, 1].repeat(12, 1)[:47], law_BTV[3:, 51]])
    torch.testing.assert_close(law_BV, expected_BV, rtol=0, atol=LOGP_TOLERANCE)
    read.clear()
    twice = [token_BT[0, :9].tolist(), [7] * 9, token_BT[0, :9].tolist()]
    accepted_B, _, _ = HFDecoder(model, vocab_size=VOCAB).follow([prompts[0]] * 3, twice, greedy)
    assert read == [(2, 14)]
    assert accepted_B.tolist()[::2] == [9, 9]


def test_rows_that_read_the_same_choose_for_themselves():
    """Samples of a prompt that share a draft have numbers of their own. Fails if what is read once is chosen once."""
    model, prompts = make_model(seed=3), make_prompts((4,), seed=3) * 300
    choose = sampled(3, 300)
    token_BT, law_BTV = decoded(model, prompts, choose, 6)
    drafts = [token_BT[b % 2, :5].tolist() for b in range(300)]
    decoder = HFDecoder(model, vocab_size=VOCAB)
    accepted_B, found_BT, _ = decoder.follow(prompts, drafts, choose)
    row_B = torch.arange(300)
    assert accepted_B.tolist() == [agreement(d, t) for d, t in zip(drafts, token_BT.tolist(), strict=True)]
    assert len(set(accepted_B.tolist())) > 2
    next_B = found_BT[row_B, accepted_B]
    assert next_B.tolist() == token_BT[row_B, accepted_B].tolist()
    going = (accepted_B < 5).nonzero()[:, 0]
    law_BV = decoder.step(next_B)
    torch.testing.assert_close(
        law_BV[going], law_BTV[going, accepted_B[going] + 1], rtol=0, atol=LOGP_TOLERANCE
    )


@pytest.mark.parametrize("bad", [-1, VOCAB, VOCAB + 3, 1 << 40])
def test_a_draft_ends_before_what_is_no_token(bad):
    """References may hold anything. Fails if such an id is looked up, or what precedes it is not used."""
    model, prompts = make_model(seed=3, vocab=VOCAB + 3), make_prompts((4, 2, 3), seed=3)
    token_BT, law_BTV = decoded(model, prompts, greedy, 8)
    drafts = [[*token_BT[0, :3].tolist(), bad, 1], [bad], token_BT[2, :6].tolist()]
    decoder = HFDecoder(model, vocab_size=VOCAB)
    accepted_B, found_BT, _ = decoder.follow(prompts, drafts, greedy)
    assert accepted_B.tolist() == [3, 0, 6]
    law_BV = decoder.step(found_BT[torch.arange(3), accepted_B])
    expected_BV = law_BTV[torch.arange(3), accepted_B + 1]
    torch.testing.assert_close(law_BV, expected_BV, rtol=0, atol=LOGP_TOLERANCE)


def test_every_piece_is_a_reading(monkeypatch):
    """What is kept for training: the rows of each piece with their own hidden states, and a way back to the weights."""
    monkeypatch.setattr(hf, "MIN_PIECE_TOKENS_CPU", 1)
    model, prompts = make_model(seed=2).double(), make_prompts(UNEVEN, seed=1)
    token_BT, _ = decoded(model, prompts, greedy, LENGTH + 1)
    drafts, _ = spoilt(token_BT)
    readings: list[Reading] = []
    decoder = HFDecoder(model, vocab_size=VOCAB, readings=readings)
    decoder.follow(prompts, drafts, greedy)
    assert len(readings) > 2
    found = sorted(ids for r in readings for ids in r.row_ids)
    assert found == sorted((*p.token_ids, *d) for p, d in zip(prompts, drafts, strict=True))
    weights = list(model.parameters())
    for reading in readings:
        for ids, hidden_TD in zip(reading.row_ids, reading.hidden_BTD, strict=True):
            expected_TD = hidden_states(model, torch.tensor([ids]))[0]
            torch.testing.assert_close(hidden_TD[: len(ids)], expected_TD, rtol=0, atol=1e-9)
            made, expected = (
                torch.autograd.grad(h[: len(ids)].sin().sum(), weights, retain_graph=True, allow_unused=True)
                for h in (hidden_TD, expected_TD)
            )
            for a, b in zip(made[:-1], expected[:-1], strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


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
