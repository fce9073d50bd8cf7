"""Whole runs whose steps reuse the pass that checked the drafts are runs that make it anew, whatever else they do.

The same prompts come each round, and most rollouts are greedy, so that drafts are soon right.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from small import Babble, in_float64, make_model, make_parts, make_recipe, make_setup, quiet_console
from understudy.experts.local import LocalExpert
from understudy.rollouts.collect import collect
from understudy.rollouts.hf import HFDecoder
from understudy.run import train
from understudy.trainer import loop
from understudy.trainer.checkpoint import Progress
from understudy.trainer.loop import run_rounds

FINITE = Babble(num_train=8)
EXPERT = LocalExpert(make_model("gpt2", seed=20, vocab=12).double(), 12, identity="twenty")
LORA = {"rank": 2, "dropout": 0.0, "target_modules": ["c_attn"]}
CASES: dict[str, dict[str, Any]] = {
    "momentum and weight decay": {"optimizer__weight_decay": 0.3},
    "tied head": {"student__new__tied_embeddings": True, "optimizer__weight_decay": 0.3},
    "adapters": {"student__lora": LORA, "optimizer__weight_decay": 0.3},
    "drawn, not greedy": {"method__name": "opd-r", "rollouts__drafts": "coupled"},
    "policy gradient of a student that is sure": {
        "method__name": "opd-pg",
        "student__new__initializer_range": 2.0,
    },
    "two samples, mixture by sequence": {
        "method__name": "gkd",
        "method__rollout_temperature": 0.0,
        "method__student_share": 0.8,
        "train__samples_per_prompt": 2,
        "train__batch_size": 16,
    },
    "token budget does without": {"train__micro_batch_tokens": 40},
    "windows beside": {
        "method__name": "near-future",
        "method__student_window": "written",
        "method__window_tokens": 3,
        "method__candidate_quantile": 0.5,
        "rollouts__drafts": "coupled",
    },
    "losses before their gradient": {
        "method__name": "near-future",
        "method__window_tokens": 3,
        "method__candidate_quantile": 0.5,
        "method__suppress": "false-alarms",
        "rollouts__drafts": "coupled",
    },
}


def setup_of(folder, *, reads: bool, frozen: str = "", **settings: Any):
    """float64, AdamW; the same run with or without readings."""
    chosen = {
        "method__name": "nail-f",
        "student__new__family": "gpt2",
        "train__steps": 5,
        "optimizer__learning_rate": 3e-3,
        "evaluate__sampled": False,
        **settings,
    }
    folder.mkdir(exist_ok=True)
    recipe = make_recipe(**chosen)
    parts = in_float64(make_parts(recipe, task=FINITE, expert=EXPERT))
    for name, parameter in parts.student.named_parameters():
        if frozen and frozen in name:
            parameter.requires_grad_(False)
    s = make_setup(recipe, folder, parts)
    if reads:
        return s

    def student() -> HFDecoder:
        return HFDecoder(s.model, vocab_size=FINITE.vocab_size)

    return replace(s, sources=replace(s.sources, readings=None, student=student))


def outcome(s) -> tuple[torch.Tensor, list[float]]:
    """Weights after the run, and the share that was read in each step."""
    run_rounds(s, Progress(), [])
    rows = [json.loads(x) for x in (s.folder / "metrics.jsonl").read_text().splitlines()]
    weights = torch.cat([p.detach().flatten() for p in s.model.parameters()])
    return weights, [r["read_rate"] for r in rows if r["kind"] == "train"]


@pytest.mark.parametrize("case", CASES)
def test_the_weights_are_those_of_passes_made_anew(tmp_path, monkeypatch, case):
    """Fails if a reading outlives its step, is taken for trajectories of other tokens, or loses part of its gradient."""
    monkeypatch.setattr("understudy.rollouts.readings._PAYS_FROM", 0.2)
    found, read = outcome(setup_of(tmp_path / "a", reads=True, **CASES[case]))
    expected, none = outcome(setup_of(tmp_path / "b", reads=False, **CASES[case]))
    assert set(none) == {0.0}
    assert (max(read) > 0.2) == (case != "token budget does without")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("frozen", ["wte", "transformer"])
def test_frozen_parameters(tmp_path, monkeypatch, frozen):
    """The embedding, or all but the head: there the hidden states have no graph at all."""
    monkeypatch.setattr("understudy.rollouts.readings._PAYS_FROM", 0.2)
    found, read = outcome(setup_of(tmp_path / "a", reads=True, frozen=frozen))
    expected, _ = outcome(setup_of(tmp_path / "b", reads=False, frozen=frozen))
    assert max(read) > 0.2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("method", ["nail-f", "dagger"])
def test_nothing_is_held_when_a_step_has_ended(tmp_path, monkeypatch, method):
    """Neither what was used nor what was of no use."""
    s = setup_of(tmp_path / "a", reads=True, method__name=method)
    held: list[int] = []
    made: list[int] = []
    assert s.sources.readings is not None
    readings = s.sources.readings

    def watched(*given: Any):
        held.append(len(readings))
        fresh = collect(*given)
        made.append(len(readings))
        return fresh

    monkeypatch.setattr(loop, "collect", watched)
    run_rounds(s, Progress(), [])
    assert set(held) == {0}
    assert readings == []
    assert (max(made) > 0) == (method == "nail-f")


def test_a_resumed_run_reads_what_the_unbroken_one_read(tmp_path, monkeypatch):
    """From a checkpoint after which drafts are right: the same weights to the last bit, the same shares read."""
    monkeypatch.setattr("understudy.rollouts.readings._PAYS_FROM", 0.2)
    recipe = make_recipe(
        method__name="nail-f",
        student__new__family="gpt2",
        train__steps=6,
        checkpoint__every_steps=4,
        optimizer__learning_rate=1e-3,
        evaluate__expert_kl=False,
    )
    folder = tmp_path / "run"
    expert = LocalExpert(make_model("gpt2", seed=20, vocab=12), 12, identity="single")

    def state():
        rows = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
        read = [r["read_rate"] for r in rows if r["kind"] == "train"]
        return read, (folder / "final" / "model.safetensors").read_bytes()

    train(recipe, folder, task=FINITE, expert=expert, console=quiet_console())
    before = state()
    assert before[0][4] > 0
    (folder / "result.json").unlink()
    (folder / "final").rename(tmp_path / "first")
    train(recipe, folder, task=FINITE, expert=expert, resume=True, console=quiet_console())
    assert state() == before
