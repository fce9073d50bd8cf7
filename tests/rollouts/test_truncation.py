"""Top-k and top-p in evaluation: what is kept against plain Python, draws against the enumerated law, drafts included."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from small import VOCAB, make_model, make_prompts
from understudy.randomness import uniforms
from understudy.records import Prompt
from understudy.rollouts.draws import Truncation, draw, truncated
from understudy.rollouts.hf import HFDecoder
from understudy.rollouts.sampler import Limits, sample


def oracle(probs: list[float], k: int | None, p: float | None) -> set[int]:
    """The tokens that may be drawn, by the definition; equal ones in the order of their ids."""
    ordered = sorted(range(len(probs)), key=lambda v: (-probs[v], v))
    kept = ordered[:k]
    if p is not None:
        total, mass, few = math.fsum(probs[v] for v in kept), 0.0, []
        for v in kept:
            few.append(v)
            mass += probs[v] / total
            if mass >= p:
                break
        kept = few
    return set(kept)


weights = st.lists(st.integers(0, 9), min_size=2, max_size=7).filter(any)


@settings(deadline=None)
@given(weights, st.none() | st.integers(1, 8), st.none() | st.sampled_from([0.05, 0.33, 0.71, 0.999, 1.0]))
def test_what_is_kept(row, k, p):
    probs = [w / sum(row) for w in row]
    # A share that falls exactly on p is decided by rounding: not asked here.
    ordered = sorted(probs, reverse=True)[:k]
    sums = np.cumsum(ordered) / sum(ordered)
    if p is not None and p < 1 and np.abs(sums - p).min() < 1e-6:
        return
    logp = torch.tensor([probs], dtype=torch.float64).log()
    kept = truncated(logp, Truncation(top_k=k, top_p=p))
    expected = {v for v in oracle(probs, k, p) if probs[v] > 0}
    assert set(kept[0].isfinite().nonzero()[:, 0].tolist()) == expected
    assert torch.equal(kept[kept.isfinite()], logp[kept.isfinite()])


def test_by_hand():
    logp = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]]).log()

    def kept(**settings) -> list[list[int]]:
        return [row.isfinite().nonzero()[:, 0].tolist() for row in truncated(logp, Truncation(**settings))]

    assert kept(top_k=2) == [[1, 3], [0, 1]]  # exactly two, the lower ids of four that are equal
    assert kept(top_p=0.6) == [[1, 3], [0, 1, 2]]
    # of the two likeliest the first holds 4/7, of two equal ones half
    assert kept(top_k=2, top_p=0.55) == [[1], [0, 1]]
    assert kept(top_p=0.5) == [[1, 3], [0, 1]]  # two quarters are a half: enough
    assert kept(top_p=1e-9) == [[1], [0]]
    assert kept(top_k=99, top_p=1.0) == [[0, 1, 2, 3]] * 2


def test_of_many_equal_tokens_the_lowest_ids_are_kept():
    kept = truncated(torch.zeros(1, 5000), Truncation(top_k=10))
    assert kept[0].isfinite().nonzero()[:, 0].tolist() == list(range(10))


def test_temperature_comes_first():
    """At T = 1/2 the law 0.5, 0.3, 0.2 is 25 : 9 : 4: its first token holds 0.658 of it, enough for top_p = 0.6 alone."""
    logp = torch.tensor([[0.5, 0.3, 0.2]]).log().expand(1000, 3)
    uniform = torch.from_numpy(np.random.default_rng(0).random(1000))
    cold = draw(logp, uniform, 0.5, truncation=Truncation(top_p=0.6))
    assert cold.unique().tolist() == [0]
    assert draw(logp, uniform, 1.0, truncation=Truncation(top_p=0.6)).unique().tolist() == [0, 1]


@pytest.mark.parametrize("is_coupled", [False, True])
def test_draws_follow_the_truncated_law(is_coupled):
    """Chi-square over 20,000 draws; it fails by chance with probability 1e-6."""
    probs = np.array([0.05, 0.4, 0.15, 0.3, 0.1])
    kept = np.array([0, 0.4, 0.15, 0.3, 0])
    logp = torch.from_numpy(np.log(probs)).expand(20000, 5)
    uniform = torch.from_numpy(np.random.default_rng(1).random(20000))
    tokens = draw(logp, uniform, 1.0, is_coupled=is_coupled, truncation=Truncation(top_k=4, top_p=0.85))
    counts = np.bincount(tokens.numpy(), minlength=5)
    assert counts[kept == 0].sum() == 0
    expected = 20000 * kept[kept > 0] / kept.sum()
    assert stats.chisquare(counts[kept > 0], expected).pvalue > 1e-6


LENGTH = 2
TRUNCATION = Truncation(top_k=3, top_p=0.8)


def truncated_law(model, prompt: Prompt, temperature: float) -> dict[tuple[int, ...], float]:
    """The law of two tokens, by one plain forward pass of the model a prefix and the rule in Python."""

    def law(prefix: tuple[int, ...]) -> dict[int, float]:
        with torch.no_grad():
            logits: Tensor = model(torch.tensor([[*prompt.token_ids, *prefix]])).logits[0, -1]
        probs = (logits.double() / temperature).softmax(-1).tolist()
        kept = oracle(probs, TRUNCATION.top_k, TRUNCATION.top_p)
        total = math.fsum(probs[v] for v in kept)
        return {v: probs[v] / total for v in kept}

    return {(a, b): p * q for a, p in law(()).items() for b, q in law((a,)).items()}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("drafted", ["none", "one", "random"])
def test_responses_follow_the_law_that_is_truncated_at_every_step(drafted, temperature):
    """Chi-square of 6,000 responses against the enumerated law of both tokens, whatever drafts were offered: the one
    likeliest response to all, or anything at all. Each of six cases fails by chance with probability 1e-6."""
    model, count = make_model(seed=4), 6000
    prompt = make_prompts([5], seed=2)[0]
    expected = truncated_law(model, prompt, temperature)
    rng = np.random.default_rng(9)
    likeliest = max(expected, key=lambda pair: expected[pair])
    drafts = {
        "none": [()] * count,
        "one": [likeliest] * count,
        "random": [tuple(rng.integers(0, VOCAB, LENGTH).tolist()) for _ in range(count)],
    }[drafted]
    responses = sample(
        [prompt] * count,
        limits=Limits(max_new_tokens=LENGTH),
        uniform_BT=uniforms([("truncated", drafted, i) for i in range(count)], LENGTH),
        student=HFDecoder(model, vocab_size=VOCAB),
        temperature=temperature,
        drafts=drafts,
        truncation=TRUNCATION,
    )
    counts = dict.fromkeys(expected, 0)
    for response in responses:
        counts[response.token_ids] += 1  # a KeyError is a token that the law does not hold
    kept = [pair for pair in expected if expected[pair] * count >= 5]
    observed = [counts[pair] for pair in kept]
    shares = np.array([expected[pair] for pair in kept])
    rest = count - sum(observed)
    if rest or shares.sum() < 1 - 1e-9:
        observed, shares = [*observed, rest], np.array([*shares, 1 - shares.sum()])
    assert len(kept) >= 4
    assert stats.chisquare(observed, shares * count).pvalue > 1e-6


def test_drafts_change_no_token_and_logp_is_of_the_whole_law():
    model, prompts = make_model(seed=4), make_prompts([4, 6, 5, 7], seed=1)
    numbers = uniforms([("same", i) for i in range(len(prompts))], 6)

    def responses(drafts):
        return sample(
            prompts,
            limits=Limits(max_new_tokens=6),
            uniform_BT=numbers,
            student=HFDecoder(model, vocab_size=VOCAB),
            drafts=drafts,
            truncation=TRUNCATION,
        )

    plain = responses([()] * 4)
    half = [(*r.token_ids[:3], (r.token_ids[3] + 1) % VOCAB) for r in plain]
    for drafts in ([r.token_ids for r in plain], half):
        assert [r.token_ids for r in responses(drafts)] == [r.token_ids for r in plain]
    for prompt, response in itertools.islice(zip(prompts, plain, strict=True), 2):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt.token_ids, *response.token_ids]])).logits[0]
        start = len(prompt.token_ids) - 1
        whole = logits.log_softmax(-1)[start : start + 6].gather(
            -1, torch.tensor(response.token_ids)[:, None]
        )
        torch.testing.assert_close(torch.tensor(response.logp), whole[:, 0], rtol=2e-5, atol=2e-5)


def test_the_expert_is_not_truncated():
    """Where two write, only the student's tokens come from a truncated law."""
    model, prompts = make_model(seed=4), make_prompts([5], seed=2) * 300
    numbers = uniforms([("expert", i) for i in range(300)], 1)

    def tokens(by_expert: bool) -> set[int]:
        found = sample(
            prompts,
            limits=Limits(max_new_tokens=1),
            uniform_BT=numbers,
            student=HFDecoder(model, vocab_size=VOCAB),
            expert=HFDecoder(model, vocab_size=VOCAB),
            expert_writes_BT=np.full((300, 1), by_expert),
            truncation=Truncation(top_k=1),
        )
        return {r.token_ids[0] for r in found}

    assert len(tokens(False)) == 1
    assert len(tokens(True)) > 3
