"""`understudy evaluate` on checkpoints and files, alone and against another."""

from __future__ import annotations

import json

import pytest
from command import understudy, write_recipe

from small import TABLE, make_recipe, quiet_console
from small_text import write_rows
from understudy.run import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate command")
    recipe = make_recipe(
        train__steps=2, evaluate__prompts=6, evaluate__also={"longer": {"task": {"length": 8}}}
    )
    for seed, name in enumerate("ab"):
        train(recipe.__class__(**{**vars(recipe), "seed": seed}), folder / name, console=quiet_console())
    return folder


ROWS = [{"id": i, "responses": ["1", "2"], "reference": str(1 + i % 3)} for i in range(6)]
WORSE = [{"id": i, "responses": ["5", "2" if i else "1"], "reference": str(1 + i % 3)} for i in range(5)]


def test_a_file_of_responses(tmp_path):
    file, out = write_rows(tmp_path / "r.jsonl", ROWS), tmp_path / "new" / "grades.jsonl"
    found = understudy("evaluate", file, "--grader", "numeric", "--out", out, "--json")
    assert (found.code, found.err) == (0, "")
    value = json.loads(found.out)
    assert (value["grader"], value["metrics"]["accuracy"]["mean"]) == ("numeric", pytest.approx(1 / 3))
    assert value["metrics"]["pass@2"]["mean"] == pytest.approx(2 / 3)
    grades = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(grades) == 12
    assert {"id", "sample", "response", "score", "is_correct", "answer", "reference"} == set(grades[0])
    assert [row["response"] for row in grades[:2]] == ["1", "2"]
    assert (
        json.loads(understudy("evaluate", out, "--grader", "numeric", "--json").out)["metrics"]
        == value["metrics"]
    )
    shown = understudy("evaluate", file, "--grader", "numeric")
    assert "majority@2" in shown.out
    # One sample's accuracy is told once.
    assert "accuracy" in shown.out
    assert "@1" not in shown.out
    assert shown.out.rstrip().endswith("r.jsonl, graded by numeric")


def test_one_file_against_another(tmp_path):
    a, b = write_rows(tmp_path / "a.jsonl", ROWS), write_rows(tmp_path / "b.jsonl", WORSE)
    found = json.loads(understudy("evaluate", a, "--against", b, "--grader", "exact", "--json").out)
    entry = found["metrics"]["accuracy"]
    # prompts 0 to 4: A has 1/2 on 0, 1, 3 and 4, B on 0, 1 and 4
    assert (entry["value_a"], entry["value_b"]) == (pytest.approx(0.4), pytest.approx(0.3))
    assert (entry["difference"]["n"], entry["num_higher"], entry["num_lower"]) == (5, 1, 0)
    shown = understudy("evaluate", a, "--against", b, "--grader", "exact")
    assert "cannot tell" in shown.out
    assert "+0.1000" in shown.out


def test_a_run_with_its_further_sets_and_its_responses(runs, tmp_path):
    out = tmp_path / "responses.jsonl"
    options = ["--samples", 2, "--set", "evaluate.ks=[2]", "--out", out, "--json"]
    found = understudy("evaluate", runs / "a", *options)
    assert found.code == 0, found.err
    assert {"accuracy_greedy", "pass@2", "longer/majority@2"} <= set(json.loads(found.out)["metrics"])
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(written) == 2 * 2 * 6
    assert {(row["id"].count("/"), row.get("set")) for row in written} == {(1, None), (2, "longer")}
    for options in ((), ("--of-set", "longer")):
        again = understudy("evaluate", out, "--grader", "exact", *options, "--json")
        assert json.loads(again.out)["metrics"]["pass@2"]["n"] == 6
    refused = understudy("evaluate", out, "--grader", "exact", "--of-set", "longest")
    assert (refused.code, "no row of the set 'longest'" in " ".join(refused.err.split())) == (2, True)
    compared = json.loads(understudy("discrepancy", out, out, "--label", "a", "--label", "b", "--json").out)
    assert compared["num_prompts"] == [6, 6]


def test_the_responses_are_never_overwritten(tmp_path):
    file = write_rows(tmp_path / "r.jsonl", ROWS)
    before = file.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(file)
    for out in (file, tmp_path / "x" / ".." / "r.jsonl", tmp_path / "link.jsonl"):
        found = understudy("evaluate", file, "--grader", "exact", "--out", out)
        assert (found.code, "would replace" in " ".join(found.err.replace("│", " ").split())) == (2, True)
        assert file.read_bytes() == before


def test_the_p_that_is_shown_is_of_the_test_that_decided(tmp_path):
    """Eight prompts a little better and one far worse: the sign test says otherwise than the test of the mean."""
    better = [
        {"id": i, "responses": ["1"] * (10 if i else 5) + ["2"] * (0 if i else 5), "reference": "1"}
        for i in range(9)
    ]
    worse = [
        {"id": i, "responses": ["1"] * (9 if i else 10) + ["2"] * (1 if i else 0), "reference": "1"}
        for i in range(9)
    ]
    a, b = write_rows(tmp_path / "a.jsonl", better), write_rows(tmp_path / "b.jsonl", worse)
    entry = json.loads(understudy("evaluate", a, "--against", b, "--grader", "exact", "--json").out)[
        "metrics"
    ]["accuracy"]
    assert entry["p_verdict"] == entry["p_sign_flip"] != entry["p_sign"]
    shown = understudy("evaluate", a, "--against", b, "--grader", "exact").out
    line = next(line for line in shown.splitlines() if line.startswith("accuracy"))
    assert f"{entry['p_sign_flip']:.3g}" in line.split()
    ones = [{"id": i, "response": "1", "reference": "1"} for i in range(9)]
    zeros = [{"id": i, "response": "1" if i < 2 else "2", "reference": "1"} for i in range(9)]
    a, b = write_rows(tmp_path / "c.jsonl", ones), write_rows(tmp_path / "d.jsonl", zeros)
    entry = json.loads(understudy("evaluate", a, "--against", b, "--grader", "exact", "--json").out)[
        "metrics"
    ]["accuracy"]
    assert (entry["p_verdict"], entry["verdict"]) == (entry["p_sign"], "higher")


def test_a_negative_seed_is_refused(runs):
    found = understudy("evaluate", runs / "a", "--seed", "-1")
    assert (found.code, "Traceback" in found.err) == (2, False)
    assert "Invalid value for '--seed'" in found.err


def test_one_run_against_another(runs):
    found = json.loads(understudy("evaluate", runs / "a", "--against", runs / "b", "--json").out)
    assert (found["a"], found["b"]) == (str(runs / "a"), str(runs / "b"))
    assert found["metrics"]["longer/validation_loss_nats"]["difference"]["n"] == 6
    itself = json.loads(understudy("evaluate", runs / "a", "--against", runs / "a", "--json").out)
    for entry in itself["metrics"].values():
        assert (entry["difference"]["value"], entry["verdict"]) == (0.0, "cannot tell")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no --recipe and no --grader is given"),
        (["--grader", "exact", "--split", "test"], "--split chooses what a checkpoint answers"),
        (["--grader", "exact", "--samples", "3"], "--samples chooses what a checkpoint answers"),
        (["--grader", "exact", "--set", "evaluate.ks=[1]"], "--set changes a recipe; give --recipe"),
        (["--grader", "exakt"], "'exakt' is not one of 'exact', 'numeric'"),
        (["--grader", "exact", "--against", "."], "two checkpoints or two .jsonl files, not one of each"),
        (["--grader", "exact", "--against", "x.jsonl"], "no such file"),
        (["--grader", "exact", "--against", "x.jsonl", "--out", "y"], "leave out --against"),
        (["--grader", "gsm8k"], "finds no answer in the reference"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path, options, message):
    file = write_rows(tmp_path / "r.jsonl", ROWS)
    found = understudy("evaluate", file, *options)
    assert found.code == 2
    assert message in " ".join(found.err.replace("│", " ").split())
    assert found.out == ""
    assert "Traceback" not in found.err


def test_a_checkpoint_is_graded_by_its_task(runs, tmp_path):
    found = understudy("evaluate", runs / "a", "--grader", "exact")
    assert (found.code, "is graded by its recipe's task" in found.err) == (2, True)
    recipe = write_recipe(tmp_path / "modular.toml", TABLE)
    file = write_rows(tmp_path / "r.jsonl", ROWS)
    found = understudy("evaluate", file, "--recipe", recipe)
    assert (found.code, "whose responses are not graded as texts" in found.err) == (2, True)


def test_the_graders_of_the_command_are_those_there_are():
    from understudy.cli.evaluate import GraderChoice
    from understudy.evaluation.responses import FILE_GRADERS

    assert tuple(choice.value for choice in GraderChoice) == FILE_GRADERS
