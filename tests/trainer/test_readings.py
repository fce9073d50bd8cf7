"""The pass that checked the drafts is the forward pass of the loss: the same gradient, and one pass less.

The oracle is the same step without it. Steps are plain gradient descent at rate 1, as in `test_step`.
"""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_step import TASK, babble_setup, same, step_of
from transformers import AutoModelForCausalLM, MixtralConfig

from small import (
    FAMILIES,
    VOCAB,
    as_trajectories,
    make_model,
    make_parts,
    make_prompts,
    make_recipe,
    make_setup,
    respond,
)
from understudy.models import has_dropout, hidden_states
from understudy.rollouts.collect import Round, collect
from understudy.rollouts.drafts import DraftBook
from understudy.rollouts.hf import HFDecoder, evaluating
from understudy.rollouts.readings import Reading
from understudy.rollouts.sampler import Limits, Response, sample
from understudy.trainer.checkpoint import Progress
from understudy.trainer.loop import run_rounds

FINITE = replace(TASK, num_train=8)
"""The same eight prompts each round, so that drafts come of themselves."""


def drafted(s, *, wrong: int):
    """One round, written from drafts that are what will be written, but for the `wrong` prompts of longest responses."""
    with evaluating(s.model), torch.no_grad():
        plain = collect(replace(s.sources, drafts=None), s.method.prefixes, s.options, round_of(s))
        book = DraftBook()
        offered = [list(t.response_ids) for t in plain]
        by_length = sorted(plain, key=lambda t: -len(t.response_ids))
        spoilt = list(dict.fromkeys(t.prompt.id for t in by_length))[:wrong]
        for t, ids in zip(plain, offered, strict=True):
            if t.prompt.id in spoilt:
                ids[0] = (ids[0] + 1) % s.sources.task.vocab_size
        book.keep("rollout", [(t.prompt, t.sample_index) for t in plain], offered)
        fresh = collect(replace(s.sources, drafts=book), s.method.prefixes, s.options, round_of(s))
    assert [t.response_ids for t in fresh] == [t.response_ids for t in plain]
    return fresh


def readings_of(s) -> list[Reading]:
    assert s.sources.readings is not None
    return s.sources.readings


def round_of(s):
    prompts = s.recipe.train.batch_size // s.recipe.train.samples_per_prompt
    return Round(number=0, first_prompt=0, num_prompts=prompts, student_version=0)


def test_jitter_of_a_router_is_seen():
    """Mixtures of experts may shake what their router sees, in training alone, by a rate that is called no dropout."""
    shape: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    for noise in (0.0, 0.01):
        config = MixtralConfig(
            **shape, vocab_size=5, num_attention_heads=1, num_key_value_heads=1, router_jitter_noise=noise
        )
        assert has_dropout(AutoModelForCausalLM.from_config(config)) == (noise > 0)


@pytest.mark.parametrize("method", ["opd-f", "opd-r", "opd-pg", "nail-r"])
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("wrong", [0, 1])
def test_the_step_is_that_of_a_pass_made_anew(tmp_path, monkeypatch, method, samples, wrong):
    """Every draft right, and one wrong: that one is passed through anew beside the others.

    Fails if hidden states are taken from another row or place, have no graph, or a trajectory is lost or taken twice.
    """
    monkeypatch.setattr("understudy.rollouts.readings._PAYS_FROM", 0.3)  # half of these rows is padding
    s = babble_setup(tmp_path, method, train__samples_per_prompt=samples)
    fresh = drafted(s, wrong=wrong)
    assert len(readings_of(s)) == 1
    found, expected = step_of(s, fresh), step_of(s, fresh)
    same(found, expected)
    assert expected[1].read_rate == 0
    assert found[1].read_rate == 1 if wrong == 0 else 0.4 < found[1].read_rate < 1


def test_too_little_of_use_is_not_used(tmp_path):
    """The way back would lead through every row read: no gain if half of them are of no use."""
    s = babble_setup(tmp_path)
    fresh = drafted(s, wrong=5)
    assert len(readings_of(s)) == 1
    found, expected = step_of(s, fresh), step_of(s, fresh)
    assert found[1].read_rate == 0
    same(found, expected)


def test_it_goes_with_the_step(tmp_path, monkeypatch):
    """A reading is of use once and holds the graph of a whole batch: after the step nobody may hold it."""
    monkeypatch.setattr("understudy.rollouts.readings._PAYS_FROM", 0.3)
    s = babble_setup(tmp_path)
    fresh = drafted(s, wrong=0)
    hidden = weakref.ref(readings_of(s)[0].hidden_BTD)
    assert step_of(s, fresh)[1].read_rate == 1
    gc.collect()
    assert readings_of(s) == []
    assert hidden() is None


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_gradients_of_every_family(family):
    """What checking computed with its cache is what training computes without one, up to where rows were read."""
    model = make_model(family).double()
    prompts = make_prompts((4, 1, 9, 6))
    limits = Limits(max_new_tokens=8)
    responses = respond(model, prompts, limits=limits, temperature=0.0)
    readings: list[Reading] = []
    again = sample(
        prompts,
        limits=limits,
        uniform_BT=torch.zeros(4, 8).numpy(),
        student=HFDecoder(model, vocab_size=VOCAB, readings=readings),
        temperature=0.0,
        drafts=[r.token_ids for r in responses],
    )
    trajectories = as_trajectories(prompts, again)
    (reading,) = readings
    assert reading.places(trajectories) == [0, 1, 2, 3]
    for row, t in enumerate(trajectories):
        ids = torch.tensor([(*t.prompt.token_ids, *t.response_ids)[:-1]])
        expected_SD = hidden_states(model, ids)[0]
        found_SD = reading.hidden_BTD[row, : ids.shape[1]]
        torch.testing.assert_close(found_SD, expected_SD, rtol=0, atol=1e-5)
        weights = [p for p in model.parameters() if p.requires_grad]
        torch.manual_seed(row)
        direction_SD = torch.randn_like(expected_SD)
        found, expected = (
            torch.autograd.grad(h_SD, weights, direction_SD, retain_graph=True, allow_unused=True)
            for h_SD in (found_SD, expected_SD)
        )
        for a, b in zip(found, expected, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_row_is_found_by_its_tokens():
    """By every token but the last, from the first on; a row read further serves as well."""
    reading = Reading([(1, 2, 3, 4), (1, 2, 9), (1, 2)], torch.zeros(3, 4, 2))
    prompts = make_prompts((2,))
    made = [replace(prompts[0], token_ids=ids) for ids in ((1, 2), (1, 2), (1,), (1, 2, 9), (1, 2), (1,))]
    answers = [(3, 7), (9, 7), (2, 9, 9, 9), (5,), (8, 8), (2, 3, 4, 6)]
    responses = [Response(ids, (True,) * len(ids), (0.0,) * len(ids), "length") for ids in answers]
    trajectories = as_trajectories(made, responses)
    assert reading.places(trajectories) == [0, 1, None, 1, None, 0]


def test_weights_that_autocast_has_kept_get_their_gradient(tmp_path):
    """Autocast keeps the weights it has cast. If it cast them where no graph is made, training gets no gradient."""
    model = make_model("gpt2")
    prompts, limits = make_prompts((4, 3)), Limits(max_new_tokens=4)
    readings: list[Reading] = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        responses = respond(model, prompts, limits=limits, temperature=0.0)
        sample(
            prompts,
            limits=limits,
            uniform_BT=torch.zeros(2, 4).numpy(),
            student=HFDecoder(model, vocab_size=VOCAB, readings=readings),
            temperature=0.0,
            drafts=[r.token_ids for r in responses],
        )
    readings[0].hidden_BTD.float().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    "settings",
    [
        {"train__micro_batch_size": 4},
        {"train__micro_batch_tokens": 64},
        {"train__rollout_batch_size": 4},
        {"train__steps_per_round": 2},
        {"train__compile": True},
        {"rollouts__drafts": "off"},
        {"student__lora": {"rank": 2, "dropout": 0.1, "target_modules": ["q_proj"]}},
    ],
)
def test_where_training_makes_another_pass(tmp_path, settings):
    """Other weights, other dropout, another limit of memory: nothing is kept."""
    assert make_setup(make_recipe(**settings), tmp_path).sources.readings is None


@pytest.mark.parametrize(
    ("family", "layer", "name"),
    [
        ("gpt2", "transformer.h.0.attn.attn_dropout", "p"),
        ("llama", "model.layers.0.self_attn", "attention_dropout"),
    ],
)
def test_dropout_of_a_checkpoint_is_seen(tmp_path, family, layer, name):
    recipe = make_recipe(student__new__family=family)
    parts = make_parts(recipe)
    assert make_setup(recipe, tmp_path / "a", parts).sources.readings == []
    setattr(parts.student.get_submodule(layer), name, 0.1)
    assert make_setup(recipe, tmp_path / "b", parts).sources.readings is None


def test_through_the_loop(tmp_path):
    """The same weights as without, and the log says what was read. Greedy, so that drafts are soon right."""
    chosen = {"train__steps": 4, "method__name": "nail-f", "optimizer__learning_rate": 1e-3}
    runs = []
    for name in ("with", "without"):
        s = babble_setup(tmp_path / name, **chosen)
        s = replace(
            s,
            sources=replace(s.sources, task=FINITE, readings=s.sources.readings if name == "with" else None),
        )
        (tmp_path / name).mkdir(exist_ok=True)
        if name == "without":
            s = replace(
                s,
                sources=replace(
                    s.sources, student=lambda m=s.model: HFDecoder(m, vocab_size=FINITE.vocab_size)
                ),
            )
        run_rounds(s, Progress(), [])
        text = (tmp_path / name / "metrics.jsonl").read_text()
        runs.append((torch.cat([p.detach().flatten() for p in s.model.parameters()]), text))
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=0, atol=1e-9)
    assert '"read_rate": 1.0' in runs[0][1]
    assert '"read_rate": 1.0' not in runs[1][1]
