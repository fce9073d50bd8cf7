"""Further evaluation sets, samples and their metrics in a run: what is measured, when, and what is refused before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from small import make_parts, make_recipe, quiet_console
from understudy.config import load_recipe, recipe_from_table, warm_start_recipe
from understudy.errors import ConfigError
from understudy.evaluation.repeats import Graded, at_k, majority_at_k
from understudy.evaluation.score import Evaluation, Plan, evaluate
from understudy.measure import checkpoint_and_recipe, evaluate_checkpoint
from understudy.plans import evaluation_plan, further_plans
from understudy.resolved import resolved_recipe
from understudy.rollouts.drafts import DraftBook
from understudy.run import train
from understudy.tasks.countdown import Generator, read_folder
from understudy.wiring import limits_of

SAMPLE = str(Path(__file__).parent.parent / "data" / "countdown_sample")
LONGER = {"task": {"length": 9}, "prompts": 12}
SELDOM = {
    "task": {"kind": "modular_addition", "modulus": 3, "length": 4},
    "every": "end",
    "samples_per_prompt": 1,
}


def sampled_recipe(**changes):
    settings = {"evaluate__samples_per_prompt": 4, "evaluate__ks": [1, 2, 4], "evaluate__prompts": 6}
    return make_recipe(**settings | {"evaluate__also": {"longer": LONGER, "seldom": SELDOM}} | changes)


def plans_of(recipe, parts=None) -> dict[str, Plan]:
    parts = parts or make_parts(recipe)
    own = evaluation_plan(recipe, parts, limits_of(recipe, parts))
    return {"": own, **further_plans(recipe, parts, own)}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    recipe = sampled_recipe(train__steps=4, evaluate__every_steps=2, optimizer__learning_rate=0.02)
    folder = tmp_path_factory.mktemp("sets") / "run"
    train(recipe, folder, console=quiet_console())
    return folder


def evals(folder) -> list[dict]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "eval"]


def test_each_set_is_measured_when_it_should_be(run_folder):
    sets = [{name.rpartition("/")[0] for name in record["metrics"]} for record in evals(run_folder)]
    assert [record["step"] for record in evals(run_folder)] == [0, 2, 4]
    assert sets == [{"", "longer", "seldom"}, {"", "longer"}, {"", "longer", "seldom"}]
    result = json.loads((run_folder / "result.json").read_text())["metrics"]
    assert result == evals(run_folder)[-1]["metrics"]
    assert {"pass@4", "majority@2", "longer/avg@1", "longer/pass@4", "seldom/pass@1"} <= set(result)
    assert "seldom/pass@2" not in result  # one sample a prompt there
    assert (result["accuracy_greedy"]["n"], result["longer/accuracy_greedy"]["n"]) == (6, 12)


def test_a_set_is_the_evaluation_of_its_own_task(run_folder):
    """The numbers of `longer` are those of a recipe whose own task it is, where no draw is involved."""
    place, recipe = checkpoint_and_recipe(run_folder, None)
    table = recipe.to_table()
    table["evaluate"].pop("also")
    alone = recipe_from_table(table, {"task.length": 9, "evaluate.prompts": 12})
    direct, joint = evaluate_checkpoint(place, alone), evaluate_checkpoint(place, recipe)
    for name in ("accuracy_greedy", "validation_loss_nats", "teacher_forced_accuracy"):
        assert joint.metrics[f"longer/{name}"] == direct.metrics[name]
    assert joint.by_prompt["longer/accuracy_greedy"] == direct.by_prompt["accuracy_greedy"]
    # Draws are its own: the two sets call their prompts the same.
    assert joint.metrics["longer/expert_kl_nats"] != direct.metrics["expert_kl_nats"]
    logged = json.loads((run_folder / "result.json").read_text())["metrics"]
    assert joint.to_json()["metrics"] == logged


def test_shown_rollouts_name_their_set(run_folder):
    rows = [json.loads(line) for line in (run_folder / "trajectories.jsonl").read_text().splitlines()]
    assert {row.get("set") for row in rows} == {None, "longer", "seldom"}


def test_reports_show_every_set(run_folder, monkeypatch):
    from understudy.reports import page as pages

    monkeypatch.setattr(pages, "AXES", {"steps": pages.AXES["steps"]})
    page = pages.write_report(run_folder).read_text()
    assert "Greedy accuracy on longer" in page
    assert "evaluation set seldom" in page
    names = {path.name for path in (run_folder / "figures").iterdir()}
    assert {"learning_pass_at_4_by_steps.png", "learning_longer_accuracy_greedy_by_steps.png"} <= names


def test_the_metrics_of_k_are_those_of_the_responses():
    recipe = sampled_recipe()
    parts = make_parts(recipe)
    plan = replace(plans_of(recipe, parts)[""], keeps_responses=True)
    found = evaluate(parts.student, plan)
    samples: dict[str, list[Graded]] = {}
    for row in found.responses:
        samples.setdefault(row["id"], []).append(Graded(row["is_correct"], row["answer"]))
    assert {len(row) for row in samples.values()} == {4}
    assert found.by_prompt["majority@4"] == {p: majority_at_k(row, 4) for p, row in samples.items()}
    for name, rates in at_k(samples, (1, 2, 4)).items():
        assert found.metrics[name].value == pytest.approx(np.mean(list(rates.values())), abs=1e-12)
    assert found.metrics["accuracy_sampled"].value == pytest.approx(found.metrics["pass@1"].value, abs=1e-12)


def test_two_processes_measure_the_same():
    recipe = sampled_recipe(evaluate__prompts=7)
    parts = make_parts(recipe)
    plan = plans_of(recipe, parts)["longer"]
    whole = evaluate(parts.student, plan)
    mine: dict[int, list] = {}

    def gather(process: int):
        def keep(items: list) -> list:
            mine[process] = items
            return [item for part in mine.values() for item in part]

        return keep

    found: list[Evaluation] = [
        evaluate(parts.student, plan, process=p, num_processes=2, gather=gather(p)) for p in range(2)
    ]
    for name, estimate in whole.metrics.items():
        other = found[1].metrics[name]
        assert (other.value, other.n) == (pytest.approx(estimate.value, abs=2e-5), estimate.n)


def test_drafts_change_no_number():
    recipe = sampled_recipe(evaluate__top_k=3, evaluate__temperature=0.8)
    parts = make_parts(recipe)
    book = DraftBook()
    for plan in plans_of(recipe, parts).values():
        plain = evaluate(parts.student, plan)
        drafted = replace(plan, drafts=book)
        for _ in range(2):
            found = evaluate(parts.student, drafted)
            assert found.metrics["accuracy_greedy"] == plain.metrics["accuracy_greedy"]
            assert found.by_prompt["accuracy_sampled"] == plain.by_prompt["accuracy_sampled"]
    assert sum(c.accepted for c in book._counts.values()) > 0


def test_truncation_is_of_the_samples_alone():
    """top_k = 1 at any temperature is greedy; the KL to the expert is still that of the student's own law."""
    own, cut = make_recipe(evaluate__prompts=16), make_recipe(evaluate__prompts=16, evaluate__top_k=1)
    parts = make_parts(own)
    whole, truncated = (evaluate(parts.student, plans_of(r, parts)[""]) for r in (own, cut))
    assert truncated.by_prompt["accuracy_sampled"] == whole.by_prompt["accuracy_greedy"]
    assert truncated.metrics["expert_kl_nats"] == whole.metrics["expert_kl_nats"]
    assert truncated.by_position["accuracy_sampled"] == whole.by_position["accuracy_greedy"]


def test_temperature_is_of_the_samples_too():
    """Near zero it is greedy; the KL to the expert stays that of temperature 1."""
    own, cold = (make_recipe(evaluate__prompts=16, evaluate__temperature=t) for t in (1.0, 1e-4))
    parts = make_parts(own)
    whole, sharp = (evaluate(parts.student, plans_of(r, parts)[""]) for r in (own, cold))
    assert sharp.by_position["accuracy_sampled"] == whole.by_position["accuracy_greedy"]
    assert sharp.by_position["accuracy_sampled"] != whole.by_position["accuracy_sampled"]
    assert sharp.metrics["expert_kl_nats"] == whole.metrics["expert_kl_nats"]


def test_an_oracle_expert_is_the_sets_own(run_folder):
    """KL to the oracle of `longer` with the same noise, not to that of the recipe's task, which has no law for its prompts."""
    metrics = evals(run_folder)[-1]["metrics"]
    assert metrics["longer/expert_kl_nats"]["value"] > 0
    recipe = sampled_recipe()
    parts = make_parts(recipe)
    plan = plans_of(recipe, parts)["longer"]
    assert plan.expert is not None
    assert plan.expert.identity == f"oracle:{plan.task.identity}|{parts.noise!r}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"evaluate__also": {"big": {"task": {"modulus": 5}}}},
            r"evaluate\.also\.big: .*6 token ids.*of 4 token ids",
        ),
        (
            {"evaluate__also": {"text": {"task": {"kind": "jsonl", "validation": "x"}}}},
            r"evaluate\.also\.text: ",
        ),
        (
            {"evaluate__also": {"long": {"task": {"length": 40}}}},
            r"evaluate\.also\.long: prompts of up to 41 tokens and responses of up to 40 do not fit the student's",
        ),
    ],
)
def test_a_set_that_does_not_fit_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        plans_of(make_recipe(**changes))


def test_ids_that_mean_something_else_are_refused(monkeypatch):
    recipe = sampled_recipe()
    parts = make_parts(recipe)

    class Renamed:
        def __getattr__(self, name):
            return getattr(parts.task, name)

        def decode(self, ids):
            return "".join(["zero", "one", "two", "="][i] for i in ids)

    with pytest.raises(
        ConfigError, match=r"token id 0 is '0' in the task .* and 'zero' in the student's own"
    ):
        plans_of(recipe, replace(parts, task=Renamed()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"evaluate__best_metric": "longr/pass@2"},
            r"is not a metric of this recipe\. Did you mean longer/pass@2\?",
        ),
        ({"evaluate__best_metric": "accuracy"}, r"evaluate\.best_metric = 'accuracy' is not a metric"),
        ({"evaluate__best_metric": "pass@3"}, "Did you mean"),
        (
            {"stop": {"metric": "seldom/pass@1", "target": 1.0}},
            r"stop\.metric = 'seldom/pass@1' decides at every eval",
        ),
        ({"evaluate__sampled": False}, r"set sampled = true, or ks = \[\]"),
        ({"evaluate__ks": [1, 5]}, r"ks must be in 1 \.\. samples_per_prompt = 4, got \[1, 5\]"),
        ({"evaluate__ks": [0]}, r"ks must be in 1"),
        ({"evaluate__ks": [2, 2]}, "ks lists something twice"),
        ({"evaluate__temperature": 0}, "temperature must be > 0"),
        ({"evaluate__top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
        ({"evaluate__top_k": 0}, "top_k must be > 0"),
        ({"evaluate__also": {"a/b": LONGER}}, "letters, digits, _ and - only, got 'a/b'"),
        (
            {"evaluate__also": {"a": {"task": {"lenght": 4}}}},
            r"evaluate\.also\.a\.task\.lenght.*Did you mean length",
        ),
        ({"evaluate__also": {"a": {"prompts": 4}}}, r"evaluate\.also\.a\.task is required"),
        ({"evaluate__also": {"a": LONGER | {"every": "step"}}}, r"every must be one of evaluation, end"),
        (
            {
                "evaluate__also": {"a": LONGER | {"samples_per_prompt": 2}},
                "evaluate__best_metric": "a/pass@4",
            },
            r"evaluate\.also\.a has 2 samples a prompt",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_at_load(changes, message):
    with pytest.raises(ConfigError, match=message):
        sampled_recipe(**changes)


def test_a_set_may_decide(tmp_path):
    recipe = sampled_recipe(
        evaluate__best_metric="longer/validation_loss_nats",
        stop={"metric": "longer/accuracy_greedy", "target": 0.0},
    )
    result = train(recipe, tmp_path / "run", console=quiet_console())
    assert result.reason == "target"  # any accuracy is at least 0: it stops at the first evaluation
    assert (tmp_path / "run" / "best").is_dir()
    # A run that stops ends there, so what is measured at the end is measured.
    assert "seldom/accuracy_greedy" in result.metrics


def test_a_stop_before_the_last_step_measures_the_end(tmp_path):
    """Patience ends the run at its second evaluation, which is then its last."""
    stop = {"metric": "accuracy_greedy", "patience": 1, "min_delta": 2.0}
    recipe = sampled_recipe(stop=stop, train__steps=9, evaluate__every_steps=2)
    result = train(recipe, tmp_path / "run", console=quiet_console())
    assert result.reason == "patience"
    records = evals(tmp_path / "run")
    assert [record["step"] for record in records] == [0, 2]
    assert "seldom/accuracy_greedy" in records[-1]["metrics"]


def test_a_resolved_recipe_reads_back(tmp_path):
    recipe = sampled_recipe()
    assert recipe.evaluate.also["longer"].task.length == 9
    assert recipe.evaluate.also["longer"].task.modulus == 3  # taken from the recipe's own task
    (tmp_path / "recipe.toml").write_text(resolved_recipe(recipe))
    assert load_recipe(tmp_path) == recipe


def test_a_warm_start_measures_the_recipes_own_task_alone():
    first = warm_start_recipe(sampled_recipe(warm_start={"method": "sft", "max_steps": 1}))
    assert first is not None
    assert (first.evaluate.also, first.evaluate.ks) == ({}, ())


PUZZLES = {"kind": "countdown", "format": "compact", "path": SAMPLE, "validation_rows": 4, "max_value": 999}
ROOMY = {
    "student__new__max_positions": 512,
    "expert": None,
    "method__name": "sft",
    "data__offline": "reference",
}


def countdown_recipe(task, **also):
    return make_recipe(task=task, evaluate__prompts=4, evaluate__also=also, **ROOMY)


def contents(plan: Plan) -> list[tuple[int, ...]]:
    return [(*sorted(p.meta["nums"]), p.meta["target"]) for p in plan.prompts]


def test_a_named_file_is_both_held_out_splits_of_a_set():
    recipe = countdown_recipe(PUZZLES, ood={"task": {"validation": "test_ood"}})
    parts = make_parts(recipe)
    own = evaluation_plan(recipe, parts, limits_of(recipe, parts), "test")
    found = further_plans(recipe, parts, own, "test")["ood"]
    rows = {p.content for p in read_folder(SAMPLE)["test_ood"]}
    assert set(contents(found)) <= rows
    assert not set(contents(own)) & rows
    # The recipe's own validation file says nothing about its test file.
    alone = countdown_recipe(
        {**PUZZLES, "validation_rows": None, "validation": "test_ood"}, same={"task": {}}
    )
    parts = make_parts(alone)
    own = evaluation_plan(alone, parts, limits_of(alone, parts), "test")
    assert contents(own) == contents(further_plans(alone, parts, own, "test")["same"])
    assert not set(contents(own)) & rows


def test_a_set_drops_the_inherited_setting_that_its_own_excludes():
    recipe = countdown_recipe(PUZZLES, ood={"task": {"validation": "test_ood"}, "prompts": 8})
    assert len(plans_of(recipe)["ood"].prompts) == 8
    named = {**PUZZLES, "validation_rows": None, "validation": "test_ood"}
    recipe = countdown_recipe(named, rows={"task": {"validation_rows": 3}, "prompts": 8})
    plans = plans_of(recipe)
    assert len(plans["rows"].prompts) == 3
    assert not set(contents(plans["rows"])) & {p.content for p in read_folder(SAMPLE)["test_ood"]}


def test_more_prompts_than_a_small_range_has_are_refused():
    """60 validation puzzles of three numbers up to 6 with targets up to 9, or so; never one of them twice."""
    task = {"kind": "countdown", "format": "compact", "operands": [3], "max_number": 6, "max_target": 9}
    there = len(Generator(operands=(3,), max_number=6, max_target=9).puzzles("validation", 0, 999))
    recipe = countdown_recipe(task)
    parts = make_parts(recipe)
    for wanted in (there, there + 1):
        recipe = replace(recipe, evaluate=replace(recipe.evaluate, prompts=wanted))
        if wanted == there:
            found = contents(evaluation_plan(recipe, parts, limits_of(recipe, parts)))
            assert len(set(found)) == there
            continue
        with pytest.raises(
            ConfigError,
            match=rf"prompts = {wanted}, and the validation split .* has only {there} different ones",
        ):
            evaluation_plan(recipe, parts, limits_of(recipe, parts))
