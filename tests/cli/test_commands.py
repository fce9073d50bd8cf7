"""Each command on a run of milliseconds: what it prints for a person, for a program, and where it writes."""

import json
import re
import tomllib
from typing import Any
from unittest import mock

import pytest
from command import understudy, write_recipe
from transformers import AutoModelForCausalLM

from small import TABLE
from small_text import rows, write_rows
from understudy.config import load_recipe
from understudy.methods import METHODS
from understudy.worker import run_job

COMPARE = {"methods": ["sft", "nail-f"], "seeds": [0], "workers": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    recipe = write_recipe(folder / "tiny.toml", TABLE)
    return (
        recipe,
        folder / "run",
        understudy("train", recipe, "--out", folder / "run", "--set", "method.name=nail-f"),
    )


def test_train_ends_with_metrics_time_and_a_checkpoint_that_loads(trained):
    _, folder, found = trained
    assert found.code == 0
    lines = found.out.splitlines()
    assert lines[0].split("  ")[0] == "metric"
    accuracy = next(line for line in lines if line.startswith("accuracy_greedy"))
    logged = json.loads((folder / "result.json").read_text())["metrics"]["accuracy_greedy"]
    interval = f"{logged['low']:.4f} to {logged['high']:.4f}"
    assert re.split(r"  +", accuracy) == [
        "accuracy_greedy",
        f"{logged['value']:.4f}",
        interval,
        str(logged["n"]),
    ]
    (time,) = (line for line in lines if line.startswith("time: "))
    shares = [int(part.split("(")[1].split("%")[0]) for part in time.split(", ")]
    assert 98 <= sum(shares) <= 102
    assert f"checkpoint: {folder / 'final'}" in lines
    assert f'load it: transformers.AutoModelForCausalLM.from_pretrained("{folder / "final"}")' in lines
    assert AutoModelForCausalLM.from_pretrained(folder / "final").config.vocab_size == 4
    assert "step 2" in found.err


def test_train_json_is_json_alone(trained):
    recipe, folder, _ = trained
    # A finished run is returned as it is, so this costs nothing.
    found = understudy("train", recipe, "--out", folder, "--set", "method.name=nail-f", "--resume", "--json")
    assert found.code == 0
    made = json.loads(found.out)
    assert made["method"] == "nail-f"
    assert made["checkpoint"] == str(folder / "final")
    assert made["budget"]["optimizer_steps"] == 2
    assert set(made["metrics"]["accuracy_greedy"]) == {"mean", "low", "high", "n"}
    assert set(made["seconds"]) >= {"collect", "train", "evaluate"}


def test_an_existing_run_is_neither_overwritten_nor_resumed_with_other_settings(trained):
    recipe, folder, _ = trained
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found = understudy("train", recipe, "--out", folder, "--set", "method.name=nail-f")
    assert found.code == 2
    assert "already holds a run. Use --resume to go on, --overwrite to start anew" in found.err
    found = understudy("train", recipe, "--out", folder, "--seed", 5, "--set", "train.steps=9", "--resume")
    assert found.code == 2
    # Every changed key with both values, and none that is the same.
    assert "(method.name: 'nail-f' -> 'opd-f', seed: 0 -> 5, train.steps: 2 -> 9)" in found.err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_overwrite_does_not_delete_what_is_no_run(trained, tmp_path):
    recipe, _, _ = trained
    (tmp_path / "thesis.txt").write_text("years of work")
    found = understudy("train", recipe, "--out", tmp_path, "--overwrite")
    assert found.code == 2
    assert "not deleting it" in found.err
    assert (tmp_path / "thesis.txt").exists()


def test_dry_run_prints_a_recipe_that_is_this_recipe(trained, tmp_path, monkeypatch):
    recipe, _, _ = trained
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("understudy.run.build", None)  # nothing may be loaded
    changes = ["--set", "method.name=gkd", "--set", "method.beta=0.3", "--seed", 7]
    found = understudy("train", recipe, *changes, "--dry-run")
    assert found.code == 0
    assert "# gkd = prefixes: mixture per sequence" in found.out
    (tmp_path / "resolved.toml").write_text(found.out)
    overrides = {"method.name": "gkd", "method.beta": 0.3, "seed": 7}
    assert load_recipe(tmp_path / "resolved.toml") == load_recipe(recipe, overrides)
    assert [path.name for path in tmp_path.iterdir()] == ["resolved.toml"]


def test_the_default_folder_is_named_after_the_recipe(trained, tmp_path, monkeypatch):
    recipe, _, _ = trained
    monkeypatch.chdir(tmp_path)
    assert understudy("train", recipe, "--set", "train.steps=1", "--set", "name=small").code == 0
    assert (tmp_path / "runs" / "small" / "final" / "config.json").exists()


class InProcess:
    """Instead of a worker process, whose start would cost more than all the runs here."""

    def run(self, job: dict[str, Any]) -> str | None:
        return run_job(job)

    def close(self) -> None:
        return None


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    recipe = write_recipe(folder / "tiny.toml", {**TABLE, "compare": COMPARE})
    with mock.patch("understudy.comparison.Worker", InProcess):
        found = understudy(
            "compare", recipe, "--out", folder / "out", "--methods", "sft,opd-f,nail-f", "--seed", 4
        )
    return recipe, folder / "out", found


@pytest.fixture
def without_drawing(monkeypatch):
    """A report costs seconds; where it is not what is looked at, none is drawn."""
    monkeypatch.setattr("understudy.reports.page.write_report", lambda folder: folder / "report.html")


def test_compare_ends_with_a_table_a_figure_and_a_report(compared):
    _, folder, found = compared
    assert found.code == 0
    for name in ("sft", "opd-f", "nail-f"):
        assert any(line.startswith(name) for line in found.out.splitlines())
    lines = found.out.splitlines()
    (figure,) = (line.removeprefix("figure: ") for line in lines if line.startswith("figure: "))
    (report,) = (line.removeprefix("report: ") for line in lines if line.startswith("report: "))
    assert figure == str(folder / "figures" / "story.png")
    assert (folder / "figures" / "story.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (folder / "report.html").read_text()
    assert report == str(folder / "report.html")


def test_compare_json_is_one_object_a_method(compared, without_drawing):
    recipe, folder, _ = compared
    flags = ["--methods", "sft,opd-f,nail-f", "--seed", 4, "--resume"]
    found = understudy("compare", recipe, "--out", folder, *flags, "--json")
    assert found.code == 0
    made = json.loads(found.out)
    assert [row["method"] for row in made] == ["sft", "opd-f", "nail-f"]
    for row in made:
        assert set(row["budget"]) == {"trajectories", "expert_queries", "optimizer_steps", "cpu_seconds"}
        assert all(set(entry) == {"mean", "low", "high", "n"} for entry in row["metrics"].values())
        assert row["metrics"]["accuracy_greedy"]["n"] == 1


def test_compare_flags_replace_methods_and_seeds(compared):
    recipe, _, _ = compared
    found = understudy("compare", recipe, "--methods", "kd, opd-r", "--seed", 1, "--seed", 2, "--dry-run")
    assert found.code == 0
    assert tomllib.loads(found.out)["compare"]["methods"] == ["kd", "opd-r"]
    assert tomllib.loads(found.out)["compare"]["seeds"] == [1, 2]
    assert found.out.startswith("# 2 methods x 2 seeds = 4 runs\n")


def test_a_failed_run_is_told_and_the_others_are_kept(compared, tmp_path, monkeypatch, without_drawing):
    recipe, _, _ = compared
    monkeypatch.setattr("understudy.comparison.Worker", InProcess)
    # A learning rate that overflows after one step; the other cell is untouched by it.
    bad: dict[str, Any] = {"sft": {"optimizer.learning_rate": 1e38, "optimizer.clip_norm": 1e38}}
    table = {**tomllib.loads(recipe.read_text()), "compare": {**COMPARE, "overrides": bad}}
    found = understudy(
        "compare", write_recipe(tmp_path / "r.toml", table), "--out", tmp_path / "out", "--json"
    )
    assert found.code == 1
    sft, nail = json.loads(found.out)
    assert (sft["seeds"], sft["failed"], nail["seeds"], nail["failed"]) == (0, 1, 1, 0)
    (line,) = (line for line in found.err.splitlines() if line.startswith("failed: "))
    assert line.startswith("failed: sft, seed 0: the loss of step ")
    assert "not finite" in line


def test_evaluate_prints_what_the_run_logged(trained):
    recipe, folder, _ = trained
    logged = json.loads((folder / "result.json").read_text())["metrics"]["validation_loss_nats"]
    found = understudy("evaluate", folder, "--json")
    assert found.code == 0
    made = json.loads(found.out)
    assert made["metrics"]["validation_loss_nats"]["mean"] == logged["value"]
    found = understudy("evaluate", folder / "final", "--recipe", recipe, "--split", "test", "--prompts", 4)
    assert found.code == 0
    assert "on the test prompts of tiny" in found.out
    assert found.out.startswith("metric")


def test_report_names_what_it_wrote(compared, monkeypatch):
    """`compare` has drawn this folder already; that `report` asks for the same is enough here."""
    _, folder, _ = compared
    page, asked = folder / "report.html", []
    monkeypatch.setattr("understudy.reports.page.write_report", lambda place: asked.append(place) or page)
    found = understudy("report", folder, "--json")
    assert found.code == 0
    assert json.loads(found.out)["report"] == str(page)
    assert str(folder / "figures" / "story.png") in json.loads(found.out)["figures"]
    assert f"report: {page}" in understudy("report", folder).out.splitlines()
    assert asked == [folder, folder]


def test_methods_lists_every_row_with_its_source():
    found = understudy("methods")
    assert found.code == 0
    for name, row in METHODS.items():
        (line,) = (line for line in found.out.splitlines() if line.split(" ")[0] == name)
        for text in (row.prefixes.text, row.objective().text, row.gate, row.source):
            assert text in line
    made = json.loads(understudy("methods", "--json").out)
    assert [row["name"] for row in made] == list(METHODS)


def test_methods_in_detail():
    found = understudy("methods", "nail-known")
    assert found.code == 0
    assert METHODS["nail-known"].summary in found.out
    assert "a known noise channel" in found.out
    made = json.loads(understudy("methods", "nail-f", "--json").out)
    assert made["loss"] == {"exact": "KL(expert || student)", "sampled": "cross-entropy of one expert token"}
    found = understudy("methods", "nail-g")
    assert (found.code, "Did you mean nail-" in found.err) == (2, True)


def test_doctor_prints_findings_and_fails_on_problems(trained):
    recipe, _, _ = trained
    found = understudy("doctor", recipe)
    assert found.code == 0
    assert found.out.rstrip().endswith("0 warnings, 0 problems")
    found = understudy("doctor", recipe, "--set", "expert.noise={law='corrupted-argmax', eta=0.9}")
    assert found.code == 1
    assert "-> Lower expert.noise.eta" in found.out
    found = understudy("doctor", recipe, "--set", "expert.noise={law='corrupted-argmax', eta=0.9}", "--json")
    assert found.code == 1
    (problem,) = (finding for finding in json.loads(found.out) if finding["status"] == "problem")
    assert set(problem) == {"check", "status", "found", "fix"}
    assert problem["check"] == "noise"


def test_init_then_train_on_text_offline(tmp_path):
    """What a newcomer does without a network: text, a checkpoint made of it, a run on it."""
    train = write_rows(tmp_path / "train.jsonl", rows(0, 24))
    sizes = ["--layers", 1, "--width", 16, "--heads", 2, "--max-positions", 64, "--vocab-size", 261]
    found = understudy("init", tmp_path / "model", "--text", train, "--field", "prompt", *sizes)
    assert found.code == 0
    parameters = AutoModelForCausalLM.from_pretrained(tmp_path / "model").num_parameters()
    assert f"{parameters:,} parameters, 261 tokens" in found.out
    assert "understudy doctor RECIPE" in found.out
    table = {
        **{name: TABLE[name] for name in ("train", "optimizer", "evaluate")},
        "name": "sums",
        "task": {
            "kind": "jsonl",
            "train": str(train),
            "validation_rows": 6,
            "max_prompt_tokens": 8,
            "max_new_tokens": 4,
        },
        "student": {"checkpoint": str(tmp_path / "model")},
        "method": {"name": "sft"},
        "data": {"offline": "reference"},
    }
    recipe = write_recipe(tmp_path / "sums.toml", table)
    assert understudy("doctor", recipe).code == 0
    found = understudy("train", recipe, "--out", tmp_path / "run")
    assert found.code == 0, found.err
    assert "validation_loss_nats" in found.out
    assert understudy("init", tmp_path / "model").code == 2
    made = json.loads(
        understudy("init", tmp_path / "t", "--tokenizer-only", "--vocab-size", 261, "--json").out
    )
    assert made == {"folder": str(tmp_path / "t"), "vocab_size": 261, "parameters": 0}
