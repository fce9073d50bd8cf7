"""A comparison on held-out prompts: what is measured, with what, once; and the numbers that come of it, by hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import understudy

from small import chained_recipe, quiet_console
from understudy import comparison_evaluation
from understudy.comparison import compare
from understudy.comparison_evaluation import evaluate_comparison
from understudy.config import load_recipe
from understudy.errors import ConfigError, TrainingError
from understudy.files import write_json
from understudy.final_checkpoints import compared_recipe, entries_of
from understudy.measure import evaluate_checkpoint

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")}


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Path:
    """Two methods with the expert of each seed, and one that imitates an expert of another task; read only."""
    place = tmp_path_factory.mktemp("compared")
    far = {"method.name": "sft", "expert.task": "own", "expert.checkpoint": f"{place}/far-{{seed}}/final"}
    recipe = load_recipe(
        chained_recipe(place),
        {
            "compare": {
                "methods": ["kd", "opd-f", "other"],
                "seeds": [1, 2],
                "workers": 1,
                "overrides": {"other": far},
            },
            "evaluate.prompts": 6,
            "evaluate.samples_per_prompt": 2,
            "evaluate.ks": [2],
            "evaluate.also": {"longer": {"task": {"length": 8}, "every": "end"}},
        },
    )
    rows = compare(recipe, place / "all", console=quiet_console())
    assert [row["failed"] for row in rows] == [0, 0, 0]
    return place / "all"


@pytest.fixture
def folder(compared, tmp_path) -> Path:
    """A copy that may be changed; the stages stay where they are."""
    return Path(shutil.copytree(compared, tmp_path / "all"))


class Counter:
    """Counts what is really measured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: list[str] = []
        real = comparison_evaluation.run_job

        def counted(job: dict[str, Any]) -> str | None:
            self.files.append(Path(job["file"]).stem.rpartition("-")[0])
            return real(job)

        monkeypatch.setattr(comparison_evaluation, "run_job", counted)

    def since(self) -> list[str]:
        found, self.files = self.files, []
        return found


def kept_file(folder: Path, name: str, split: str = "test") -> Path:
    """Of a measurement by label and seed, whatever its key: there is one."""
    (file,) = (folder / "evaluations" / split).glob(f"{name}-????????????.json")
    return file


def evaluated(folder: Path, **options: Any) -> dict[str, Any]:
    return evaluate_comparison(folder, console=quiet_console(), **options)


def test_cells_start_and_experts_are_measured_for_every_seed(folder):
    found = evaluated(folder, split="test")
    labels = [(row["label"], row["kind"], row["for_all_seeds"], row["seeds"]) for row in found["rows"]]
    # The start is one model: it is measured once, with the first seed.
    assert labels == [
        *((label, "method", False, [1, 2]) for label in ("kd", "opd-f", "other")),
        ("start", "start", True, [1]),
        *((label, "expert", False, [1, 2]) for label in ("expert", "expert, far")),
    ]
    assert found["left_out"] == []
    for row in found["rows"]:
        names = set(row["metrics"])
        assert {"accuracy_greedy", "pass@2", "longer/validation_loss_nats"} <= names
        # The expert is asked about cells alone.
        assert ({"expert_kl_nats", "longer/expert_kl_nats"} <= names) == (row["kind"] == "method")
    assert json.loads((folder / "evaluations" / "test.json").read_text()) == found


def test_on_validation_prompts_a_cell_has_the_numbers_of_its_run(folder):
    """Equal to the bit: the same weights, prompts, random numbers and expert."""
    evaluated(folder)
    for label, seed in (("kd", 1), ("opd-f", 2), ("other", 2)):
        file = kept_file(folder, f"{label}-seed{seed}", "validation")
        logged = json.loads((folder / "cells" / f"{label}-seed{seed}" / "result.json").read_text())["metrics"]
        assert json.loads(file.read_text())["metrics"] == logged


def test_an_expert_is_measured_as_a_student_of_the_comparisons_task(folder, compared):
    recipe = compared_recipe(folder)
    entries, _ = entries_of(folder, recipe)
    (far,) = (entry for entry in entries if entry.label == "expert, far" and entry.seed == 2)
    assert far.checkpoint == str(compared.parent / "far-2" / "final")
    assert (far.recipe.task, far.recipe.seed, far.recipe.expert) == (recipe.task, 2, None)
    evaluated(folder, split="test")
    kept = json.loads(kept_file(folder, "expert, far-seed2").read_text())
    direct = evaluate_checkpoint(far.checkpoint, far.recipe, split="test")
    assert kept["metrics"] == direct.to_json()["metrics"]
    assert kept["by_prompt"] == direct.by_prompt


def test_what_is_measured_is_kept_until_something_changes(folder, monkeypatch):
    counter = Counter(monkeypatch)
    first = evaluated(folder, split="test")
    assert len(counter.since()) == 11
    assert evaluated(folder, split="test") == first
    assert counter.since() == []
    # A killed call: what it had not done, nothing else.
    kept_file(folder, "kd-seed2").unlink()
    kept_file(folder, "start-seed1").write_text('{"key": "half')
    whole = json.loads(kept_file(folder, "opd-f-seed2").read_text())
    kept_file(folder, "opd-f-seed2").write_text(json.dumps({"key": whole["key"], "metrics": []}))
    assert evaluated(folder, split="test") == first
    assert counter.since() == ["kd-seed2", "opd-f-seed2", "start-seed1"]
    # Other weights, of one cell.
    weights = "final/model.safetensors"
    shutil.copy(folder / "cells" / "kd-seed1" / weights, folder / "cells" / "opd-f-seed1" / weights)
    changed = evaluated(folder, split="test")
    assert counter.since() == ["opd-f-seed1"]
    assert changed["rows"][0] == first["rows"][0]
    assert changed["rows"][1] != first["rows"][1]
    # Another setting of the evaluator, another split; training settings decide nothing.
    fewer = evaluated(folder, split="test", overrides=["evaluate.prompts=5"])
    assert (len(counter.since()), fewer["evaluate"]["prompts"]) == (11, 5)
    # What was measured before with other settings is still there.
    assert evaluated(folder, split="test") == changed
    assert counter.since() == []
    evaluated(folder)
    assert len(counter.since()) == 11
    evaluated(folder, overrides=["optimizer.learning_rate=0.5", "train.steps=77"])
    assert counter.since() == []


def test_workers_change_no_number_and_lose_none(folder):
    """Two processes, one checkpoint that cannot be read: the others are kept, and are what one process measures."""
    broken = folder / "cells" / "kd-seed2" / "final" / "config.json"
    text = broken.read_text()
    broken.write_text("{}")
    with pytest.raises(TrainingError, match=r"1 of 11 checkpoints could not be measured \(kd, seed 2: "):
        evaluated(folder, split="test", overrides=["compare.workers=2"])
    assert len(list((folder / "evaluations" / "test").iterdir())) == 10
    broken.write_text(text)
    two = evaluated(folder, split="test")
    shutil.rmtree(folder / "evaluations")
    assert evaluated(folder, split="test") == two


VALUES = {
    # label -> seed -> prompt -> accuracy; the expert is there for seed 2 alone, the start is one model.
    "kd": {1: [1, 1, 0, 0], 2: [1, 0, 1, 0]},
    "opd-f": {1: [0, 0, 0, 0], 2: [0, 0, 0, 1]},
    "other": {1: [1, 1, 1, 1], 2: [1, 1, 1, 1]},
    "start": {1: [1, 0, 0, 0]},
    "expert": {2: [1, 1, 1, 0]},
    "expert, far": {1: [0, 1, 0, 0], 2: [0, 1, 0, 0]},
}


@pytest.fixture
def made_up(folder, monkeypatch) -> Path:
    """Measurements by hand in place of real ones."""

    def written(job: dict[str, Any]) -> str | None:
        head = job["head"]
        values = VALUES[head["label"]].get(head["seed"])
        found: dict[str, Any] = {"metrics": {}, "by_prompt": {}}
        if values is not None:
            accuracy = {"value": sum(values) / 4, "low": 0.0, "high": 1.0, "n": 4}
            by_prompt = {f"p{i}": float(value) for i, value in enumerate(values)}
            loss = {"p0": 1.0, "p1": float("inf")}
            found["metrics"]["accuracy_greedy"] = accuracy
            found["by_prompt"] = {"accuracy_greedy": by_prompt, "validation_loss_nats": loss}
            if head["expert"] is not None:
                found["by_prompt"] |= dict.fromkeys(
                    ("expert_kl_nats", "ood/reverse_expert_kl_nats"), by_prompt
                )
        write_json(Path(job["file"]), {**head, **found})
        return None

    monkeypatch.setattr(comparison_evaluation, "run_job", written)
    return folder


def test_means_and_differences_by_hand(made_up):
    found = evaluated(made_up, split="test")
    rows = {row["label"]: row["metrics"].get("accuracy_greedy") for row in found["rows"]}
    assert {label: row["mean"] for label, row in rows.items()} == {
        "kd": 0.5,
        "opd-f": 0.125,
        "other": 1.0,
        "start": 0.25,
        "expert": 0.75,
        "expert, far": 0.25,
    }
    assert rows["kd"]["by_seed"] == {"1": 0.5, "2": 0.5}
    assert (rows["expert"]["n"], rows["expert"]["low"]) == (1, None)
    # Two rates 0 and 1/4: 12.7 standard errors of 1/8 are cut to [0, 1].
    assert (rows["opd-f"]["n"], rows["opd-f"]["low"], rows["opd-f"]["high"]) == (2, 0.0, 1.0)
    pairs = {(pair["a"], pair["b"]): pair["metrics"] for pair in found["paired"]}
    assert list(pairs) == [
        *((a, "start") for a in ("kd", "opd-f", "other", "expert", "expert, far")),
        *((a, "expert") for a in ("kd", "opd-f", "other", "expert, far")),
        *((a, "expert, far") for a in ("kd", "opd-f", "other")),
    ]
    # One start for both seeds is one value, without an interval over seeds, and stands beside each of them.
    assert (rows["start"]["n"], rows["start"]["low"], rows["start"]["high"]) == (1, None, None)
    # kd: 1, 1/2, 1/2, 0 by prompt; start: 1, 0, 0, 0.
    against_start = pairs["kd", "start"]["accuracy_greedy"]
    assert (against_start["value_a"], against_start["value_b"]) == (0.5, 0.25)
    assert against_start["difference"]["value"] == 0.25
    assert (against_start["num_higher"], against_start["num_lower"]) == (2, 0)
    assert against_start["p_verdict"] == against_start["p_sign_flip"] == 2 / 4
    assert against_start["by_seed"] == {"1": 0.25, "2": 0.25}
    # Against the expert only seed 2 counts: 1, 0, 1, 0 against 1, 1, 1, 0.
    against_expert = pairs["kd", "expert"]["accuracy_greedy"]
    assert (against_expert["value_a"], against_expert["difference"]["value"]) == (0.5, -0.25)
    assert against_expert["by_seed"] == {"2": -0.25}
    # An infinite loss leaves its prompt out.
    assert pairs["kd", "start"]["validation_loss_nats"]["difference"]["n"] == 1


def test_against_one_label(made_up):
    found = evaluated(made_up, split="test", against="kd")
    assert [(pair["a"], pair["b"]) for pair in found["paired"]] == [
        (a, "kd") for a in ("opd-f", "other", "start", "expert", "expert, far")
    ]
    assert found["paired"][0]["metrics"]["accuracy_greedy"]["difference"]["value"] == -0.375
    starts = evaluated(made_up, split="test", against="start")
    assert {(pair["b"], *pair["metrics"]["accuracy_greedy"]["by_seed"]) for pair in starts["paired"][:3]} == {
        ("start", "1", "2")
    }
    with pytest.raises(ConfigError, match=r"nothing called 'opdf' to compare with\. Did you mean opd-f"):
        evaluated(made_up, split="test", against="opdf")


def test_what_is_not_there_is_left_out_and_said(folder, compared):
    header = json.loads((folder / "compare.json").read_text())
    for cell in header["cells"]:
        if (cell["label"], cell["seed"]) == ("opd-f", 2):
            cell["status"] = "failed"
    (folder / "compare.json").write_text(json.dumps(header))
    shutil.rmtree(folder / "cells" / "kd-seed1" / "final")
    recipe = compared_recipe(
        folder, {"compare.overrides.other": {"method.name": "sft", "expert.checkpoint": "gone/final"}}
    )
    entries, left_out = entries_of(folder, recipe)
    assert left_out == [
        "kd, seed 1: its checkpoint is gone",
        "opd-f, seed 2: failed",
        "gone: its checkpoint gone/final is gone",
    ]
    assert {entry.name for entry in entries} >= {"kd, seed 2", "opd-f, seed 1", "start"}


def test_a_warm_start_is_the_start(folder):
    header = json.loads((folder / "compare.json").read_text())
    for cell in header["cells"]:
        cell["warm_start"] = f"warm_start/seed{cell['seed']}"
    (folder / "compare.json").write_text(json.dumps(header))
    for seed in (1, 2):
        (folder / "warm_start" / f"seed{seed}" / "final").mkdir(parents=True)
    entries, _ = entries_of(folder, compared_recipe(folder))
    starts = [entry.checkpoint for entry in entries if entry.kind == "start"]
    assert starts == [str(folder / "warm_start" / f"seed{seed}" / "final") for seed in (1, 2)]


def test_a_checkpoint_that_cannot_be_measured_does_not_lose_the_others(folder):
    (folder / "cells" / "kd-seed2" / "final" / "config.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"1 of 11 checkpoints could not be measured \(kd, seed 2: "):
        evaluated(folder, split="test")
    assert len(list((folder / "evaluations" / "test").iterdir())) == 10
    assert not (folder / "evaluations" / "test.json").exists()


def test_a_start_or_expert_that_cannot_be_measured_is_left_out(folder, compared, monkeypatch):
    """Fails if it blocks the result, or if all that is kept of a trace is its last line."""
    real = comparison_evaluation.run_job

    def failing(job: dict[str, Any]) -> str | None:
        if job["head"]["label"] == "start":
            return "Traceback:\n  somewhere\nRuntimeError: no room\n"
        if (job["head"]["label"], job["head"]["seed"]) == ("expert", 2):
            return "no checkpoint there."
        return real(job)

    monkeypatch.setattr(comparison_evaluation, "run_job", failing)
    found = evaluated(folder, split="test")
    (trace,) = (folder / "evaluations" / "test").glob("*.error.txt")
    assert trace.read_text() == "Traceback:\n  somewhere\nRuntimeError: no room\n"
    assert trace.name.startswith("start-seed1-")
    assert found["left_out"] == [
        f"start: RuntimeError: no room (the whole text is in {trace.name})",
        "expert, seed 2: no checkpoint there.",
    ]
    assert [row["label"] for row in found["rows"]] == ["kd", "opd-f", "other", "expert", "expert, far"]
    assert {pair["b"] for pair in found["paired"]} == {"expert", "expert, far"}
    with pytest.raises(TrainingError, match=r"what all are compared with could not be measured \(start: "):
        evaluated(folder, split="test", against="start")
    monkeypatch.setattr(comparison_evaluation, "run_job", real)
    assert evaluated(folder, split="test")["left_out"] == []
    assert not trace.exists()


def test_labels_that_look_alike_as_files_are_kept_apart(folder):
    """Experts are called by their recipes' names, which may be anything."""
    entries, _ = entries_of(folder, compared_recipe(folder))
    alike = [replace(entries[0], label=label) for label in ("a/b", "a_b")]
    files = [comparison_evaluation._order(entry, folder, "test", {}).file for entry in alike]
    assert [file.name.startswith("a_b-seed1-") for file in files] == [True, True]
    assert files[0] != files[1]


@pytest.mark.parametrize("text", ['{"key": "of something else", "metrics": {}, "by_prompt": {}}', "{"])
def test_a_file_that_does_not_hold_what_was_measured_is_one_sentence(made_up, monkeypatch, text):
    def damaged(job: dict[str, Any]) -> None:
        Path(job["file"]).write_text(text)

    monkeypatch.setattr(comparison_evaluation, "run_job", damaged)
    with pytest.raises(TrainingError, match=r"does not hold the measurement of kd, seed 1.*evaluate again"):
        evaluated(made_up, split="test")


def test_what_another_call_is_writing_is_left_alone(made_up):
    place = made_up / "evaluations" / "test"
    place.mkdir(parents=True)
    part = place / ".kd-seed1-0123456789ab.json.1.part"
    part.write_text("half")
    evaluated(made_up, split="test")
    assert part.read_text() == "half"


def test_the_content_of_data_is_in_the_key(folder, tmp_path):
    """Of the own task, of an evaluation set and of a mixture's part; a folder of puzzles, too."""
    names = ("own", "set", "part", "kept")
    files = {name: tmp_path / f"{name}.jsonl" for name in names}
    for file in files.values():
        file.write_text("{}\n")
    puzzles = tmp_path / "puzzles"
    puzzles.mkdir()
    (puzzles / "test.jsonl").write_text("{}\n")
    part = {"task": {"kind": "jsonl", "train": str(files["part"])}}
    tables = [
        {"kind": "jsonl", "validation": str(files["own"])},
        {"ood": {"task": {"kind": "mixture", "parts": [part]}}, "set": {"task": {"test": str(files["set"])}}},
        {
            "kind": "countdown",
            "exclude": [str(files["kept"])],
            "path": str(puzzles),
            "validation": "test_ood",
        },
    ]
    places = [place for table in tables for place in comparison_evaluation._data_places(table)]
    assert sorted(places) == sorted([*map(str, files.values()), str(puzzles), "test_ood"])
    recipe = compared_recipe(
        folder,
        {
            "task": {"kind": "countdown", "format": "compact", "exclude": [str(files["kept"])]},
            "evaluate.also": {},
        },
    )
    entries, _ = entries_of(folder, recipe)

    def key() -> str:
        return comparison_evaluation._key(entries[0], "test", {})

    before = key()
    assert key() == before
    files["kept"].write_text("{} \n")
    assert key() != before


def test_a_distance_to_an_expert_is_compared_where_it_is_the_same_one(made_up):
    metrics = {
        (pair["a"], pair["b"]): set(pair["metrics"])
        for pair in evaluated(made_up, split="test", against="kd")["paired"]
    }
    asked = {"expert_kl_nats", "ood/reverse_expert_kl_nats"}
    assert metrics["opd-f", "kd"] == {"accuracy_greedy", "validation_loss_nats", *asked}
    assert metrics["other", "kd"] == {"accuracy_greedy", "validation_loss_nats"}


def test_an_expert_is_measured_in_the_precision_of_its_labels(folder):
    recipe = compared_recipe(folder, ["expert.dtype=bfloat16"])
    entries, _ = entries_of(folder, recipe)
    dtypes = {entry.label: entry.dtype for entry in entries}
    assert dtypes == {label: "bfloat16" if "expert" in label else "float32" for label in VALUES}
    found = evaluated(folder, split="test", overrides=["expert.dtype=bfloat16"])
    exact = evaluated(folder, split="test")
    losses = [
        {row["label"]: row["metrics"]["validation_loss_nats"]["mean"] for row in r["rows"]}
        for r in (found, exact)
    ]
    assert losses[0]["start"] == losses[1]["start"]
    assert losses[0]["expert"] != losses[1]["expert"]
    assert losses[0]["expert"] == pytest.approx(losses[1]["expert"], rel=0.02)


def test_what_cannot_be_evaluated_is_one_sentence(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"holds no comparison: it has no compare\.json"):
        evaluated(tmp_path)
    header = json.loads((folder / "compare.json").read_text())
    cells = [{**cell, "status": "running"} for cell in header["cells"]]
    (folder / "compare.json").write_text(json.dumps({**header, "cells": cells}))
    with pytest.raises(ConfigError, match="has no finished cell to measure"):
        evaluated(folder)
    (folder / "own.json").write_text('{"noise": "Slip(rate=0.3)"}')
    with pytest.raises(ConfigError, match=r"own objects \(noise\).*noise=\.\.\."):
        evaluated(folder)


def test_every_field_is_documented(made_up):
    found = evaluated(made_up, split="test")
    kept = json.loads(kept_file(made_up, "kd-seed1").read_text())
    header = json.loads((made_up / "compare.json").read_text())
    own = {*header, *header["cells"][0], *header["cells"][0]["expert"], "student"}
    names = {*found, *kept, *found["rows"][0], *found["paired"][0]}
    names |= {*found["rows"][0]["metrics"]["accuracy_greedy"], "by_seed"}
    assert [name for name in sorted(own) if f"`{name}`" not in SECTIONS["`compare.json`"]] == []
    section = SECTIONS["`evaluations/<split>.json`"]
    assert [name for name in sorted(names) if f"`{name}`" not in section] == []
    # These are the fields of two checkpoints' differences, which the section refers to.
    of_pair = set(found["paired"][0]["metrics"]["accuracy_greedy"])
    assert [name for name in sorted(of_pair) if f"`{name}`" not in section + SECTIONS["`evaluate`"]] == []


def test_the_command(made_up):
    shown = understudy("evaluate", made_up, "--split", "test")
    assert shown.code == 0, shown.err
    lines = [line.split() for line in shown.out.splitlines() if line.startswith("kd")]
    assert lines[0] == ["kd", "2", "0.50"]
    assert lines[1][:6] == ["kd", "Greedy", "accuracy", "0.50", "0.25", "+0.250"]
    assert lines[1][-2:] == ["+0.250", "+0.250"]
    assert "A against B = start, on the same prompts" in shown.out
    told = understudy("evaluate", made_up, "--split", "test", "--against", "expert, far", "--json")
    value = json.loads(told.out)
    assert (value["split"], {pair["b"] for pair in value["paired"]}) == ("test", {"expert, far"})
    page = understudy("report", made_up)
    assert page.code == 0
    assert (made_up / "figures" / "test_accuracy_greedy.png").exists()
    html = (made_up / "report.html").read_text()
    assert "<h2>On test prompts</h2>" in html
    assert "Against start, on" not in html  # the page has what the last call compared
    assert "Against expert, far, on the same prompts" in html


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x.jsonl"], "--out: {} is a comparison, which keeps what it measures in itself"),
        (["--grader", "exact"], "--grader: {} is a comparison, which is graded by its recipe's task"),
        (["--of-set", "longer"], "--of-set: {} is a comparison, which is measured on all of its sets"),
        (["--seed", "3"], "--seed: {} is a comparison, which is measured with the seeds of its cells"),
        (["--recipe", "r"], "--recipe: {} is a comparison, which is measured with its own recipe"),
        (["--against", "nobody"], "nothing called 'nobody' to compare with. Valid names: expert, "),
        (["--set", "evaluate.promts=3"], "evaluate.promts is not a setting. Did you mean prompts?"),
    ],
)
def test_what_does_not_fit_a_comparison_is_one_sentence(compared, options, message):
    found = understudy("evaluate", compared, *options)
    words = "".join(found.err.replace("│", " ").split())
    assert found.code == 2
    assert "".join(message.format(compared).split()) in words
    assert (found.out, "Traceback" in found.err) == ("", False)
    assert not (compared / "evaluations").exists()
