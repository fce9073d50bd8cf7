"""The transformers decoder: the model's own law, whatever the padding and whoever else is in the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Lfm2Config

from small import (
    FAMILIES,
    LOGP_TOLERANCE,
    VOCAB,
    as_trajectories,
    make_model,
    make_prompts,
    respond,
)
from understudy.errors import DataError, ModelError
from understudy.experts.local import LocalExpert
from understudy.methods import METHODS
from understudy.objectives.estimators import single_label_forward_kl
from understudy.records import Prompt
from understudy.rollouts import hf
from understudy.rollouts.cache import GrowingCache
from understudy.rollouts.hf import HFDecoder, evaluating
from understudy.rollouts.sampler import Limits, sample
from understudy.trainer.collate import collate
from understudy.trainer.loss import gate_of, label, position_values

LIMITS = Limits(max_new_tokens=10, eos_ids=frozenset({3, 5, 11, 17}))
UNEVEN = (4, 1, 9, 6, 2, 9, 3)
CPU = torch.device("cpu")
families = pytest.mark.parametrize("family", FAMILIES)


def closely(found, expected) -> None:
    assert [r.token_ids for r in found] == [r.token_ids for r in expected]
    assert [r.finish for r in found] == [r.finish for r in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.logp == pytest.approx(b.logp, abs=LOGP_TOLERANCE)


@torch.no_grad()
def laws_alone(model, prefixes):
    """The law after each prefix: one forward of one row without cache, filling or mask."""
    return torch.cat(
        [model(torch.tensor([p]), use_cache=False).logits[:, -1].log_softmax(-1) for p in prefixes]
    )


@families
def test_greedy_is_generate(family):
    """Token for token `model.generate(do_sample=False)`, one prompt at a time and without padding.

    Fails if positions, masks, the cache or the order of its rows are off by anything.
    """
    model = make_model(family, seed=1)
    prompts = make_prompts(UNEVEN, seed=1)
    ours = respond(model, prompts, limits=LIMITS, temperature=0.0)
    assert {r.finish for r in ours} == {"eos", "length"}, "the case must have rows that leave early"
    for prompt, response in zip(prompts, ours, strict=True):
        theirs = model.generate(  # pyright: ignore[reportCallIssue]
            torch.tensor([prompt.token_ids]),
            attention_mask=torch.ones(1, len(prompt.token_ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=LIMITS.max_new_tokens,
            eos_token_id=sorted(LIMITS.eos_ids),
            pad_token_id=0,
        )
        assert response.token_ids == tuple(theirs[0, len(prompt.token_ids) :].tolist())  # pyright: ignore


@pytest.mark.parametrize(
    ("family", "attention", "least"),
    [
        *((f, "sdpa", 1) for f in FAMILIES),
        ("llama", "eager", 1),
        ("mistral", "eager", 1),
        ("gemma3", "sdpa", 256),
    ],
)
def test_laws_do_not_know_of_the_filling(monkeypatch, family, attention, least):
    """Every law of a batch of uneven prompts, also after rows have left, is that of the same prefix alone, read without a cache.

    Prompts are read in four pieces (`least` 1), and all at once.

    Fails if a position counts the filling, a mask or a window lets a row see it (or hides too much), or rows are
    mixed up where they are moved.
    """
    monkeypatch.setattr(hf, "_MASK_AHEAD", 2)
    monkeypatch.setattr(hf, "MIN_PIECE_TOKENS_CPU", least)
    model, prompts = make_model(family, seed=2), make_prompts(UNEVEN, seed=2)
    if attention != model.config._attn_implementation and family not in ("falcon", "bloom"):
        model.set_attn_implementation(attention)
    rng = np.random.default_rng(0)
    prefixes = [list(p.token_ids) for p in prompts]
    decoder = HFDecoder(model, vocab_size=VOCAB)
    law_BV = decoder.start(prompts)
    for t in range(12):
        torch.testing.assert_close(law_BV, laws_alone(model, prefixes), rtol=0, atol=LOGP_TOLERANCE)
        if t in (3, 6):
            kept = [4, 2, 0, 6, 3] if t == 3 else [3, 1]
            decoder.keep(torch.tensor(kept))
            prefixes = [prefixes[i] for i in kept]
        token_B = torch.from_numpy(rng.integers(0, VOCAB, len(prefixes)))
        for prefix, token in zip(prefixes, token_B.tolist(), strict=True):
            prefix.append(token)
        law_BV = decoder.step(token_B)


def what_is_read(model) -> list[tuple[int, ...]]:
    """The shapes of what goes through the model from now on."""
    read = []
    model.get_input_embeddings().register_forward_hook(
        lambda _, given, __: read.append(tuple(given[0].shape))
    )
    return read


def test_prompts_of_like_length_are_read_together(monkeypatch):
    """A long tail: three quarters would be padding in one pass. Fails if equal prompts are read twice, too."""
    monkeypatch.setattr(hf, "MIN_PIECE_TOKENS_CPU", 40)
    model = make_model(seed=8)
    prompts = make_prompts((5, 60, 6, 5, 6, 5, 5, 5, 5, 6, 55, 5), seed=8)
    read = what_is_read(model)
    law_BV = HFDecoder(model, vocab_size=VOCAB).start([*prompts, *prompts])
    assert sorted(read) == [(1, 55), (1, 60), (10, 6)]
    expected_BV = laws_alone(model, [p.token_ids for p in prompts])
    torch.testing.assert_close(law_BV, expected_BV.repeat(2, 1), rtol=0, atol=LOGP_TOLERANCE)


def test_equal_prompts_are_read_once():
    model, prompts = make_model(seed=8), make_prompts((4, 2), seed=8)
    read = what_is_read(model)
    decoder = HFDecoder(model, vocab_size=VOCAB)
    law_BV = decoder.start([prompts[i] for i in (0, 1, 0, 0, 1)])
    assert read == [(2, 4)]
    prefixes = [list(prompts[i].token_ids) for i in (0, 1, 0, 0, 1)]
    torch.testing.assert_close(law_BV, laws_alone(model, prefixes), rtol=0, atol=LOGP_TOLERANCE)
    for b, prefix in enumerate(prefixes):
        prefix.append(b)
    law_BV = decoder.step(torch.arange(5))
    torch.testing.assert_close(law_BV, laws_alone(model, prefixes), rtol=0, atol=LOGP_TOLERANCE)


@families
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_trajectory_does_not_depend_on_its_batch(family, temperature):
    """Alone, among others, in another order, among many that finish at once: the same tokens.

    Fails if random numbers go by slot, if `keep` mixes up rows, or if a finished neighbour moves a row.
    """
    model, prompts = make_model(family, seed=3), make_prompts(UNEVEN, seed=3)

    def answers(given):
        return respond(model, given, limits=LIMITS, temperature=temperature)

    together = answers(prompts)
    lengths = [len(r.token_ids) for r in together]
    assert len(set(lengths)) > 1, "the case must have rows that leave at different times"
    closely([answers([p])[0] for p in prompts], together)
    order = [3, 0, 5, 1, 6, 4, 2]
    closely(answers([prompts[i] for i in order]), [together[i] for i in order])
    longest, shortest = lengths.index(max(lengths)), lengths.index(min(lengths))
    crowd = [Prompt(id=prompts[shortest].id, token_ids=prompts[shortest].token_ids)] * 7
    closely(answers([*crowd, prompts[longest]])[-1:], [together[longest]])


@families
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_log_probs_are_those_of_a_rescore(family, temperature):
    """Stored log-probs = those of the trainer's own forward pass = those of the same model as an expert = those of
    the model's own logits, unpadded; at temperature 1 whatever the draw's temperature.

    Fails if the head (soft cap, scale), the shift by one or the temperature differ between rollout and loss.
    """
    model, prompts = make_model(family, seed=4), make_prompts(UNEVEN, seed=4)
    responses = respond(model, prompts, limits=LIMITS, temperature=temperature)
    batch = collate(as_trajectories(prompts, responses), CPU)
    gate_BT = gate_of(METHODS["opd-f"], batch)
    labels = label(batch, gate_BT, METHODS["sft"].objective(), None, seed=0)
    losses = {"x": single_label_forward_kl}
    stored_N = torch.tensor([x for r in responses for x in r.logp], dtype=torch.float64)
    rescored_N = -position_values(model, VOCAB, batch, labels, losses)["x"].double()
    torch.testing.assert_close(rescored_N, stored_N, rtol=0, atol=LOGP_TOLERANCE)
    law = LocalExpert(model, VOCAB).law(batch, gate_BT)
    assert labels.token_N is not None
    by_expert_N = law.logp(0, law.num_rows).gather(-1, labels.token_N[:, None])[:, 0]
    torch.testing.assert_close(by_expert_N.double(), stored_N, rtol=0, atol=LOGP_TOLERANCE)
    for p, r in zip(prompts, responses, strict=True):
        with torch.no_grad():
            own = model(torch.tensor([p.token_ids + r.token_ids])).logits[0].log_softmax(-1)
        own_logp = [own[len(p.token_ids) + t - 1, token].item() for t, token in enumerate(r.token_ids)]
        assert r.logp == pytest.approx(own_logp, abs=LOGP_TOLERANCE)


def test_a_decoder_speaks_for_the_weights_as_they_are():
    """Fails if weights or head are copied when the decoder's source is made (stale rollouts)."""
    model, prompts = make_model(seed=5), make_prompts((3, 3))
    before = HFDecoder(model, vocab_size=VOCAB).start(prompts)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    after = HFDecoder(model, vocab_size=VOCAB).start(prompts)
    expected = model(torch.tensor([p.token_ids for p in prompts])).logits[:, -1].log_softmax(-1)
    torch.testing.assert_close(after, expected, rtol=0, atol=LOGP_TOLERANCE)
    assert (after - before).abs().max() > 0.1


def test_padding_rows_of_the_head_are_never_emitted():
    """A head with more rows than the tokenizer has ids: the law is over the ids alone and sums to 1."""
    model, prompts = make_model(seed=6), make_prompts((3, 5), vocab=20)
    law_BV = HFDecoder(model, vocab_size=20).start(prompts)
    assert law_BV.shape == (2, 20)
    torch.testing.assert_close(law_BV.exp().sum(-1), torch.ones(2))


def test_a_decoder_in_half_precision():
    """Weights in bfloat16, and float32 weights under autocast: laws near those of the same model alone."""
    prompts = make_prompts(UNEVEN, seed=7)
    prefixes = [[*p.token_ids, 1] for p in prompts]
    for as_weights in (True, False):
        model = make_model(seed=7)
        if as_weights:
            model.bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=not as_weights):
            decoder = HFDecoder(model, vocab_size=VOCAB)
            decoder.start(prompts)
            law_BV = decoder.step(torch.ones(len(prompts), dtype=torch.long))
            expected = laws_alone(model, prefixes)
        assert law_BV.dtype == torch.float32
        torch.testing.assert_close(law_BV, expected.float(), rtol=0, atol=0.15)
    with torch.autocast("cpu", torch.bfloat16):
        exact = HFDecoder(model, vocab_size=VOCAB, ignores_autocast=True).start(prompts)
    expected = laws_alone(model, [list(p.token_ids) for p in prompts])
    torch.testing.assert_close(exact, expected, rtol=0, atol=LOGP_TOLERANCE)


def test_a_model_that_keeps_more_than_keys_is_named():
    config = Lfm2Config(num_hidden_layers=2, layer_types=["conv", "full_attention"])
    with pytest.raises(ModelError, match=r"lfm2 models keep more than keys and values"):
        GrowingCache(config)


def test_a_prompt_as_long_as_the_context_is_named():
    model = make_model("gpt2")
    prompts = [Prompt(id="short", token_ids=(1,)), Prompt(id="endless", token_ids=(1,) * 64)]
    with pytest.raises(DataError, match=r"prompt endless has 64 tokens .* context holds 64"):
        HFDecoder(model, vocab_size=VOCAB).start(prompts)


def test_a_response_ends_with_the_context():
    """The last position can be used and the one after it is refused by name, though the longest row came second."""
    model, prompts = make_model("gpt2"), make_prompts((60, 62))
    decoder = HFDecoder(model, vocab_size=VOCAB)
    decoder.start(prompts)
    token_B = torch.zeros(2, dtype=torch.long)
    for _ in range(2):
        decoder.step(token_B)
    with pytest.raises(DataError, match=r"does not fit the model's context of 64 positions"):
        decoder.step(token_B)
    decoder.keep(torch.tensor([0]))
    decoder.step(token_B[:1])


def test_only_who_still_writes_needs_a_position():
    """A prompt near the end of the context that ends at once does not end those beside it, nor does it stay in their way."""
    model = make_model("gpt2", seed=12)
    (long,), short = make_prompts((58,), seed=1), make_prompts((1, 2, 1, 2, 1), seed=2)
    ends = respond(model, [long], limits=Limits(max_new_tokens=1), temperature=0.0)[0].token_ids
    limits = Limits(max_new_tokens=20, eos_ids=frozenset(ends))
    alone = respond(model, short, limits=limits, temperature=0.0)
    assert [len(r.token_ids) for r in alone] == [20] * 5
    decoder = HFDecoder(model, vocab_size=VOCAB)
    widths, forward = [], decoder._forward

    def seen(token_BT, mask, position_BT, cache):
        hidden_BTD = forward(token_BT, mask, position_BT, cache)
        widths.append(cache.own_layers[0].num_columns)
        return hidden_BTD

    decoder._forward = seen
    together = sample(
        [short[0], long, *short[1:]],
        limits=limits,
        uniform_BT=np.zeros((6, 20)),
        student=decoder,
        temperature=0.0,
    )
    assert together[1].token_ids == ends
    closely([together[0], *together[2:]], alone)
    assert max(widths[1:]) == 21, "the columns of a row that has ended are dropped"
    open_end = Limits(max_new_tokens=20)
    with pytest.raises(DataError, match=r"does not fit the model's context of 64 positions"):
        respond(model, [short[0], long], limits=open_end, temperature=0.0)


def test_who_has_ended_leaves_before_its_context_does():
    """Among many, when its leaving saves little: it would be in the way of nobody, but for the last position."""
    model = make_model("gpt2", seed=12)
    (long,), others = make_prompts((60,), seed=1), make_prompts((50,) * 19, seed=2)
    ends = respond(model, [long], limits=Limits(max_new_tokens=1), temperature=0.0)[0].token_ids
    limits = Limits(max_new_tokens=10, eos_ids=frozenset(ends))
    alone = respond(model, others, limits=limits, temperature=0.0)
    assert max(len(r.token_ids) for r in alone) == 10
    together = respond(model, [*others[:7], long, *others[7:]], limits=limits, temperature=0.0)
    assert together[7].token_ids == ends
    closely([*together[:7], *together[8:]], alone)


def test_laws_are_as_precise_as_the_model():
    model = make_model(seed=6).double()
    prompts = make_prompts((3, 5))
    law_BV = HFDecoder(model, vocab_size=VOCAB).start(prompts)
    assert law_BV.dtype == torch.float64
    torch.testing.assert_close(law_BV, laws_alone(model, [p.token_ids for p in prompts]), rtol=0, atol=1e-12)


def test_dropout_is_off_inside_and_the_mode_comes_back():
    model = make_model()
    model.train()
    modes = []

    def fail_inside():
        with evaluating(model):
            modes.append(model.training)
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert modes == [False]
    assert model.training
