"""The user's own rows: both kinds of prompt, malformed input named by file and line, the hub's reader."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizer import END, TEMPLATE, make_tokenizer

from understudy.errors import ConfigError, DataError
from understudy.tasks import Grade, JsonlTask, TextEncoder
from understudy.tasks.sources import read_hub, read_jsonl

ENCODER = TextEncoder(tokenizer=make_tokenizer(), max_prompt_tokens=50, max_new_tokens=20)


def write(folder: Path, *rows: Any, name: str = "train.jsonl") -> Path:
    """A file of these rows; bytes and text are written as they are."""
    lines = [
        r if isinstance(r, bytes) else (r if isinstance(r, str) else json.dumps(r)).encode() for r in rows
    ]
    (folder / name).write_bytes(b"\n".join(lines) + b"\n")
    return folder / name


GOOD = {"prompt": "one and one?", "reference": " 2"}


def test_rows_become_prompts(tmp_path):
    rows = [
        GOOD | {"id": "a"},
        {"prompt": "two and two?", "reference": " 4", "id": 7},
        {"prompt": "three?", "reference": " 3"},
    ]
    held = write(tmp_path, {"prompt": "held?", "reference": " 1"}, name="validation.jsonl")
    task = JsonlTask(encoder=ENCODER, train=write(tmp_path, *rows), validation=held, grader="exact")
    prompts = task.prompts("train", 0, 3)
    assert {p.id for p in prompts} == {"train/a", "train/7", "train/2"}
    assert {p.text: p.reference for p in prompts} == {
        "one and one?": " 2",
        "two and two?": " 4",
        "three?": " 3",
    }
    assert [p.text for p in task.prompts("validation", 0, 9)] == ["held?"]
    assert (task.size("train"), task.size("validation"), task.size("test")) == (3, 1, 0)
    for prompt in prompts:
        grade = task.grade(prompt, prompt.reference_ids or ())
        assert grade is not None
        assert grade.is_correct


def test_messages_become_prompts(tmp_path):
    encoder = TextEncoder(
        tokenizer=make_tokenizer(template=TEMPLATE), max_prompt_tokens=50, max_new_tokens=20, end_token=END
    )
    row = {"messages": [{"role": "user", "content": "one and one?"}], "reference": "2"}
    task = JsonlTask(encoder=encoder, train=write(tmp_path, row))
    (prompt,) = task.prompts("train", 0, 1)
    assert task.decode(prompt.token_ids) == "<user>one and one?<end><assistant>"
    assert task.decode(prompt.reference_ids or ()) == "2<end>"
    assert prompt.text == "user: one and one?"


def test_fields_and_graders_are_the_users(tmp_path):
    def grade_length(response: str, reference: str) -> Grade:
        return Grade(
            score=1 / (1 + abs(len(response) - len(reference))), is_correct=len(response) == len(reference)
        )

    file = write(tmp_path, {"q": "one and one?", "a": "is 2", "n": "x"})
    task = JsonlTask(
        encoder=ENCODER, train=file, prompt_field="q", reference_field="a", id_field="n", grader=grade_length
    )
    (prompt,) = task.prompts("train", 0, 1)
    assert (prompt.id, prompt.reference) == ("train/x", "is 2")
    tokens = ENCODER.tokenizer("is 20", add_special_tokens=False)["input_ids"]
    assert task.grade(prompt, tokens) == Grade(score=0.5, is_correct=False)


def test_validation_is_held_out_of_train(tmp_path):
    file = write(tmp_path, *({"prompt": f"number {i}"} for i in range(10)))
    task = JsonlTask(encoder=ENCODER, train=file, validation_rows=3)
    train, validation = (
        {p.text for p in task.prompts(split, 0, task.size(split))} for split in ("train", "validation")
    )
    assert (len(train), len(validation)) == (7, 3)
    assert not train & validation


def test_windows_files_blank_lines_and_text_of_all_scripts(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_bytes(
        b"\xef\xbb\xbf" + '{"prompt": "h\u00e9 \u4f60\\u2028"}\r\n\r\n{"prompt": "two\u2028"}'.encode()
    )
    task = JsonlTask(encoder=ENCODER, train=file)
    assert sorted(p.text for p in task.prompts("train", 0, 2)) == ["h\u00e9 \u4f60\u2028", "two\u2028"]
    assert {p.meta["source"].rpartition(", ")[2] for p in task.prompts("train", 0, 2)} == {"line 1", "line 3"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"prompt": "x"', r"line 2: not JSON \(.*column 15\)\. Expected one object a line"),
        ('["prompt", "x"]', r"line 2: expected a JSON object.*found a list"),
        ("12", "line 2: expected a JSON object.*found the number 12"),
        (b'{"prompt": "\xff"}', r"line 2: not UTF-8 \(byte 13 of the line\)"),
        ('{"prompt": ' + "9" * 5000 + "}", "line 2: JSON that cannot be read"),
        ("[" * 200_000, "line 2: JSON that cannot be read"),
        (
            {"promt": "x", "reference": " 1"},
            "line 2: expected 'prompt' or 'messages', found neither.*mean 'promt'",
        ),
        ({}, "line 2: expected 'prompt' or 'messages', found neither.*no fields"),
        ({"prompt": "x", "messages": []}, "line 2: expected 'prompt' or 'messages', found both"),
        ({"prompt": 12}, "line 2: prompt must be text, found the number 12"),
        ({"prompt": ["x"]}, "line 2: prompt must be text, found a list"),
        ({"prompt": ""}, "line 2: the prompt is empty"),
        ({"prompt": "x\ud800"}, "line 2: prompt has half of a surrogate pair at character 2"),
        ({"prompt": "x", "reference": 12}, "line 2: reference must be text, found the number 12"),
        ({"prompt": "x", "id": True}, "line 2: id must be text, found true or false"),
        ({"prompt": "x", "id": 0}, "line 2: the id '0' is also that of .*line 1"),
        ({"prompt": "x " * 99}, r"line 2: the prompt has \d+ tokens and max_prompt_tokens is 50"),
        (
            {"prompt": "x", "reference": "x " * 99},
            r"line 2: the reference has \d+ tokens .* max_new_tokens is 20",
        ),
        ({"messages": "hi"}, r"line 2: messages must be a list of .*found 'hi'"),
        ({"messages": []}, r"line 2: messages must be a list of .*found \[\]"),
        ({"messages": [{"role": "user"}]}, r"line 2: turn 1 of messages must be"),
        (
            {"messages": [{"role": "user", "content": None}]},
            "turn 1 of messages: content must be text, found null",
        ),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages ends with the assistant's turn"),
        (
            {"messages": [{"role": "user", "content": "x"}]},
            "line 2: has messages, and the tokenizer has no chat",
        ),
    ],
)
def test_a_malformed_line_is_named(tmp_path, row, message):
    file = write(tmp_path, GOOD, row)
    with pytest.raises(DataError, match=message) as caught:
        JsonlTask(encoder=ENCODER, train=file)
    assert str(file) in str(caught.value)


def test_a_grader_needs_a_reference_it_can_read(tmp_path):
    bare = write(tmp_path, {"prompt": "x"}, name="bare.jsonl")
    assert (
        JsonlTask(encoder=ENCODER, train=bare, grader="exact").size("train") == 1
    )  # nothing is graded there
    with pytest.raises(DataError, match="line 1: has no reference, and the grader needs one"):
        JsonlTask(encoder=ENCODER, validation=bare, grader="exact")
    with pytest.raises(DataError, match="line 1: the grader finds no answer in the reference 'two'"):
        JsonlTask(
            encoder=ENCODER, train=write(tmp_path, {"prompt": "x", "reference": "two"}), grader="numeric"
        )


def test_files_that_are_not_there_or_empty(tmp_path):
    write(tmp_path, GOOD, name="train.jsonl")
    with pytest.raises(
        DataError, match=r"no such file or folder: .*trian.jsonl\. Did you mean .*/train.jsonl\?"
    ):
        JsonlTask(encoder=ENCODER, train=tmp_path / "trian.jsonl")
    with pytest.raises(
        DataError, match=r"no such file or folder: .*\(the folder .*nowhere does not exist either\)"
    ):
        JsonlTask(encoder=ENCODER, train=tmp_path / "nowhere" / "train.jsonl")
    with pytest.raises(DataError, match=r"cannot read .*Is a directory"):
        JsonlTask(encoder=ENCODER, train=tmp_path)
    for nothing in (b"", b"\n \n"):
        (tmp_path / "empty.jsonl").write_bytes(nothing)
        with pytest.raises(DataError, match=r"empty\.jsonl has no rows"):
            read_jsonl(tmp_path / "empty.jsonl")


def test_splits_that_contradict_each_other(tmp_path):
    file = write(tmp_path, GOOD)
    with pytest.raises(ConfigError, match="give at least one of train, validation, test"):
        JsonlTask(encoder=ENCODER)
    with pytest.raises(ConfigError, match="validation or validation_rows, not both"):
        JsonlTask(encoder=ENCODER, train=file, validation=file, validation_rows=1)
    with pytest.raises(ConfigError, match="held out of train, and train is not given"):
        JsonlTask(encoder=ENCODER, test=file, validation_rows=1)
    with pytest.raises(DataError, match="this prompt of the test split is also one of the train split"):
        JsonlTask(encoder=ENCODER, train=file, test=file)


def test_the_hub_reader_reads_what_the_file_reader_reads(tmp_path, monkeypatch):
    """`datasets` takes a folder of JSON Lines files as a data set: its own reader runs without a network."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder = tmp_path / "data"
    folder.mkdir()
    train = write(folder, *({"prompt": f"{i}?", "reference": f" {i}"} for i in range(5)))
    test = write(folder, {"prompt": "9?", "reference": " 9"}, name="test.jsonl")
    local = JsonlTask(encoder=ENCODER, train=train, test=test, grader="numeric")
    hub = JsonlTask(encoder=ENCODER, dataset=str(folder), train="train", test="test", grader="numeric")
    for split in ("train", "test"):
        ours, theirs = (task.prompts(split, 0, local.size(split)) for task in (local, hub))
        assert [(p.id, p.token_ids, p.reference_ids) for p in ours] == [
            (p.id, p.token_ids, p.reference_ids) for p in theirs
        ]
    assert hub.prompts("test", 0, 1)[0].meta["source"] == f"{folder}, split test, row 0"
    with pytest.raises(DataError, match=rf"cannot load {folder}, split dev: .*dev.*local files"):
        read_hub(str(folder), None, "dev")


def test_no_datasets_package(monkeypatch):
    really_import = builtins.__import__

    def import_without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "datasets":
            raise ImportError(name)
        return really_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", import_without)
    with pytest.raises(ConfigError, match=r"squad .*not installed\. Install understudy\[datasets\]"):
        JsonlTask(encoder=ENCODER, dataset="squad", train="train")


def test_a_hub_that_does_not_answer(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to the hub\nand a long trace")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        DataError, match=r"cannot load squad \(plain\), split train: no route to the hub\. Check"
    ) as caught:
        read_hub("squad", "plain", "train")
    assert "\n" not in str(caught.value)
