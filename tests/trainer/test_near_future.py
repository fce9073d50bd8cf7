"""`near-future`: a whole step against its loss written out, however the step is split; and what is left when nothing forks.

Steps are plain gradient descent at rate 1 in float64, so that the change of the weights is the gradient itself.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from near_future_oracle import Answer, World, answer

from small import (
    Babble,
    flat_weights,
    in_float64,
    make_model,
    make_parts,
    make_recipe,
    make_setup,
    with_plain_descent,
    written,
)
from understudy.errors import ConfigError, TrainingError
from understudy.experts.local import LocalExpert
from understudy.experts.noisy import Additive, NoisyExpert
from understudy.methods import METHODS
from understudy.models import has_dropout
from understudy.objectives.laws import DenseLaw
from understudy.trainer.checkpoint import Progress
from understudy.trainer.loop import run_rounds
from understudy.trainer.setup import Clock
from understudy.trainer.step import optimizer_step

CPU = torch.device("cpu")
# Many tokens, and a seed where no window that matters says a token twice, which would leave a choice between equal plans.
TASK = Babble(vocab_size=60, max_new_tokens=11)
EXPERT = LocalExpert(make_model("gpt2", seed=20, vocab=TASK.vocab_size).double(), TASK.vocab_size)
DESCENT = {
    "seed": 1,
    "student__new__family": "gpt2",
    "optimizer__learning_rate": 1.0,
    "optimizer__clip_norm": 1e9,
}
LOOK = {
    "method__name": "near-future",
    "method__student_window": "written",
    "method__window_weight": 1.0,
    "method__window_tokens": 4,
    "method__window_temperature": 1.0,
    "method__candidate_quantile": 0.7,
}


def near_setup(tmp_path, expert: Any = EXPERT, task: Babble = TASK, **settings: Any):
    recipe = make_recipe(**{"train__batch_size": 8, **DESCENT, **LOOK, **settings})
    parts = in_float64(make_parts(recipe, task=task, expert=expert))
    return with_plain_descent(make_setup(recipe, tmp_path, replace(parts, expert=expert)))


def step_of(s, trajectories):
    """(gradient, result, progress) of one step; the weights are put back."""
    before = copy.deepcopy(s.model.state_dict())
    start = flat_weights(s.model)
    progress = Progress()
    result = optimizer_step(s, trajectories, progress, Clock(progress, CPU))
    gradient = start - flat_weights(s.model)
    s.model.load_state_dict(before)
    return gradient, result, progress


def written_out(s, trajectories, expert: Any = EXPERT) -> tuple[torch.Tensor, Answer]:
    """(gradient, answer) of the oracle, on a copy of the student."""
    student = copy.deepcopy(s.model)
    limits = s.sources.limits
    world = World(
        student=student,
        expert=expert.model,
        eos_ids=limits.eos_ids,
        max_new_tokens=limits.max_new_tokens,
        seed=s.recipe.seed,
        stops=limits.stop_strings,
        spell=limits.decode,
        options=dict(s.options),
    )
    found = answer(world, trajectories)
    found.total.backward()
    gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in student.parameters()]
    return torch.cat([g.flatten() for g in gradient]), found


CASES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "weight": {"window_weight": 0.37},
    "greedy, by hidden states": {"window_temperature": 0.0, "embedding": "expert-hidden"},
    "by the student's embedding": {"embedding": "student"},
    "heaviest": {"targets": "heaviest"},
    "along the expert's window": {"targets": "expert-window"},
    "entropic": {"plan": "entropic", "regularisation": 0.1},
    "entropic, heaviest": {"plan": "entropic", "targets": "heaviest"},
    "in order": {"plan": "monotone"},
    "the rollout's own tokens": {"student_window": "rollout"},
    "the rollout's own tokens, heaviest": {
        "student_window": "rollout",
        "targets": "heaviest",
        "plan": "entropic",
        "window_weight": 0.1,
    },
    "the expert's window beside the rollout's own": {"student_window": "rollout", "targets": "expert-window"},
    "the rollout's own tokens, entropic": {"student_window": "rollout", "plan": "entropic"},
    "false alarms": {"suppress": "false-alarms", "real_quantile": 0.5},
    "false alarms alone": {"suppress": "false-alarms", "real_quantile": 0.5, "window_weight": 0.0},
    "matched": {"suppress": "matched", "real_quantile": 0.4},
    "matched alone": {"suppress": "matched", "real_quantile": 0.6, "window_weight": 0.0},
    "all at once": {
        "suppress": "matched",
        "student_window": "rollout",
        "plan": "entropic",
        "embedding": "expert-hidden",
        "window_weight": 2.5,
        "max_forks_per_trajectory": 2,
        "candidate_spacing": 3,
        "real_quantile": 0.2,
    },
    "absolute cuts": {
        "candidate_quantile": None,
        "candidate_nats": 1.2,
        "min_distance": 0.9,
        "max_forks_per_trajectory": 3,
    },
    "absolute cuts of rollouts": {
        "student_window": "rollout",
        "candidate_quantile": None,
        "candidate_nats": 1.4,
    },
    "longer windows": {"window_tokens": 5, "window_temperature": 0.8, "embedding": "expert-hidden"},
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_the_gradient_of_the_loss_written_out(tmp_path, case):
    """Both means, what is logged, and the derivative by every weight.

    Fails if a window's context or target is one place off, its prefix holds the suspicious token, a mean is over forks or
    sequences, the rows of a plan are not made laws, a plan is read the other way round, the median is not the response's own,
    a suppressed token leaves the denominator, or a cut is taken of something else.
    """
    s = near_setup(tmp_path, **{f"method__{name}": value for name, value in CASES[case].items()})
    trajectories = written(s, 5)
    expected, truth = written_out(s, trajectories)
    gradient, result, progress = step_of(s, trajectories)
    assert 3 < len(truth.real) < len(truth.candidates), "the case must have forks and false alarms"
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)
    assert result.loss_nats == pytest.approx(truth.rollout_nats, rel=1e-9)
    assert result.looked["forks_candidates"] == len(truth.candidates)
    assert result.looked["forks_real"] == len(truth.real)
    mean = sum(truth.distances) / len(truth.distances)
    assert result.looked["forks_distance_mean"] == pytest.approx(mean, abs=1e-6)
    assert result.looked["window_tokens"] == truth.written
    tokens = sum(len(t.response_ids) for t in trajectories)
    assert result.trained_tokens == progress.response_tokens == tokens
    assert progress.expert_queries == tokens + truth.by_expert
    assert progress.seconds.keys() == {"label", "train", "look"}
    if s.options["window_weight"] > 0:
        assert result.looked["window_loss_nats"] == pytest.approx(truth.window_nats, rel=1e-9)
    else:
        assert result.looked["window_loss_nats"] is None
    if s.options["suppress"] != "none":
        assert truth.suppressed
    plain = replace(s, objective=METHODS["opd-r"].objective(), look_ahead=None)
    assert (step_of(plain, trajectories)[0] - gradient).abs().max() > 1e-4, "the look must matter"


SPLITS: dict[str, dict[str, Any]] = {
    "one by one": {"train__micro_batch_size": 1},
    "two by two": {"train__micro_batch_size": 2},
    "by tokens": {"train__micro_batch_tokens": 21},
    "windows one by one": {"train__rollout_batch_size": 1},
    "windows by threes": {"train__rollout_batch_size": 3},
}


@pytest.mark.parametrize("case", ["as it is", "absolute cuts of rollouts", "matched", "all at once"])
def test_splitting_and_order_do_not_change_the_step(tmp_path, monkeypatch, case):
    """However trajectories, windows and passes are batched, and in whichever order.

    Fails if a part is divided by the tokens of a micro-batch, if a fork is judged among those of its own piece, or if random
    numbers go by place.
    """
    chosen = {f"method__{name}": value for name, value in CASES[case].items()}
    whole = near_setup(tmp_path / "whole", train__micro_batch_size=8, **chosen)
    trajectories = written(whole, 6)
    gradient, result, _ = step_of(whole, trajectories)
    assert (result.looked["forks_real"] or 0) > 5
    setups = {name: near_setup(tmp_path / name, **chosen, **how) for name, how in SPLITS.items()}
    shuffled = [trajectories[i] for i in (4, 1, 5, 0, 3, 2)]
    found = {name: step_of(s, trajectories) for name, s in setups.items()}
    found["in another order"] = step_of(whole, shuffled)
    monkeypatch.setattr("understudy.trainer.step.MIN_PIECE_TOKENS_CPU", 1)
    found["by length"] = step_of(near_setup(tmp_path / "length", **chosen), shuffled)
    for other, split, _ in found.values():
        torch.testing.assert_close(other, gradient, rtol=0, atol=1e-9)
        assert split.loss_nats == pytest.approx(result.loss_nats, abs=1e-9)
        assert split.looked == {
            k: pytest.approx(v, abs=1e-9) if isinstance(v, float) else v for k, v in result.looked.items()
        }


@pytest.mark.parametrize("suppress", ["none", "false-alarms", "matched"])
def test_without_candidates_the_step_is_that_of_opd_r(tmp_path, suppress):
    """To the last bit; and nothing is written or asked."""
    s = near_setup(
        tmp_path, method__candidate_quantile=None, method__candidate_nats=1e5, method__suppress=suppress
    )
    trajectories = written(s, 5)
    gradient, result, progress = step_of(s, trajectories)
    plain = step_of(replace(s, look_ahead=None), trajectories)
    assert torch.equal(gradient, plain[0])
    assert result == replace(plain[1], looked=result.looked)
    assert result.looked == {
        "forks_candidates": 0,
        "forks_real": 0,
        "forks_distance_mean": None,
        "window_tokens": 0,
        "window_loss_nats": None,
    }
    assert progress.expert_queries == plain[2].expert_queries


@pytest.mark.parametrize("suppress", ["none", "false-alarms"])
def test_an_expert_that_says_the_same_leaves_no_fork(tmp_path, suppress):
    """High losses, equal windows: an expert that is surer of the very same words. All candidates are false alarms.

    Fails if distance 0 counts as a fork where most distances are 0.
    """
    s = near_setup(
        tmp_path, method__window_temperature=0.0, method__suppress=suppress, method__window_weight=1.0
    )
    assert s.look_ahead is not None
    surer: Any = copy.deepcopy(s.model)
    with torch.no_grad():
        surer.transformer.ln_f.weight.mul_(3)
        surer.transformer.ln_f.bias.mul_(3)
    expert = LocalExpert(surer, TASK.vocab_size)
    look = replace(s.look_ahead, writers={**s.look_ahead.writers, "expert": expert.decoder}, compared=surer)
    s = replace(s, expert=expert, look_ahead=look)
    trajectories = written(s, 5)
    gradient, result, _ = step_of(s, trajectories)
    assert (result.looked["forks_candidates"] or 0) > 10
    assert (result.looked["forks_real"], result.looked["forks_distance_mean"]) == (0, 0)
    plain = step_of(replace(s, look_ahead=None), trajectories)[0]
    assert torch.equal(gradient, plain) == (suppress == "none")


def passes_of(s, trajectories) -> int:
    """Passes of the student with a graph behind them in one step."""
    count = []
    transformer: Any = s.model.transformer
    hook = transformer.register_forward_hook(lambda *_: count.append(torch.is_grad_enabled()))
    step_of(s, trajectories)
    hook.remove()
    return sum(count)


@pytest.mark.parametrize(
    ("settings", "windows_passes"),
    [({"student_window": "rollout"}, 0), ({"suppress": "matched", "window_weight": 0.0}, 0), ({}, 1)],
)
def test_a_step_passes_over_its_rollouts_once(tmp_path, settings, windows_passes):
    """Also where the look comes before the gradient; windows that lie in the rollouts take no pass, others one.

    Fails if the pass that found the losses is thrown away, or if windows in rollouts are read behind their prefixes.
    """
    s = near_setup(tmp_path, **{f"method__{name}": value for name, value in settings.items()})
    trajectories = written(s, 5)
    assert s.holds_graphs
    assert passes_of(s, trajectories) == 1 + windows_passes


@pytest.mark.parametrize("adapters", [{}, {"student__lora": {"rank": 2}, "student__new__family": "llama"}])
def test_a_kept_pass_is_a_pass_made_anew(tmp_path, monkeypatch, adapters):
    """To the last bit, in several pieces."""
    monkeypatch.setattr("understudy.trainer.step.MIN_PIECE_TOKENS_CPU", 1)
    s = near_setup(tmp_path, method__student_window="rollout", method__suppress="matched", **adapters)
    trajectories = written(s, 6)
    kept, result, _ = step_of(s, trajectories)
    anew, other, _ = step_of(replace(s, holds_graphs=False), trajectories)
    assert s.holds_graphs
    assert kept.abs().max() > 0
    assert torch.equal(kept, anew)
    assert result == other


@pytest.mark.parametrize(
    "settings",
    [
        {"train__micro_batch_size": 5},
        {"train__micro_batch_tokens": 500},
        {"train__compile": True},
        {"train__mixed_precision": "bf16"},
        {"student__new__family": "llama", "student__lora": {"rank": 2, "dropout": 0.2}},
    ],
)
def test_a_pass_is_not_kept_where_training_wants_another_one(tmp_path, settings):
    """Or where memory is limited, which a kept pass of every micro-batch would not respect."""
    assert not near_setup(tmp_path, **settings).holds_graphs


def test_nothing_to_look_for_is_opd_r(tmp_path):
    """A weight of 0 and nothing suppressed: three steps of AdamW in float32, the same weights and the same records."""
    found = []
    for name, method in (
        ("near", {**LOOK, "method__window_weight": 0.0}),
        ("plain", {"method__name": "opd-r"}),
    ):
        recipe = make_recipe(
            student__new__family="gpt2", train__steps=3, optimizer__learning_rate=0.01, **method
        )
        folder = tmp_path / name
        folder.mkdir()
        s = make_setup(recipe, folder, task=TASK, expert=LocalExpert(make_model(seed=6, vocab=60), 60))
        assert s.look_ahead is None
        run_rounds(s, Progress(), [])
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found.append(
            (flat_weights(s.model), [{k: v for k, v in r.items() if "seconds" not in k} for r in rows])
        )
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize("suppress", ["none", "matched"])
def test_a_run_moves_and_logs(tmp_path, suppress):
    """Through the loop: collected, looked at and stepped; every process-wide number is in the record of its step."""
    recipe = make_recipe(
        **{**LOOK, "method__suppress": suppress, "student__new__family": "gpt2", "train__steps": 3}
    )
    expert = NoisyExpert(LocalExpert(make_model(seed=6, vocab=60), 60, identity="six"), Additive(0.1, None))
    s = make_setup(recipe, tmp_path, replace(make_parts(recipe, task=TASK, expert=expert), expert=expert))
    progress = Progress()
    run_rounds(s, progress, [])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rows = [r for r in rows if r["kind"] == "train"]
    assert all(r["forks_candidates"] > r["forks_real"] > 0 for r in rows)
    assert all(r["window_loss_nats"] > 0 and 0 < r["forks_distance_mean"] < 2 for r in rows)
    assert all(r["seconds"]["look"] > 0 for r in rows)
    # Each of the two writes as much as the other, up to ends.
    written_tokens = sum(r["window_tokens"] for r in rows)
    by_expert = rows[-1]["expert_queries"] - rows[-1]["response_tokens"]
    assert 0.4 * written_tokens < by_expert < 0.6 * written_tokens


class Broken(LocalExpert):
    """Its law of one position is not a number."""

    def law(self, batch, gate_BT):
        logp_NV = torch.full((int(gate_BT.sum()), self.vocab_size), 1 / self.vocab_size).log()
        logp_NV[-1] = torch.nan
        return DenseLaw(logp_NV)


@pytest.mark.parametrize("suppress", ["none", "matched"])
def test_a_loss_that_is_no_number_stops_before_the_look(tmp_path, suppress):
    s = near_setup(tmp_path, method__suppress=suppress)
    trajectories, before = written(s, 3), flat_weights(s.model)
    broken = replace(s, expert=Broken(EXPERT.model, TASK.vocab_size))
    with pytest.raises(TrainingError, match=r"step 0 is not finite at 1 positions .*No step was taken"):
        step_of(broken, trajectories)
    assert torch.equal(flat_weights(s.model), before)


def test_what_cannot_look_ahead_is_refused(tmp_path, monkeypatch):
    """An exact law has no vectors; sharded weights want equally many passes."""
    recipe = make_recipe(method__name="near-future")
    with pytest.raises(ConfigError, match=r"method.embedding = 'expert' .*Set method.embedding = 'student'"):
        make_setup(recipe, tmp_path)
    make_setup(make_recipe(method__name="near-future", method__embedding="student"), tmp_path)
    monkeypatch.setattr("understudy.wiring.FREE_TO_SPLIT", ())
    with pytest.raises(ConfigError, match=r"near-future does not fit sharded weights.*use opd-r"):
        make_setup(make_recipe(method__name="near-future", method__embedding="student"), tmp_path)


def test_one_cut_takes_the_place_of_the_other():
    row = METHODS["near-future"]
    options = row.resolve_options({"candidate_nats": 3.0})
    assert (options["candidate_quantile"], options["candidate_nats"]) == (None, 3.0)
    assert (options["real_quantile"], options["min_distance"]) == (0.3, None)
    assert row.resolve_options({"min_distance": 0.0})["real_quantile"] is None
    for both in (
        {"candidate_nats": 3.0, "candidate_quantile": 0.9},
        {"min_distance": 0.5, "real_quantile": 0.3},
    ):
        given = {f"method__{name}": value for name, value in both.items()}
        with pytest.raises(ConfigError, match=r"takes the place of .*set one of the two"):
            make_recipe(method__name="near-future", **given)
    for name, value in (
        ("window_tokens", 0),
        ("real_quantile", 1.0),
        ("plan", "sinkhorn"),
        ("suppress", "all"),
    ):
        with pytest.raises(ConfigError, match=f"method.{name}"):
            make_recipe(method__name="near-future", **{f"method__{name}": value})


class _Spied:
    """A look ahead that keeps the losses it was given."""

    def __init__(self, look):
        self.look, self.losses = look, []

    def __getattr__(self, name):
        return getattr(self.look, name)

    def __call__(self, losses):
        self.losses += [piece.by_position()[piece.gate_BT] for piece in losses]
        return self.look(losses)


def test_a_look_sees_the_student_without_dropout(tmp_path):
    """Candidates are chosen by what the student that wrote the rollouts costs, not one that has dropped at random."""
    s = near_setup(tmp_path)
    trajectories, seen = written(s, 4), {}
    for rate in (0.0, 0.4):
        for module in s.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = rate
        assert has_dropout(s.model) == (rate > 0)
        assert s.look_ahead is not None
        spy = _Spied(replace(s.look_ahead, has_dropout=rate > 0))
        step_of(replace(s, look_ahead=spy), trajectories)
        seen[rate] = torch.cat(spy.losses)
    torch.testing.assert_close(seen[0.4], seen[0.0], rtol=1e-9, atol=1e-12)
