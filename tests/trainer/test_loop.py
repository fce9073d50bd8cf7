"""The loop: what each step is trained on, how old it is, what dagger keeps, what a run writes."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from small import Babble, flat_weights, make_model, make_recipe, make_setup, quiet_console
from understudy.experts.local import LocalExpert
from understudy.randomness import generator
from understudy.rollouts.collect import collect
from understudy.run import train
from understudy.trainer import loop
from understudy.trainer.checkpoint import Progress
from understudy.trainer.loop import run_rounds


def watched(monkeypatch, s, progress: Progress | None = None):
    """Run the loop; returns [(step, trajectories)] of every optimiser step."""
    steps = []
    real = loop.optimizer_step

    def spy(setup, trajectories, progress, clock):
        steps.append((progress.step, list(trajectories)))
        return real(setup, trajectories, progress, clock)

    monkeypatch.setattr(loop, "optimizer_step", spy)
    run_rounds(s, progress or Progress(), [])
    return steps


@pytest.mark.parametrize("per_round", [1, 3])
def test_how_old_the_rollouts_are(monkeypatch, tmp_path, per_round):
    """One step a round: no gradient on a rollout of an older student. Three: at most two steps old, each rollout
    trained once. Fails if prompts are collected ahead, or if the version is the round's number."""
    s = make_setup(
        make_recipe(method__name="opd-f", train__steps=7, train__steps_per_round=per_round), tmp_path
    )
    steps = watched(monkeypatch, s)
    assert [step for step, _ in steps] == list(range(7))
    for step, trajectories in steps:
        assert {t.student_version for t in trajectories} == {step - step % per_round}
        assert len(trajectories) == 8
    assert len({t.id for _, ts in steps for t in ts}) == 7 * 8
    assert len({t.prompt.id for _, ts in steps for t in ts}) == 7 * 8


def test_rollouts_follow_the_weights(monkeypatch, tmp_path):
    """The stored log-probs of every step are those of the weights it starts from: no stale copy anywhere."""
    s = make_setup(make_recipe(method__name="opd-r", train__steps=4, optimizer__learning_rate=0.05), tmp_path)
    gaps = []
    real = loop.optimizer_step

    def spy(setup, trajectories, progress, clock):
        rows = torch.tensor([t.prompt.token_ids + t.response_ids for t in trajectories])
        with torch.no_grad():
            logp = setup.model(rows).logits.log_softmax(-1)[:, 6:-1]
        rescored = logp.gather(-1, rows[:, 7:, None])[..., 0]
        gaps.append((rescored - torch.tensor([t.logp for t in trajectories])).abs().max().item())
        return real(setup, trajectories, progress, clock)

    monkeypatch.setattr(loop, "optimizer_step", spy)
    before = flat_weights(s.model)
    run_rounds(s, Progress(), [])
    assert (flat_weights(s.model) - before).abs().max() > 0.1, (
        "the weights must move for this to mean anything"
    )
    assert max(gaps) < 2e-5


@pytest.mark.parametrize("inherited", [0, 24])
def test_dagger_replays_all_rounds_so_far(monkeypatch, tmp_path, inherited):
    """A batch of distinct trajectories from every round so far, old labels included, and no step too many.

    Fails if only the last round is trained, if the pool is indexed by prompts that a warm start has used, or if a
    last, shorter round takes all its steps.
    """
    recipe = make_recipe(method__name="dagger", train__steps=5, train__steps_per_round=2, train__batch_size=6)
    s = make_setup(recipe, tmp_path)
    steps = watched(monkeypatch, s, Progress(prompts=inherited, steps_before=3))
    assert [step for step, _ in steps] == [0, 1, 2, 3, 4]
    for step, trajectories in steps:
        assert len({t.id for t in trajectories}) == 6
        assert max(t.round for t in trajectories) <= step // 2
    last = [t.round for _, ts in steps[-1:] for t in ts]
    assert len(set(last)) > 1
    numbers = [int(t.prompt.id.split("/")[1]) for _, ts in steps for t in ts]
    assert min(numbers) >= inherited


def test_the_share_of_the_expert_decays(monkeypatch, tmp_path):
    """decay ** round, by count: 2,400 tokens a round, six standard errors (false alarm 2e-9 each)."""
    recipe = make_recipe(method__name="dagger", method__decay=0.6, train__batch_size=400, train__steps=4)
    s = make_setup(recipe, tmp_path)
    for number, share in enumerate((1.0, 0.6, 0.36, 0.216)):
        fresh = collect(s.sources, s.method.prefixes, s.options, loop._this_round(s, Progress(round=number)))
        by_expert = [not x for t in fresh for x in t.is_student]
        n = len(by_expert)
        assert abs(sum(by_expert) / n - share) <= 6 * (share * (1 - share) / n) ** 0.5


@pytest.mark.parametrize("processes", [2, 3])
def test_the_replayed_batch_does_not_depend_on_the_processes(tmp_path, processes):
    """Each process keeps its own share of the pool; together they draw the batch that one process would."""
    recipe = make_recipe(
        method__name="dagger", train__batch_size=10, train__samples_per_prompt=2, train__steps_per_round=1
    )
    s = make_setup(recipe, tmp_path)

    def drawn(process: int, num: int, step: int) -> list[str]:
        fake = SimpleNamespace(process_index=process, num_processes=num)
        mine = replace(s, accelerator=fake)  # pyright: ignore[reportArgumentType]
        pool = []
        for r in range(3):
            progress = Progress(round=r, prompts=5 * r, step=step)
            pool += collect(s.sources, s.method.prefixes, s.options, loop._this_round(mine, progress))
        return [t.id for t in loop._replayed(mine, Progress(round=2, prompts=10, step=step), pool)]

    for step in (2, 9):
        alone = drawn(0, 1, step)
        shares = [drawn(i, processes, step) for i in range(processes)]
        assert sorted(x for share in shares for x in share) == sorted(alone)
        assert len(set(alone)) == 10
    chosen = generator(recipe.seed, "replay", 2).choice(30, size=10, replace=False)
    assert len(drawn(0, 1, 2)) == len(chosen)


def test_budget_and_records_of_a_run(tmp_path):
    """Counters by hand; one record a step, evaluations at the start, when due and at the end."""
    recipe = make_recipe(
        method__name="opd-f",
        train__steps=5,
        evaluate__every_steps=2,
        warm_start__method="sft",
        warm_start__max_steps=3,
    )
    result = train(recipe, tmp_path / "run", console=quiet_console())
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r["kind"] == "train"] == [4, 5, 6, 7, 8]
    assert [r["step"] for r in rows if r["kind"] == "eval"] == [3, 5, 7, 8]
    assert result.reason == "max_steps"
    spent = result.budget
    assert (spent["optimizer_steps"], spent["trajectories"], spent["expert_queries"]) == (8, 64, 64 * 6)
    warm = json.loads((tmp_path / "run" / "warm_start" / "result.json").read_text())
    assert warm["progress"]["trajectories"] == 24
    assert spent["cpu_seconds"] > warm["budget"]["cpu_seconds"]
    for r in rows:
        assert r["kind"] == "end" or r["seconds"].keys() >= {"evaluate"}


def test_a_warm_start_is_where_the_method_begins(tmp_path):
    """The first evaluation of the main run is the last of the warm start; prompts go on where it stopped."""
    recipe = make_recipe(
        train__steps=1, warm_start__method="kd", warm_start__max_steps=4, evaluate__every_steps=4
    )
    train(recipe, tmp_path / "run", console=quiet_console())

    def evaluations(folder):
        rows = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
        return [r for r in rows if r["kind"] == "eval"]

    last, first = evaluations(tmp_path / "run" / "warm_start")[-1], evaluations(tmp_path / "run")[0]
    for name in ("accuracy_greedy", "validation_loss_nats"):
        assert last["metrics"][name]["value"] == pytest.approx(first["metrics"][name]["value"], abs=1e-6)
    assert first["trajectories"] == last["trajectories"] == 32


def test_two_runs_of_a_recipe_are_one(tmp_path):
    """In one process, one after another, dropout included: the recipe and its seed decide the weights.

    Fails if dropout draws from whatever the global stream happens to be.
    """
    lora = {"rank": 2, "dropout": 0.3, "target_modules": ["q_proj", "v_proj"]}
    recipe = make_recipe(student__lora=lora, train__steps=2)
    other = make_recipe(student__lora=lora, train__steps=2, seed=1)
    files = []
    for name, r in (("a", recipe), ("b", recipe), ("c", other)):
        train(r, tmp_path / name, console=quiet_console())
        files.append((tmp_path / name / "final" / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


def test_uneven_responses_through_the_whole_loop(monkeypatch, tmp_path):
    """Own task, own expert, micro-batches, a policy gradient: the trained tokens are the emitted ones."""
    expert = LocalExpert(make_model(seed=60, vocab=12), 12, identity="sixty")
    recipe = make_recipe(method__name="opd-pg", train__micro_batch_size=3, train__steps=3)
    s = make_setup(recipe, tmp_path, task=Babble(), expert=expert)
    progress = Progress()
    steps = watched(monkeypatch, s, progress)
    assert progress.response_tokens == sum(len(t.response_ids) for _, ts in steps for t in ts)
    assert progress.expert_queries == progress.response_tokens
