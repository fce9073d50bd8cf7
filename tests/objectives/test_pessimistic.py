"""The pessimistic objective against enumeration of a tiny world and the tabular learner of the theory, and in the trainer."""

from __future__ import annotations

import copy
import io
import json
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file

from small import (
    Babble,
    in_float64,
    make_model,
    make_parts,
    make_recipe,
    make_setup,
    quiet_console,
    with_plain_descent,
)
from understudy import pessimism as chooser
from understudy.config import given_options
from understudy.errors import ConfigError, TrainingError
from understudy.experts.local import LocalExpert
from understudy.methods import METHODS
from understudy.objectives.chunked import loss_from_logits
from understudy.objectives.pessimistic import (
    Estimate,
    bounded_score,
    importance_estimate,
    pessimistic_terms,
    surrogate,
)
from understudy.rollouts.collect import collect
from understudy.rollouts.offline import num_trained
from understudy.theory import pessimism as theory
from understudy.trainer import loop
from understudy.trainer.checkpoint import Progress
from understudy.trainer.collate import micro_batches
from understudy.trainer.setup import Clock
from understudy.trainer.step import optimizer_step

SEQUENCES = list(product(range(3), repeat=2))
"""All responses of two tokens out of three: nine."""


def tables(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits of the first token [3], of the second given the first [3, 3])."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(3, generator=generator, dtype=torch.float64)
    return first.requires_grad_(), torch.randn(
        3, 3, generator=generator, dtype=torch.float64
    ).requires_grad_()


def law_of(first, second) -> torch.Tensor:
    """Probability of each of the nine responses."""
    a, b = first.softmax(-1), second.softmax(-1)
    return torch.stack([a[y] * b[y, z] for y, z in SEQUENCES])


def rows_of(first, second) -> torch.Tensor:
    """Logits at the 18 positions, response by response."""
    return torch.stack([row for y, _ in SEQUENCES for row in (first, second[y])])


TOKENS = torch.tensor([t for pair in SEQUENCES for t in pair])
OWNER = torch.arange(9).repeat_interleave(2)


def ours(first, second, base_B, score_B, beta):
    """Expectation over the base model: every response once, weighed by its probability there."""
    logits = rows_of(first, second)
    logp_N = logits.log_softmax(-1).detach()[torch.arange(18), TOKENS]
    given = pessimistic_terms(logp_N, OWNER, base_B.log(), score_B, pessimism=beta)
    loss, value_N = loss_from_logits(
        surrogate, logits, weight_N=base_B.repeat_interleave(2), law=None, token_N=TOKENS, given_N=given
    )
    return loss, value_N


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_value_and_gradient_are_those_of_the_enumerated_objective(beta):
    """- E_pi f + beta sum pi^2 / base and its gradient by every logit, by autograd through the nine probabilities."""
    student, base_B = tables(1), law_of(*tables(2)).detach()
    score_B = torch.rand(9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    loss, _ = ours(*student, base_B, score_B, beta)
    loss.backward()
    found = [t.grad.clone() for t in student if t.grad is not None]
    again = tables(1)
    pi_B = law_of(*again)
    exact = -(pi_B * score_B).sum() + beta * (pi_B.square() / base_B).sum()
    exact.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-12)
    for ours_grad, t in zip(found, again, strict=True):
        torch.testing.assert_close(ours_grad, t.grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("seed", range(3))
def test_training_reaches_the_enumerated_optimum(seed):
    """From the base model, by the library's own loss: a table that can be any law ends at the constrained maximum.

    By hand, for beta = 1 and f in [0, 1], where no response is given up: the objective's slope f - 2 beta pi / base is the same
    at all responses, so pi = base (1 + (f - E_base f) / (2 beta)). Fails if the penalty's slope lacks its factor 2.
    """
    base_B = law_of(*tables(100 + seed)).detach()
    score_B = torch.rand(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    student = tables(100 + seed)
    search = torch.optim.LBFGS(
        student, max_iter=500, tolerance_grad=1e-12, tolerance_change=0, history_size=30
    )

    def closure() -> torch.Tensor:
        search.zero_grad()
        loss, _ = ours(*student, base_B, score_B, 1.0)
        loss.backward()
        return loss.detach()

    search.step(closure)  # pyright: ignore[reportArgumentType]
    optimum_B = base_B * (1 + (score_B - base_B @ score_B) / 2)
    torch.testing.assert_close(law_of(*student).detach(), optimum_B, rtol=0, atol=1e-9)
    assert (optimum_B - base_B).abs().max() > 0.01


def test_it_ranks_students_as_the_theorys_learner_does():
    """Thirty classes of four students: objective and choice of the tabular learner with the second-moment penalty."""
    picks = set()
    for seed in range(30):
        base_B = law_of(*tables(1000 + seed)).detach()
        score_B = torch.rand(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        students = [tables(10 * seed + k) for k in range(4)]
        laws = torch.stack([law_of(*s).detach() for s in students])
        world = theory.LoggedBandit(
            np.ones(1), base_B[None].numpy(), score_B[None].numpy(), laws[:, None].numpy()
        )
        for beta in (0.0, 0.2):
            losses = [ours(*s, base_B, score_B, beta)[0].item() for s in students]
            tabular = world.online_K - beta * world.penalty_KX("second moment")[:, 0]
            assert losses == pytest.approx((-tabular).tolist(), rel=1e-10, abs=1e-12)
            picks.add((beta, int(np.argmin(losses))))
            choice = theory.pessimistic_choice(world, 1e6 * base_B[None, None].numpy(), beta, "second moment")
            assert int(choice.argmax()) == int(np.argmin(losses))
    assert len(picks) > 4


def test_by_hand():
    """rho = 2 and 1/2; f = 1/2 and 1; beta = 1/4: losses -1 + 1 and -1/2 + 1/16; advantages 1 - 2 and 1/2 - 1/8."""
    logp = torch.tensor([math.log(0.4), 0.0, math.log(0.1)], dtype=torch.float64)
    terms = pessimistic_terms(
        logp,
        torch.tensor([0, 0, 1]),
        torch.tensor([0.2, 0.2]).double().log(),
        torch.tensor([0.5, 1.0]).double(),
        pessimism=0.25,
    )
    assert terms["loss_n"].tolist() == pytest.approx([0.0, 0.0, -0.4375], abs=1e-7)
    assert terms["advantage_n"].tolist() == pytest.approx([-1.0, -1.0, 0.375], abs=1e-7)


def test_scores_are_bounded():
    logp = torch.tensor([0.0, -5.0, -20.0, -300.0, -math.inf])
    assert bounded_score(logp, score_nats=20.0).tolist() == [1.0, 0.75, 0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="score_nats must be > 0"):
        bounded_score(logp, score_nats=0.0)
    with pytest.raises(ValueError, match="pessimism must be >= 0"):
        pessimistic_terms(logp[:1], torch.tensor([0]), logp[:1], logp[:1], pessimism=-1.0)


def test_the_importance_estimate_is_unbiased_and_knows_its_error():
    """Over all 81 logs of two samples: the mean is E_pi f, and the mean of the squared standard error its variance."""
    base_B, pi_B = law_of(*tables(5)).detach(), law_of(*tables(6)).detach()
    score_B = torch.rand(9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean = square = error = 0.0
    for i, j in product(range(9), repeat=2):
        at, p = torch.tensor([i, j]), float(base_B[i] * base_B[j])
        found = importance_estimate(pi_B[at].log(), base_B[at].log(), score_B[at], torch.arange(2))
        mean, square, error = (
            mean + p * found.mean,
            square + p * found.mean**2,
            error + p * found.standard_error**2,
        )
        assert 0.5 - 1e-12 <= found.effective_share <= 1 + 1e-12
        assert found.lower == found.mean - found.standard_error
    assert mean == pytest.approx(float(pi_B @ score_B), rel=1e-12)
    assert error == pytest.approx(square - mean**2, rel=1e-10)
    # Ratios 3 and 1: 16 / (2 * 10).
    hand = importance_estimate(torch.tensor([3.0, 1.0]).log(), torch.zeros(2), torch.ones(2), torch.arange(2))
    assert hand.effective_share == pytest.approx(0.8, rel=1e-6)
    with pytest.raises(ValueError, match="at least two prompts"):
        importance_estimate(torch.zeros(2), torch.zeros(2), torch.zeros(2), torch.tensor([5, 5]))


def test_samples_of_one_prompt_are_averaged_before_the_error():
    """Prompts worth 1 and 3, each four times the same: mean 2, standard error sqrt(2) / sqrt(2) = 1 however often repeated.

    Fails if repetitions count as independent samples: sqrt(8/7) / sqrt(8) = 0.378.
    """
    ratio = torch.tensor([1.0, 3.0]).double().repeat(4)
    found = importance_estimate(ratio.log(), torch.zeros(8), torch.ones(8), torch.tensor([7, 2]).repeat(4))
    assert (found.mean, found.standard_error, found.num_samples) == pytest.approx((2.0, 1.0, 8), rel=1e-12)


def test_without_a_penalty_nothing_overflows():
    """rho = e^400 and f = 0.5 or 0: rho^2 is inf in float64. Fails with 0 * inf. A penalised one stops the run, as it should."""
    logp, owner = torch.zeros(2, dtype=torch.float64), torch.arange(2)
    base, score = torch.full((2,), -400.0).double(), torch.tensor([0.5, 0.0]).double()
    terms = pessimistic_terms(logp, owner, base, score, pessimism=0.0)
    assert terms["loss_n"].tolist() == pytest.approx([-0.5 * math.exp(400), 0.0], rel=1e-12)
    assert terms["advantage_n"].tolist() == pytest.approx([0.5 * math.exp(400), 0.0], rel=1e-12)
    never = pessimistic_terms(logp, owner, 2 * base, torch.zeros(2).double(), pessimism=0.0)
    assert never["loss_n"].tolist() == never["advantage_n"].tolist() == [0.0, 0.0]
    stopped = pessimistic_terms(logp, owner, base, score, pessimism=0.1)
    assert not torch.isfinite(stopped["loss_n"]).any()


# --- in the trainer ---------------------------------------------------------------------------------------------------

TASK = Babble()
EXPERT = LocalExpert(make_model("gpt2", seed=20, vocab=TASK.vocab_size).double(), TASK.vocab_size)
SETTINGS = {
    "method__name": "pessimistic",
    "method__queries": 16,
    "method__score_nats": 40.0,
    "student__new__family": "gpt2",
    "optimizer__learning_rate": 1.0,
    "optimizer__clip_norm": 1e9,
    "expert__noise": None,
}


def setup(folder, **settings):
    parts = in_float64(make_parts(make_recipe(**{**SETTINGS, **settings}), task=TASK, expert=EXPERT))
    return with_plain_descent(make_setup(make_recipe(**{**SETTINGS, **settings}), folder, parts))


def rounds(s, number: int):
    this = loop._this_round(s, Progress(round=number, prompts=8 * number))
    assert s.scores is not None
    return s.scores.scored(collect(s.sources, s.method.prefixes, s.options, this))


class Counting:
    """An expert that counts the responses whose law it is asked for."""

    def __init__(self, expert: LocalExpert) -> None:
        self.expert, self.asked = expert, 0
        self.identity, self.vocab_size, self.decoder = "counting", expert.vocab_size, expert.decoder

    def law(self, batch, gate_BT):
        self.asked += int(gate_BT.any(dim=1).sum())
        return self.expert.law(batch, gate_BT)


def by_hand(s, base, trajectories, beta: float) -> float:
    total = 0.0
    for t in trajectories:
        n, ids = len(t.prompt.token_ids), torch.tensor([t.prompt.token_ids + t.response_ids])
        at = (range(len(t.response_ids)), list(t.response_ids))
        sums = [
            m(ids).logits[0].log_softmax(-1)[n - 1 : -1][at].sum().item()
            for m in (s.model, base, EXPERT.model)
        ]
        rho, f = math.exp(sums[0] - sums[1]), min(1.0, max(0.0, 1 + sums[2] / 40))
        total += -rho * f + beta * rho**2
    return total / len(trajectories)


def test_the_step_is_the_gradient_of_the_objective_by_hand(tmp_path):
    """Away from the base; directional derivative by differences; the same step in pieces of three."""
    s = setup(tmp_path, method__pessimism=0.2)
    trajectories, base = rounds(s, 0), copy.deepcopy(s.model)
    assert len({len(t.response_ids) for t in trajectories}) > 1
    generator, h = torch.Generator().manual_seed(1), 1e-6
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in s.model.parameters()]

    def move(by: float) -> None:
        with torch.no_grad():
            for p, d in zip(s.model.parameters(), direction, strict=True):
                p += by * d

    move(0.02)
    value = by_hand(s, base, trajectories, 0.2)
    move(h)
    up = by_hand(s, base, trajectories, 0.2)
    move(-2 * h)
    slope = (up - by_hand(s, base, trajectories, 0.2)) / (2 * h)
    move(h)
    weights = copy.deepcopy(s.model.state_dict())
    for size in (None, 3):
        s.model.load_state_dict(weights)
        cut = replace(s, recipe=replace(s.recipe, train=replace(s.recipe.train, micro_batch_size=size)))
        progress = Progress()
        result = optimizer_step(cut, trajectories, progress, Clock(progress, torch.device("cpu")))
        moved = [weights[n] - p for n, p in s.model.named_parameters()]
        along = sum((m * d).sum() for m, d in zip(moved, direction, strict=True))
        # The log keeps what the base model gave to two float32 kernels' rounding.
        assert result.loss_nats == pytest.approx(value, rel=1e-5)
        assert float(along) == pytest.approx(slope, rel=1e-4)
    assert len(list(micro_batches(trajectories, 3))) == 3


def test_the_log_is_written_once_by_the_start_and_comes_again(tmp_path):
    """12 of 16 prompts are trained on, round after round with the same responses, whatever has become of the student."""
    s = setup(tmp_path)
    assert num_trained(16, 0.25) == 12
    assert (num_trained(2, 0.01), num_trained(2, 0.99)) == (1, 1)
    first = [rounds(s, number) for number in range(3)]
    with torch.no_grad():
        for p in s.model.parameters():
            p.mul_(0.5)
    later = [rounds(s, number) for number in range(3)]
    ids = [t.prompt.id for r in first for t in r]
    assert ids == [f"train/{i % 12}" for i in range(24)]
    responses = [t.response_ids for r in first for t in r]
    assert responses[:12] == responses[12:]
    assert responses == [t.response_ids for r in later for t in r]
    assert not any(any(t.is_student) for r in first for t in r)
    # Written late, by a student that has moved: still the responses of the start.
    late = setup(tmp_path / "late")
    with torch.no_grad():
        for p in late.model.parameters():
            p.mul_(0.5)
    assert [t.response_ids for t in rounds(late, 0)] == responses[:8]


def test_a_response_is_scored_once_and_costs_one_query(tmp_path):
    """Five rounds of 8 over a log of 12: 8 queries, 4 more, then none; the expert really is asked 12 times.

    Fails if positions are counted, or every pass over the log.
    """
    expert = Counting(EXPERT)
    recipe = make_recipe(
        **{**SETTINGS, "train__steps": 5, "optimizer__learning_rate": 1e-3, "evaluate__expert_kl": False}
    )
    s = make_setup(recipe, tmp_path, in_float64(make_parts(recipe, task=TASK, expert=expert)))
    loop.run_rounds(s, Progress(prompts=5), [])  # a warm start has used five prompts
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["expert_queries"] for r in rows if r["kind"] == "train"] == [8, 12, 12, 12, 12]
    assert expert.asked == 12


def test_no_more_is_written_than_is_asked_about(tmp_path):
    """16 queries, not a block of 512."""
    s = setup(tmp_path, method__queries=16)
    log = s.sources.offline
    assert len(log.responses(12, 4)) == 4  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    file = next((tmp_path / "data").rglob("block-*.safetensors"))
    assert len(load_file(file)["length"]) == 16


def test_what_is_held_out_is_not_trained_on(tmp_path):
    """A data set of ten prompts for 16 queries would hold out prompts that have been trained on."""
    small = replace(TASK, num_train=10)
    recipe = make_recipe(**SETTINGS)
    parts = make_parts(recipe, task=small, expert=EXPERT)
    with pytest.raises(
        ConfigError, match=r"method\.queries = 16, but the task babble has 10 training prompts"
    ):
        make_setup(recipe, tmp_path, in_float64(parts))
    make_setup(make_recipe(**{**SETTINGS, "method__queries": 10}), tmp_path, in_float64(parts))

    class Repeating(Babble):
        """Endless, but every third prompt has the tokens of the first."""

        def prompts(self, split, start, count):
            made = super().prompts(split, start, count)
            first = super().prompts(split, 0, 1)[0]
            return [
                replace(p, token_ids=first.token_ids) if (start + i) % 3 == 0 else p
                for i, p in enumerate(made)
            ]

    repeating = make_parts(recipe, task=Repeating(), expert=EXPERT)
    chosen = replace(recipe, data=replace(recipe.data, folder=str(tmp_path / "data")))
    unseen = chooser._unseen(chosen, repeating, recipe_options(chosen))
    assert [t.prompt.id for _, t in unseen] == ["train/13", "train/14"]


def recipe_options(recipe):
    return METHODS["pessimistic"].resolve_options(given_options(recipe))


def candidate(value: float, mean: float, error: float, effective: float = 50.0) -> chooser.Candidate:
    return chooser.Candidate(
        pessimism=value, mean=mean, standard_error=error, effective_samples=effective, num_samples=100
    )


def test_who_wins():
    """The largest lower end; no number always loses; few samples lose to many, and where all have few somebody says so."""
    nan, heard = math.nan, io.StringIO()
    console = Console(file=heard, width=200)
    a, b = candidate(0.1, 0.5, 0.2), candidate(0.2, 0.4, 0.05)
    for found in ([a, b], [candidate(0.0, nan, nan), a, b], [a, candidate(0.0, math.inf, nan), b]):
        assert chooser._best(found, console) is b
    assert chooser._best([candidate(0.0, 0.9, 0.01, 3.0), a, b], console) is b
    assert heard.getvalue() == ""
    few = [candidate(0.0, 0.9, 0.01, 3.0), candidate(0.1, 0.5, 0.2, 9.5)]
    assert chooser._best(few, console) is few[0]
    assert "cannot tell: at most 9.5 held-out samples" in heard.getvalue()
    with pytest.raises(TrainingError, match="no value of the grid has a held-out estimate"):
        chooser._best([candidate(0.0, nan, nan), chooser.Candidate(pessimism=1.0, error="stopped")], console)


def test_a_run_that_stops_does_not_stop_the_choice(tmp_path, monkeypatch):
    def fake(recipe, place, **_):
        if recipe.method.pessimism == 0.0:
            raise TrainingError("the loss of step 3 is not finite")

    monkeypatch.setattr(chooser, "train", fake)
    monkeypatch.setattr(chooser, "heldout_estimate", lambda *_, **__: Estimate(0.5, 0.1, 0.8, 40))
    found = chooser.choose_pessimism(
        make_recipe(**SETTINGS), tmp_path, grid=(0.0, 1.0), console=quiet_console()
    )
    assert [c.is_chosen for c in found] == [False, True]
    assert found[1].effective_samples == pytest.approx(32)
    rows = json.loads((tmp_path / "pessimism.json").read_text())["candidates"]
    assert (rows[0]["mean"], rows[0]["error"]) == (None, "the loss of step 3 is not finite")


def test_the_pessimism_is_chosen_on_what_was_not_trained_on(tmp_path):
    """The record's estimate is the importance-weighted mean over the held-out prompts alone, made anew from the files."""
    settings = {"optimizer__learning_rate": 0.003, "optimizer__clip_norm": 1.0, "train__steps": 6}
    recipe = make_recipe(**{**SETTINGS, **settings})
    expert = LocalExpert(make_model("gpt2", seed=20, vocab=TASK.vocab_size), TASK.vocab_size, "given")
    found = chooser.choose_pessimism(
        recipe, tmp_path / "out", grid=(0.0, 0.5), console=quiet_console(), task=TASK, expert=expert
    )
    best = max(found, key=lambda c: c.mean - c.standard_error)
    assert [c.is_chosen for c in found] == [c is best for c in found]
    written = json.loads((tmp_path / "out" / "pessimism.json").read_text())["candidates"]
    assert [row["pessimism"] for row in written] == [0.0, 0.5]
    assert len(list((tmp_path / "out" / "data").iterdir())) == 1, "one log for all"
    # By hand: held-out prompts 12..15, responses of the start, the final student of the second run.
    run = tmp_path / "out" / "pessimism-0.5"
    chosen = replace(recipe, data=replace(recipe.data, folder=str(tmp_path / "out" / "data")))
    start = make_parts(chosen, task=TASK, expert=expert)
    log = make_setup(chosen, tmp_path, start).sources.offline
    final = make_parts(chosen, task=TASK, expert=expert, checkpoint=str(run / "final")).student
    values = []
    assert log is not None
    assert log != "reference"
    log = replace(log, folder=next((tmp_path / "out" / "data").iterdir()))
    for prompt, response in zip(TASK.prompts("train", 12, 4), log.responses(12, 4), strict=True):
        n, ids = len(prompt.token_ids), torch.tensor([prompt.token_ids + response.token_ids])
        at = (range(len(response.token_ids)), list(response.token_ids))
        pi, e = (m(ids).logits[0].log_softmax(-1)[n - 1 : -1][at].sum().item() for m in (final, expert.model))
        values.append(math.exp(pi - sum(response.logp)) * min(1.0, max(0.0, 1 + e / 40)))
    assert found[1].mean == pytest.approx(float(np.mean(values)), rel=1e-4)
    assert found[1].standard_error == pytest.approx(float(np.std(values, ddof=1) / 2), rel=1e-3)
    assert found[0].mean != found[1].mean


def test_what_does_not_fit(tmp_path):
    with pytest.raises(ConfigError, match=r"needs method\.name = 'pessimistic'"):
        chooser.choose_pessimism(make_recipe(), tmp_path)
    with pytest.raises(ConfigError, match=r"data\.offline = 'reference' does not fit"):
        make_recipe(method__name="pessimistic", data__offline="reference")
    with pytest.raises(ConfigError, match=r"pessimistic asks an expert for labels"):
        make_recipe(method__name="pessimistic", expert=None)
    with pytest.raises(ConfigError, match=r"method\.heldout of pessimistic must be in \(0, 1\)"):
        make_recipe(method__name="pessimistic", method__heldout=1.0)
