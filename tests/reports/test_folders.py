"""Reading run and compare folders: what is tolerated, what is refused, and what is counted."""

import json
import math
import shutil

import pytest
from fabricated import with_stages, write_compare, write_run

from understudy.errors import DataError
from understudy.reports.folders import final_counter, load_compare, load_run, number
from understudy.reports.series import groups_of


def test_run_is_read_in_order(run_folder):
    run = load_run(run_folder)
    assert (run.name, run.method, run.seed) == ("fabricated", "nail-f", 0)
    assert [record["step"] for record in run.evals] == [25, 50, 75, 100, 125, 150]
    assert run.end["reason"] == "max_steps"
    assert final_counter(run, "trajectories") == 150 * 128
    assert run.warnings == ()


def test_half_written_last_line_is_left_out_with_a_warning(run_folder):
    path = run_folder / "metrics.jsonl"
    text = path.read_text().rstrip("\n").rsplit("\n", 1)[0]  # drop the end record
    path.write_text(text[: len(text) - 40])  # cut inside the last evaluation
    run = load_run(run_folder)
    assert [record["step"] for record in run.evals] == [25, 50, 75, 100, 125]
    assert any("metrics.jsonl: the last line is half-written" in warning for warning in run.warnings)
    assert any("no end record" in warning for warning in run.warnings)


def test_malformed_line_in_the_middle_is_named(run_folder):
    path = run_folder / "metrics.jsonl"
    lines = path.read_text().split("\n")
    lines[2] = '{"kind": "train", "step": '
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"one JSON object per line, found '\{\"kind\".*metrics\.jsonl:3"):
        load_run(run_folder)
    lines[2] = "[1, 2]"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"'\[1, 2\]' at .*metrics\.jsonl:3"):
        load_run(run_folder)


def test_a_step_recorded_again_after_a_resume_counts_once(run_folder):
    path = run_folder / "metrics.jsonl"
    lines = path.read_text().split("\n")
    again = json.loads(lines[-3])
    assert again["kind"] == "eval"
    again["metrics"]["accuracy_greedy"]["value"] = 0.125
    path.write_text("\n".join([*lines[:-2], json.dumps(again), *lines[-2:]]))
    run = load_run(run_folder)
    assert [record["step"] for record in run.evals] == [25, 50, 75, 100, 125, 150]
    assert number(run.evals[-1], "metrics", "accuracy_greedy", "value") == 0.125


def test_numbers_may_be_missing_null_or_nan():
    record = json.loads('{"a": {"b": null, "c": NaN, "d": 2, "e": "x"}}')
    assert all(math.isnan(number(record, "a", key)) for key in "bcez")
    assert math.isnan(number(record, "z", "b"))
    assert number(record, "a", "d") == 2.0


def test_compare_knows_failed_cells_and_warm_starts(compare_folder):
    compare = load_compare(compare_folder)
    assert compare.methods == ("opd-f", "nail-f", "nail-r")
    assert [len(compare.done(label)) for label in compare.methods] == [3, 3, 2]
    failed = [cell for cell in compare.cells if cell.status == "failed"]
    assert [(cell.label, cell.seed, cell.run) for cell in failed] == [("nail-r", 2, None)]
    assert failed[0].error == "TrainingError: loss <nan> at step 12"
    for cell in compare.cells:
        assert cell.warm_start.seed == cell.seed
    assert compare.warnings == ()


def test_compare_warns_where_a_folder_or_a_warm_start_is_missing_from_it(tmp_path, compare_folder):
    for path in [p for p in compare_folder.rglob("*") if p.is_file()]:
        copy = tmp_path / path.relative_to(compare_folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (tmp_path / "cells/nail-f-seed1/metrics.jsonl").unlink()
    other = tmp_path / "cells/opd-f-seed0/metrics.jsonl"
    other.write_text(other.read_text().replace('"trajectories": 28800', '"trajectories": 3200'))
    compare = load_compare(tmp_path)
    assert [run.seed for run in compare.done("nail-f")] == [0, 2]
    missing, budget = sorted(compare.warnings)
    assert missing.startswith("nail-f, seed 1: marked done, but cells/nail-f-seed1/metrics.jsonl is missing")
    assert budget.startswith("opd-f, seed 0: its counters start below the end of its warm start")


def test_a_cell_has_the_warm_start_it_names(tmp_path):
    folder = write_compare(tmp_path / "two", ["opd-f", "nail-f", "nail-r"], [0])
    write_run(folder / "warm_start/other", "sft", 0, range(25, 51, 25), "warm_start")
    header = json.loads((folder / "compare.json").read_text())
    header["cells"][0]["warm_start"] = "warm_start/other"
    header["cells"][1]["warm_start"] = None
    (folder / "compare.json").write_text(json.dumps(header))
    named, without, ambiguous = load_compare(folder).cells
    assert named.warm_start.folder == folder / "warm_start/other"
    assert without.warm_start is None
    assert ambiguous.warm_start is None  # two of the same seed and no name: not guessed


def test_a_run_has_the_warm_start_in_its_folder(run_folder):
    assert load_run(run_folder).warm_start is None
    write_run(run_folder / "warm_start", "sft", 0, range(5, 21, 5), "warm_start")
    run = load_run(run_folder)
    assert run.warm_start.method == "sft"
    (group,) = groups_of(run)
    assert [record["step"] for record in group.evals(0)][:5] == [5, 10, 15, 20, 25]


def test_missing_folders_say_what_was_expected(tmp_path):
    with pytest.raises(DataError, match=r"a run folder with metrics\.jsonl, found none in .*nowhere"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"a compare folder with compare\.json"):
        load_compare(tmp_path)
    (tmp_path / "compare.json").write_text("[]")
    with pytest.raises(DataError, match=r"a JSON object in .*compare\.json, found a list"):
        load_compare(tmp_path)


def test_stages_are_the_runs_that_cells_name(staged_folder, compare_folder):
    compare = load_compare(staged_folder)
    found = [(stage.kind, stage.label, [run.seed for run in stage.runs]) for stage in compare.stages]
    experts = [("expert", "far (nail-known)", [0, 1, 2]), ("expert", "rl (nail-r)", [0, 1, 2])]
    assert found == [("start", "base (sft)", [7]), *experts]
    assert compare.warnings == ()
    # A folder that was written before cells named any.
    assert load_compare(compare_folder).stages == ()


def test_stages_of_one_name_are_told_apart_by_their_folders(tmp_path):
    folder = with_stages(write_compare(tmp_path / "c", ["sft", "nail-f"], [0]), names=("one", "one"))
    assert [s.label for s in load_compare(folder).stages if s.kind == "expert"] == [
        "one, far (nail-known)",
        "one, rl (nail-r)",
    ]


def test_a_stage_that_is_gone_is_one_warning(tmp_path):
    """Some seeds of one expert, all of the other, and a run that cannot be read."""
    folder = with_stages(write_compare(tmp_path / "c", ["sft", "nail-f", "opd-f"], [0, 1]))
    shutil.rmtree(folder / "far-1")
    outside = tmp_path / "c-stages"
    shutil.rmtree(outside / "rl-0")
    (outside / "rl-1" / "metrics.jsonl").write_text("[]\n[]\n")
    compare = load_compare(folder)
    assert [(s.label, len(s.runs)) for s in compare.stages] == [("base (sft)", 1), ("far (nail-known)", 1)]
    (warning,) = compare.warnings
    assert warning.startswith(
        f"students or experts came from {outside}/rl-0, far-1, {outside}/rl-1, where no run"
    )


def test_a_stage_that_is_not_made_yet_is_no_warning(tmp_path):
    folder = with_stages(write_compare(tmp_path / "c", ["nail-f"], [0], failed={("nail-f", 0)}))
    shutil.rmtree(tmp_path / "c-stages")
    assert (load_compare(folder).warnings, load_compare(folder).stages) == ((), ())
