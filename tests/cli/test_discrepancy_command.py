"""`understudy discrepancy` from the outside."""

import json
import re
from pathlib import Path

import pytest
from command import understudy

from understudy.starter import make_starter

SAMPLE = Path(__file__).parents[1] / "data" / "model_solutions" / "sample.jsonl"
MODELS = (
    "--id", "index", "--response", "6b_finetuning.solution", "--response", "175b_finetuning.solution",
    "--grade", "6b_finetuning.is_correct", "--grade", "175b_finetuning.is_correct",
)  # fmt: skip


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in (("small", "so"), ("large", "wait, so")):
        rows = [{"id": i, "response": text, "score": i % 2} for i in range(6)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_real_responses_of_two_models_in_one_file(tmp_path):
    found = understudy("discrepancy", SAMPLE, SAMPLE, *MODELS, "--out", tmp_path / "o", "--json")
    assert (found.code, found.err) == (0, "")
    record = json.loads(found.out)
    rows = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    right = [
        sum(row[model]["is_correct"] for row in rows) / 60 for model in ("6b_finetuning", "175b_finetuning")
    ]
    assert [record["performance"][key] for key in ("mean_a", "mean_b")] == pytest.approx(right)
    assert record["performance"]["difference"]["value"] == pytest.approx(right[0] - right[1])
    thus = [
        sum("thus" in re.findall("[a-z]+", row[m]["solution"].lower()) for row in rows)
        for m in ("6b_finetuning", "175b_finetuning")
    ]
    row = next(row for row in record["gaps"] if row["name"] == '"thus"')
    assert [row["share_a"] * 60, row["share_b"] * 60] == pytest.approx(thus)
    assert sum(thus) == 9
    assert record["name_a"] == "6b_finetuning.solution"
    assert record["unit"] == "words"
    assert {path.name for path in (tmp_path / "o").iterdir()} == {
        "discrepancy.json",
        "figure.png",
        "report.html",
    }
    written = json.loads((tmp_path / "o" / "discrepancy.json").read_text())
    assert {key: written[key] for key in record} == record


def test_the_table_for_a_person_and_its_folder(files):
    found = understudy(
        "discrepancy", "small.jsonl", "large.jsonl", "--out", "o", "--keyword", "so", "--unit", "characters"
    )
    assert found.code == 0
    header, first, *_ = found.out.splitlines()
    assert header.split()[:5] == ["what", "differs", "how", "small", "large"]
    assert first.split()[:2] == ["length", "law"]
    assert '"so"' in found.out
    assert (
        "6 responses of small, 6 of large, to the same 6 prompts; lengths in characters; grades from score."
        in found.out
    )
    assert "report: o/report.html" in found.out
    assert "figure: o/figure.png" in understudy("report", "o").out
    assert understudy("discrepancy", "small.jsonl", "large.jsonl").code == 0
    assert sorted(path.name for path in files.iterdir()) == ["large.jsonl", "o", "small.jsonl"]


def test_tokens_of_a_tokenizer_and_of_the_rows(files, tmp_path):
    folder = tmp_path / "tokenizer"
    make_starter(folder, model=None, texts=[files / "small.jsonl"], vocab_size=300)
    found = understudy("discrepancy", "small.jsonl", "large.jsonl", "--tokenizer", folder, "--json")
    record = json.loads(found.out)
    assert record["unit"] == "tokens"
    from understudy.models import load_tokenizer

    tokenizer = load_tokenizer(str(folder))
    expected = [len(tokenizer.encode(text, add_special_tokens=False)) for text in ("so", "wait, so")]
    assert record["mean_length"] == expected
    counted = understudy("discrepancy", "small.jsonl", "large.jsonl", "--tokens", "id", "--json")
    assert json.loads(counted.out)["mean_length"] == [2.5, 2.5]


def test_grades_of_one_set_alone_are_said(files):
    rows = [{"id": i, "response": "x"} for i in range(6)]
    Path("plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = understudy("discrepancy", "small.jsonl", "plain.jsonl")
    assert "plain has no grades, so there is no performance gap." in found.out
    assert "Performance" not in found.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.jsonl", "large.jsonl"], "no such file or folder: gone.jsonl"),
        (["bad.jsonl", "large.jsonl"], "bad.jsonl, line 2: not JSON"),
        (["empty.jsonl", "large.jsonl"], "empty.jsonl has no rows"),
        (["small.jsonl", "few.jsonl"], "small has 6 prompts, few has 3, and 3 of them match. Expected the same prompts"),
        (["small.jsonl", "few.jsonl", "--prompts", "some"], "'some' is not one of"),
        (["small.jsonl", "small.jsonl"], None),
        (["small.jsonl", "large.jsonl", "--response", "text"], "small.jsonl, line 1: no field 'text'. The row has"),
        (["small.jsonl", "large.jsonl", "--grade", "a", "--grade", "b", "--grade", "c"], "twice, found 3 times"),
        (["small.jsonl", "large.jsonl", "--label", "x"], "give --label twice, for A and for B; found 1"),
        (["small.jsonl", "large.jsonl", "--label", "x", "--label", "x"], "both sets are called 'x'"),
        (["small.jsonl", "large.jsonl", "--unit", "tokens"], "no field with a number of tokens"),
        (["small.jsonl", "large.jsonl", "--unit", "words", "--tokenizer", "t"], "a tokenizer counts tokens"),
        (["small.jsonl", "large.jsonl", "--tokenizer", "./run"], "cannot load a tokenizer from ./run"),
        (["small.jsonl", "large.jsonl", "--bin", "0"], "Invalid value for '--bin'"),
        (["small.jsonl", "large.jsonl", "--keyword", " "], "a keyword is empty"),
        (["small.jsonl", "large.jsonl", "--out", "run"], "run holds a run, a comparison or an experiment (recipe.json)"),
        (["small.jsonl", "large.jsonl", "--out", "empty.jsonl"], "cannot create the folder empty.jsonl"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_exit_code_2(files, arguments, message):
    Path("bad.jsonl").write_text('{"id": 1, "response": "x"}\n{"id": 2,\n')
    Path("empty.jsonl").write_text("")
    Path("few.jsonl").write_text("".join(Path("large.jsonl").read_text().splitlines(keepends=True)[:3]))
    Path("run").mkdir()
    Path("run/recipe.json").write_text("{}")
    found = understudy("discrepancy", *arguments)
    if message is None:
        assert found.code == 0
        return
    assert (found.code, found.out) == (2, "")
    assert message in " ".join(found.err.split())
    assert "Traceback" not in found.err
    assert [path.name for path in Path("run").iterdir()] == ["recipe.json"]
