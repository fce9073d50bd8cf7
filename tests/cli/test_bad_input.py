"""Bad input: one clear sentence, exit code 2, no traceback, and nothing that was there is lost."""

import json
from pathlib import Path

import pytest
import torch
from command import Outcome, understudy, write_recipe
from safetensors.torch import load_file, save_file

from small import TABLE
from small_text import make_world, model, write_rows
from understudy.starter import make_starter


def refused(found: Outcome, *parts: str) -> None:
    assert found.code == 2, found
    assert found.out == ""
    lines = [line for line in found.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, found.err
    assert "Traceback" not in found.err
    for part in parts:
        assert part in lines[0]


@pytest.fixture
def tiny(tmp_path) -> Path:
    return write_recipe(tmp_path / "tiny.toml", TABLE)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A sound recipe of text; tests that break something break a copy of their own."""
    folder = tmp_path_factory.mktemp("world")
    return folder, make_world(folder)


def train(table: dict, folder: Path, *flags: object) -> Outcome:
    return understudy("train", write_recipe(folder / "r.toml", table), "--out", folder / "run", *flags)


def changed(table: dict, section: str, **settings: object) -> dict:
    return {**table, section: {**table[section], **settings}}


@pytest.mark.parametrize("command", ["train", "compare", "doctor"])
def test_a_missing_recipe(tmp_path, command):
    refused(
        understudy(command, tmp_path / "gone"),
        f"no recipe at {tmp_path / 'gone'}",
        "Give a folder that holds recipe.toml",
    )
    assert list(tmp_path.iterdir()) == []


def test_toml_with_a_typo(tmp_path):
    file = tmp_path / "r.toml"
    file.write_text('name = "x"\n[task\nkind = "jsonl"\n')
    refused(understudy("train", file), "r.toml is not valid TOML", "line 2")


def test_an_unknown_key_names_the_nearest(tiny):
    refused(
        understudy("train", tiny, "--set", "train.stepz=3"),
        "train.stepz is not a setting. Did you mean steps?",
        "tiny.toml",
    )
    refused(understudy("train", tiny, "--set", "train.steps"), "--set takes key=value")


def test_combinations_that_cannot_run(tiny, tmp_path):
    changes = [
        "--set",
        "method.name=nail-known",
        "--set",
        'expert.noise={law="temperature", temperature=2.0}',
    ]
    refused(
        understudy("train", tiny, *changes),
        "nail-known pushes the student through a known noise channel",
        "Use nail-f",
    )
    out = tmp_path / "out"
    flags = ["--methods", "sft,nail-known", "--set", 'expert.noise={law="temperature", temperature=2.0}']
    refused(
        understudy("compare", tiny, "--out", out, *flags), "compare.methods, nail-known", "temperature noise"
    )
    assert not out.exists()
    refused(understudy("compare", tiny, "--out", out), "has no [compare] table")
    refused(understudy("compare", tiny, "--out", out, "--methods", ""), "compare.methods is empty")


def test_a_malformed_line_is_numbered(world, tmp_path):
    _, table = world
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "1+1=", "reference": "2"}\n\n{"prompt": "1+1=", "reference"}\n')
    refused(train(changed(table, "task", train=str(bad)), tmp_path), "bad.jsonl, line 3: not JSON")
    refused(understudy("init", tmp_path / "m", "--text", bad), "bad.jsonl, line 3: not JSON")
    assert not (tmp_path / "m").exists()


def test_data_that_is_missing_or_empty(world, tmp_path):
    folder, table = world
    gone = changed(table, "task", train=str(folder / "trian.jsonl"))
    refused(train(gone, tmp_path), "no such file or folder", f"Did you mean {folder / 'train.jsonl'}?")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    refused(
        train(changed(table, "task", train=str(empty)), tmp_path, "--overwrite"), "empty.jsonl has no rows"
    )
    long = write_rows(tmp_path / "long.jsonl", [{"prompt": "9" * 30, "reference": "1"}])
    dropped = changed(table, "task", train=str(long), too_long="drop")
    refused(
        train(dropped, tmp_path, "--overwrite"),
        "nothing is left of the train split",
        "all 1 rows are too long",
    )


def test_an_expert_with_another_vocabulary(world, tmp_path):
    _, table = world
    text = write_rows(tmp_path / "other.jsonl", [{"text": "entirely other words " * 9}])
    make_starter(tmp_path / "expert", model=model(), texts=[text], vocab_size=270)
    found = train(changed(table, "expert", checkpoint=str(tmp_path / "expert")), tmp_path)
    refused(found, "has another vocabulary (270 tokens, the student 261)", "Distillation needs one tokenizer")


def test_a_prompt_that_is_too_long(world, tmp_path):
    _, table = world
    long = write_rows(
        tmp_path / "long.jsonl", [{"prompt": "1=", "reference": "1"}, {"prompt": "9" * 30, "reference": "1"}]
    )
    task = changed(table, "task", train=str(long))
    refused(train(task, tmp_path), "long.jsonl, line 2: the prompt has 30 tokens and max_prompt_tokens is 16")
    wide = changed(table, "task", max_prompt_tokens=90)
    refused(train(wide, tmp_path, "--overwrite"), "do not fit the student's context of 96")


def test_nan_weights(world, tmp_path):
    folder, table = world
    make_starter(tmp_path / "student", model=model(), vocab_size=261)
    file = tmp_path / "student" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"][3, 3] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    broken = changed(table, "student", checkpoint=str(tmp_path / "student"))
    refused(
        train(broken, tmp_path), f"{tmp_path / 'student'} holds NaN or infinite weights in lm_head.weight"
    )
    found = understudy("evaluate", tmp_path / "student", "--recipe", write_recipe(tmp_path / "e.toml", table))
    refused(found, "holds NaN or infinite weights")
    assert folder.exists()


def test_weights_that_are_no_weights(world, tmp_path):
    _, table = world
    make_starter(tmp_path / "student", model=model(), vocab_size=261)
    (tmp_path / "student" / "model.safetensors").write_bytes(b"not a tensor")
    broken = changed(table, "student", checkpoint=str(tmp_path / "student"))
    refused(train(broken, tmp_path), "cannot load a causal LM from")
    refused(
        train(changed(table, "student", checkpoint=str(tmp_path / "gone")), tmp_path, "--overwrite"),
        str(tmp_path / "gone"),
    )


def test_folders_that_hold_no_run(tmp_path):
    refused(understudy("report", tmp_path), "found none of them in")
    refused(understudy("evaluate", tmp_path / "gone"), "no checkpoint or run folder at")
    refused(understudy("evaluate", tmp_path), "is a checkpoint without a recipe")
    (tmp_path / "metrics.jsonl").write_text('{"kind": "eval"}\n{"kind"\n{"kind": "end"}\n')
    refused(understudy("report", tmp_path), "metrics.jsonl:2")


def test_an_output_folder_that_cannot_be_made(tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused(understudy("train", tiny, "--out", tmp_path / "file" / "run"), "cannot create the folder")
    refused(understudy("init", tmp_path / "file" / "m", "--vocab-size", 261), "file")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_comparison_that_is_there_is_kept(tiny, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "recipe.json").write_text(json.dumps({"name": "precious"}))
    refused(
        understudy("compare", tiny, "--methods", "sft", "--out", out),
        "already holds a comparison. Use --resume",
    )
    refused(
        understudy("compare", tiny, "--methods", "sft", "--out", out, "--resume"),
        "name: 'precious' -> 'tiny'",
    )
    assert json.loads((out / "recipe.json").read_text()) == {"name": "precious"}


def test_sizes_that_do_not_fit_together(tmp_path):
    refused(
        understudy("init", tmp_path / "m", "--width", 30, "--heads", 4),
        "width must be a multiple of heads, got 30 and 4",
    )
    refused(understudy("init", tmp_path / "m", "--vocab-size", 100), "vocab_size must be at least 261")
    assert not (tmp_path / "m").exists()
