"""Noise laws by hand, and the one claim everything rests on: labels on given prefixes and the expert's own writing
follow the same law, derailed prefixes included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from small import LOGP_TOLERANCE, as_trajectories, make_model, make_prompts
from understudy.errors import ConfigError
from understudy.experts.expert import Expert, OracleExpert
from understudy.experts.local import LocalExpert
from understudy.experts.noisy import (
    Absorbing,
    Additive,
    CorruptedArgmax,
    Noise,
    NoisyExpert,
    Temperature,
    build_noise,
)
from understudy.randomness import uniforms
from understudy.records import Prompt
from understudy.rollouts.sampler import Limits, Response, sample
from understudy.schema import AbsorbingNoise, AdditiveNoise, CorruptedArgmaxNoise, TemperatureNoise
from understudy.tasks.modular_addition import ModularAddition
from understudy.trainer.collate import collate

CPU = torch.device("cpu")
ACTIONS = (0, 1, 2, 3)
CLEAN = [0.5, 0.3, 0.1, 0.06, 0.04]
"""The last token is no action."""
SURE = [0.0, 0.0, 1.0, 0.0, 0.0]


def applied(noise: Noise, row: Sequence[float], *, derailed: bool = False) -> list[float]:
    logp_nV = torch.tensor([row], dtype=torch.float64).log()
    found = noise.apply(logp_nV, torch.tensor([derailed]) if noise.needs_history else None)
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-12)
    return found[0].exp().tolist()


def test_additive_by_hand():
    """(1 - eta) q + eta / 4 on the actions; nothing is added elsewhere."""
    assert applied(Additive(0.2, ACTIONS), CLEAN) == pytest.approx([0.45, 0.29, 0.13, 0.098, 0.032])
    assert applied(Additive(0.2, ACTIONS), SURE) == pytest.approx([0.05, 0.05, 0.85, 0.05, 0])


def test_corrupted_argmax_by_hand():
    """(1 - eta) q + eta / 3 on the actions that are not the argmax: the wrong-token rate of a sure expert is eta."""
    third = 0.2 / 3
    expected = [0.4, 0.24 + third, 0.08 + third, 0.048 + third, 0.032]
    assert applied(CorruptedArgmax(0.2, ACTIONS), CLEAN) == pytest.approx(expected)
    assert applied(CorruptedArgmax(0.2, ACTIONS), SURE) == pytest.approx([third, third, 0.8, third, 0])


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_temperature_by_hand(temperature):
    powered = [q ** (1 / temperature) for q in CLEAN]
    expected = [x / math.fsum(powered) for x in powered]
    assert applied(Temperature(temperature), CLEAN) == pytest.approx(expected)
    assert applied(Temperature(temperature), SURE) == pytest.approx(SURE)


@pytest.mark.parametrize("before", [Additive(0.2, ACTIONS), CorruptedArgmax(0.2, ACTIONS)])
def test_absorbing_by_hand(before):
    noise = Absorbing(before)
    assert applied(noise, CLEAN) == applied(before, CLEAN)
    assert applied(noise, CLEAN, derailed=True) == pytest.approx([0.25, 0.25, 0.25, 0.25, 0])
    assert applied(noise, SURE, derailed=True) == pytest.approx([0.25, 0.25, 0.25, 0.25, 0])


@pytest.mark.parametrize(
    "noise",
    [
        Additive(0.0, ACTIONS),
        CorruptedArgmax(0.0, ACTIONS),
        Temperature(1.0),
        Absorbing(Additive(0.0, ACTIONS)),
    ],
)
def test_no_noise_is_the_clean_expert(noise):
    for row in (CLEAN, SURE):
        assert applied(noise, row) == pytest.approx(row, abs=1e-12)


@pytest.mark.parametrize("kind", [Additive, CorruptedArgmax])
@pytest.mark.parametrize("eta", [0.0, 0.2, 0.6])
def test_the_channel_is_the_noise(kind, eta):
    """What a noise-aware loss knows, pushed through a clean and sure expert, is what the expert's labels follow.

    Fails if the channel's rate or its support differ from the noise: the optimum would not be the clean expert.
    """
    noise = kind(eta, ACTIONS)
    channel = noise.channel(5)
    assert channel is not None
    for right in ACTIONS:
        row = [float(v == right) for v in range(5)]
        pushed = channel.push(torch.tensor([row], dtype=torch.float64).log()).exp()[0].tolist()
        assert pushed == pytest.approx(applied(noise, row), abs=1e-12)
    absorbing = Absorbing(noise).channel(5)
    assert absorbing is not None
    assert (absorbing.eta, absorbing.nu_V.tolist()) == (channel.eta, channel.nu_V.tolist())
    assert Temperature(2.0).channel(5) is None


def test_the_additive_channel_is_the_noise_on_any_law():
    noise = Additive(0.3, ACTIONS)
    channel = noise.channel(5)
    assert channel is not None
    pushed = channel.push(torch.tensor([CLEAN], dtype=torch.float64).log()).exp()[0].tolist()
    assert pushed == pytest.approx(applied(noise, CLEAN), abs=1e-12)


def test_recipes_build_the_laws_they_name():
    found = [
        build_noise(config, ACTIONS)
        for config in (
            AdditiveNoise(law="additive", eta=0.1),
            CorruptedArgmaxNoise(law="corrupted-argmax", eta=0.1),
            TemperatureNoise(law="temperature", temperature=3.0),
            AbsorbingNoise(law="absorbing", eta=0.1),
            AbsorbingNoise(law="absorbing", eta=0.1, error="other"),
        )
    ]
    assert found == [
        Additive(0.1, ACTIONS),
        CorruptedArgmax(0.1, ACTIONS),
        Temperature(3.0),
        Absorbing(Additive(0.1, ACTIONS)),
        Absorbing(CorruptedArgmax(0.1, ACTIONS)),
    ]


def test_rates_that_are_none_are_refused():
    with pytest.raises(ConfigError, match=r"eta must be in \[0, 1\), got 1\.0"):
        AdditiveNoise(law="additive", eta=1.0)
    with pytest.raises(ConfigError, match=r"temperature must be > 0, got 0\.0"):
        TemperatureNoise(law="temperature", temperature=0.0)


# --- labels and writing follow one law ------------------------------------------------------------------------------------

TASK = ModularAddition(modulus=5, length=7)
NOISES = {
    "clean": None,
    "additive": Additive(0.3, tuple(range(5))),
    "corrupted": CorruptedArgmax(0.3, tuple(range(5))),
    "temperature": Temperature(2.0),
    "absorbing": Absorbing(CorruptedArgmax(0.3, tuple(range(5)))),
}


def expert_and_prompts(kind: str, noise: str) -> tuple[Expert, list[Prompt]]:
    if kind == "oracle":
        clean: Expert = OracleExpert(TASK.oracle(), "oracle")
        prompts = TASK.prompts("train", 0, 12)
    else:
        clean = LocalExpert(make_model("llama", seed=30, vocab=6), 6, identity="local")
        prompts = make_prompts((3, 6, 2, 5, 3, 8, 4, 2, 7, 3, 3, 5), vocab=6, seed=31)
    law = NOISES[noise]
    return (clean if law is None else NoisyExpert(clean, law)), prompts


def written_by(expert: Expert, prompts: Sequence[Prompt], eos: frozenset[int]) -> list[Response]:
    return sample(
        prompts,
        limits=Limits(max_new_tokens=7, eos_ids=eos),
        uniform_BT=uniforms([("w", p.id) for p in prompts], 7),
        expert=expert.decoder(),
    )


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("kind", ["oracle", "local"])
def test_labels_and_writing_follow_one_law(kind, noise):
    """At every position of what the expert wrote itself, with rows leaving along the way: the stored log-prob of
    the token is that of the label law at this prefix.

    Fails if the two differ by a position, if `keep` mixes up rows or forgets who is derailed, or if an error
    counts one position too early or too late.
    """
    expert, prompts = expert_and_prompts(kind, noise)
    responses = written_by(expert, prompts, frozenset({1}))
    assert len({len(r.token_ids) for r in responses}) > 2
    batch = collate(as_trajectories(prompts, responses), CPU)
    gate_BT = batch.is_response_BT
    law = expert.law(batch, gate_BT)
    logp_NV = law.logp(0, law.num_rows)
    torch.testing.assert_close(logp_NV.exp().sum(-1), torch.ones(len(logp_NV)), rtol=0, atol=1e-5)
    found_N = logp_NV.gather(-1, batch.token_BT[gate_BT][:, None])[:, 0]
    stored_N = torch.tensor([x for r in responses for x in r.logp])
    torch.testing.assert_close(found_N, stored_N, rtol=0, atol=LOGP_TOLERANCE)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("kind", ["oracle", "local"])
def test_whole_laws_agree_step_by_step_after_keep(kind, noise):
    """The decoder fed with given tokens (a student's, errors included), half of its rows dropped and the rest put
    in another order: all laws, not only the tokens', are the label laws."""
    expert, prompts = expert_and_prompts(kind, noise)
    tokens_BT = np.random.default_rng(3).integers(0, 5, (len(prompts), 5))
    responses = [Response(tuple(row), (True,) * 5, (0.0,) * 5, "length") for row in tokens_BT.tolist()]
    batch = collate(as_trajectories(prompts, responses), CPU)
    law = expert.law(batch, batch.is_response_BT)
    expected_BTV = law.logp(0, law.num_rows).reshape(len(prompts), 5, -1)
    decoder = expert.decoder()
    kept = torch.arange(len(prompts))
    found_BV = decoder.start(prompts)
    for t in range(5):
        torch.testing.assert_close(found_BV.exp(), expected_BTV[kept, t].exp(), rtol=0, atol=LOGP_TOLERANCE)
        if t == 2:
            chosen = torch.tensor([9, 2, 5, 0, 7, 3])
            decoder.keep(chosen)
            kept = kept[chosen]
        if t < 4:
            found_BV = decoder.step(torch.from_numpy(tokens_BT)[kept, t])


def test_a_partial_gate_selects_rows_of_the_whole_law():
    """Gating every other token (a mixture's student tokens) gives the same laws there: an ungated error still
    derails. Fails if derailment is judged on gated positions alone."""
    for noise in NOISES:
        expert, prompts = expert_and_prompts("oracle", noise)
        responses = written_by(expert, prompts, frozenset())
        batch = collate(as_trajectories(prompts, responses), CPU)
        whole = expert.law(batch, batch.is_response_BT)
        gate_BT = batch.is_response_BT & (torch.arange(batch.token_BT.shape[1]) % 2 == 0)
        part = expert.law(batch, gate_BT)
        expected = whole.logp(0, whole.num_rows)[gate_BT[batch.is_response_BT]]
        torch.testing.assert_close(part.logp(0, part.num_rows), expected, rtol=0, atol=0)


@pytest.mark.parametrize("wrong_at", range(6))
def test_one_error_in_the_prefix_makes_every_later_label_uniform(wrong_at):
    """By hand, on modular addition: labels before and at the error as before, after it uniform on the digits; also
    where the later tokens follow the oracle from the wrong sum, and where the student made the error."""
    expert = NoisyExpert(OracleExpert(TASK.oracle(), "o"), Absorbing(CorruptedArgmax(0.2, tuple(range(5)))))
    (prompt,) = TASK.prompts("train", 3, 1)
    assert prompt.reference_ids is not None
    tokens = [(s + (t >= wrong_at)) % 5 for t, s in enumerate(prompt.reference_ids)]
    response = Response(tuple(tokens), (True,) * 7, (0.0,) * 7, "length")
    batch = collate(as_trajectories([prompt], [response]), CPU)
    law = expert.law(batch, batch.is_response_BT)
    for t, prob_V in enumerate(law.logp(0, 7).exp()):
        right = prompt.reference_ids[t]
        clean = [0.8 if v == right else 0.05 if v < 5 else 0.0 for v in range(6)]
        uniform = [0.2] * 5 + [0.0]
        assert prob_V.tolist() == pytest.approx(uniform if t > wrong_at else clean, abs=1e-6)


@pytest.mark.parametrize(("error", "wrong_rate"), [("other", 0.2), ("uniform", 0.2 * 4 / 5)])
def test_the_rate_of_clean_trajectories(error, wrong_rate):
    """P(all m tokens right) = (1 - eta')^m with eta' the wrong-token rate; n = 4000, five standard errors, false
    alarm 6e-7. Fails if eta is confused with eta' (.21 against .29)."""
    noise = build_noise(AbsorbingNoise(law="absorbing", eta=0.2, error=error), tuple(range(5)))
    expert = NoisyExpert(OracleExpert(TASK.oracle(), "o"), noise)
    n = 4000
    prompts = [
        replace(p, id=f"{p.id}/{i // 1000}")
        for i, p in enumerate(TASK.prompts("train", 0, 1000) * (n // 1000))
    ]
    responses = written_by(expert, prompts, frozenset())
    share = np.mean([r.token_ids == p.reference_ids for r, p in zip(responses, prompts, strict=True)])
    expected = (1 - wrong_rate) ** 7
    assert abs(share - expected) < 5 * (expected * (1 - expected) / n) ** 0.5


def test_identities_tell_laws_apart():
    """Two experts that share an identity share offline data: every setting of a law is in it."""
    clean = OracleExpert(TASK.oracle(), "oracle")
    laws = [
        *(Additive(eta, ACTIONS) for eta in (0.1, 0.2)),
        Additive(0.1, (0, 1)),
        CorruptedArgmax(0.1, ACTIONS),
        Absorbing(Additive(0.1, ACTIONS)),
        Absorbing(CorruptedArgmax(0.1, ACTIONS)),
        Temperature(2.0),
    ]
    found = [NoisyExpert(clean, law).identity for law in laws]
    assert len({*found, clean.identity}) == len(laws) + 1
