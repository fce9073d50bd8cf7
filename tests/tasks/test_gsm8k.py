"""GSM8K as a task, on a sample of our own rows and, where it is, on the real data."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizer import END, TEMPLATE, make_tokenizer

from understudy.errors import ConfigError, DataError
from understudy.tasks import SPLITS, Gsm8k, TextEncoder

SAMPLE = Path(__file__).parent.parent / "data" / "gsm8k_sample"


def encoder(*, chat: bool = False, **others: Any) -> TextEncoder:
    limits: dict[str, Any] = {"max_prompt_tokens": 1000, "max_new_tokens": 1000}
    if chat:
        limits["end_token"] = END
    tokenizer = make_tokenizer(template=TEMPLATE if chat else None)
    return TextEncoder(tokenizer=tokenizer, **(limits | others))


def all_prompts(task: Gsm8k) -> dict[str, list[Any]]:
    return {split: task.prompts(split, 0, task.size(split)) for split in SPLITS}


def check_golds(task: Gsm8k) -> None:
    """Every reference is right as its tokens stand, and another row's is wrong."""
    for prompts in all_prompts(task).values():
        for prompt, other in zip(prompts, [*prompts[1:], prompts[0]], strict=True):
            gold = task.grade(prompt, prompt.reference_ids)
            wrong = task.grade(prompt, other.reference_ids)
            assert gold is not None
            assert wrong is not None
            assert (gold.score, gold.is_correct, gold.answer) == (1.0, True, prompt.meta["answer"])
            assert wrong.is_correct == (prompt.meta["answer"] == other.meta["answer"])


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("grader", ["gsm8k", "numeric"])
def test_gold_answers_are_right(chat, grader):
    check_golds(Gsm8k(encoder=encoder(chat=chat), path=SAMPLE, validation_rows=4, grader=grader))


@pytest.mark.skipif(
    "UNDERSTUDY_GSM8K" not in os.environ, reason="UNDERSTUDY_GSM8K: folder of the real data set"
)
def test_gold_answers_of_the_real_data_are_right():
    task = Gsm8k(
        encoder=encoder(max_prompt_tokens=2000, max_new_tokens=2000), path=os.environ["UNDERSTUDY_GSM8K"]
    )
    assert task.size("train") > 7000
    check_golds(task)


def test_the_plain_style():
    task = Gsm8k(encoder=encoder(), path=SAMPLE, validation_rows=4)
    first = json.loads((SAMPLE / "test.jsonl").read_text().splitlines()[0])
    prompt = task.prompts("test", 0, 1)[0]
    assert prompt.id == "test/0"
    assert task.decode(prompt.token_ids) == f"Question: {first['question']}\nAnswer:"
    written = " On the coats are 9 * 14 = 126 buttons.\nShe had 126 + 24 = 150 buttons.\n#### 150<eos>"
    assert task.decode(prompt.reference_ids or ()) == written
    assert prompt.meta["answer"] == "150"


def test_the_chat_style():
    task = Gsm8k(encoder=encoder(chat=True), path=SAMPLE, validation_rows=4)
    first = json.loads((SAMPLE / "test.jsonl").read_text().splitlines()[0])
    prompt = task.prompts("test", 0, 1)[0]
    assert task.decode(prompt.token_ids) == f"<user>{first['question']}<end><assistant>"
    assert task.decode(prompt.reference_ids or ()).startswith("On the coats")
    assert task.decode(prompt.reference_ids or ()).endswith("#### 150<end>")


def test_calculator_marks_stay_only_on_request():
    texts = {
        keep: [p.reference for ps in all_prompts(task).values() for p in ps]
        for keep in (False, True)
        for task in [Gsm8k(encoder=encoder(), path=SAMPLE, validation_rows=4, keep_calculator_marks=keep)]
    }
    assert not any("<<" in text or ">>" in text for text in texts[False])
    assert all("<<" in text for text in texts[True])


def test_splits_are_disjoint_and_held_out_of_train():
    task = Gsm8k(encoder=encoder(), path=SAMPLE, validation_rows=4)
    texts = {split: {p.text for p in prompts} for split, prompts in all_prompts(task).items()}
    assert {split: len(found) for split, found in texts.items()} == {"train": 12, "validation": 4, "test": 5}
    assert len(set.union(*texts.values())) == 21
    lines = (SAMPLE / "train.jsonl").read_text().splitlines()
    assert texts["train"] | texts["validation"] == {
        f"Question: {json.loads(x)['question']}\nAnswer:" for x in lines
    }
    assert Gsm8k(encoder=encoder(), path=SAMPLE, validation_rows=0).size("validation") == 0
    with pytest.raises(ConfigError, match=r"validation_rows must be in 1 \.\. 15 .*got 256"):
        Gsm8k(encoder=encoder(), path=SAMPLE)


def test_a_student_that_writes_a_box_is_understood():
    task = Gsm8k(encoder=encoder(), path=SAMPLE, validation_rows=4)
    prompt = task.prompts("test", 2, 1)[0]  # 720
    for text, is_correct in (
        ("so \\boxed{720}", True),
        ("so \\boxed{\\text{720 kg}}", True),
        ("so 720", False),
    ):
        tokens = task.encoder.tokenizer(f"{text}<eos> #### 1", add_special_tokens=False)["input_ids"]
        grade = task.grade(prompt, tokens)
        assert grade is not None
        assert grade.is_correct == is_correct, text


def test_the_hub_layout_is_the_folders(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    local = Gsm8k(encoder=encoder(), path=SAMPLE, validation_rows=4)
    hub = Gsm8k(encoder=encoder(), dataset=str(SAMPLE), dataset_config=None, validation_rows=4)
    for split in SPLITS:
        ours, theirs = (task.prompts(split, 0, 99 if split != "train" else 12) for task in (local, hub))
        assert [(p.id, p.token_ids, p.reference_ids) for p in ours] == [
            (p.id, p.token_ids, p.reference_ids) for p in theirs
        ]


def test_a_folder_that_is_not_gsm8k(tmp_path):
    with pytest.raises(
        DataError, match=r"no such file or folder: .*gsm8k_sampel\. Did you mean .*gsm8k_sample\?"
    ):
        Gsm8k(encoder=encoder(), path=SAMPLE.parent / "gsm8k_sampel")
    (tmp_path / "trian.jsonl").write_text('{"question": "x?", "answer": "#### 1"}\n')
    with pytest.raises(DataError, match=r"train.jsonl\. Did you mean .*trian.jsonl"):
        Gsm8k(encoder=encoder(), path=tmp_path)
    (tmp_path / "test.jsonl").write_text('{"question": "y?", "answer": "#### 1"}\n')
    for bad, message in (
        ({"question": "x?", "anwser": "#### 1"}, r"line 1: no field 'answer'\..*Did you mean 'anwser'"),
        ({"question": "x?", "answer": "one"}, "line 1: the grader finds no answer in the reference 'one'"),
        ({"question": "x?", "answer": "#### one"}, "line 1: the grader finds no answer"),
    ):
        (tmp_path / "train.jsonl").write_text(json.dumps(bad) + "\n")
        with pytest.raises(DataError, match=message):
            Gsm8k(encoder=encoder(), path=tmp_path, validation_rows=0)
