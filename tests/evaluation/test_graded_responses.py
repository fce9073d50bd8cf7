"""Responses from a file: every grader, samples of one prompt, and lines that cannot be used."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest

from small_text import make_world, rows, write_rows
from understudy.config import recipe_from_table
from understudy.errors import ConfigError, DataError
from understudy.evaluation.responses import grade_responses, refuse_other_prompts
from understudy.measure import evaluate_checkpoint, evaluate_responses
from understudy.tasks.answers import last_number


def write(path, lines: list[dict]):
    return write_rows(path, lines)


GSM = [
    {"id": 1, "response": "3 * 6 = 18\n#### 18", "reference": "#### 18"},
    {"id": 1, "response": "so \\boxed{17}", "reference": "#### 18"},
    {"id": 2, "responses": ["#### 5", "it is 5"], "reference": "#### 5"},
    {"prompt_id": "x", "responses": ["#### 1.50", "#### 3/2"], "reference": "#### 1.5"},
]


def test_samples_of_one_prompt_are_gathered(tmp_path):
    found = grade_responses(write(tmp_path / "r.jsonl", GSM), "gsm8k")
    assert found.by_prompt["accuracy"] == {"1": 0.5, "2": 0.5, "x": 1.0}
    assert found.metrics["accuracy"].value == pytest.approx(2 / 3)
    assert found.metrics["accuracy"].n == 3
    assert found.by_prompt["pass@2"] == {"1": 1.0, "2": 1.0, "x": 1.0}
    # 18 and 17 tie and 18 came first; of 5 and no answer 5 wins; 1.50 and 3/2 are one answer
    assert found.by_prompt["majority@2"] == {"1": 1.0, "2": 1.0, "x": 1.0}
    assert list(found.metrics) == ["accuracy"] + [
        f"{m}@{k}" for k in (1, 2) for m in ("avg", "pass", "majority")
    ]
    assert found.responses[1] == {
        "id": "1", "sample": 1, "response": "so \\boxed{17}",
        "score": 0.0, "is_correct": False, "answer": "17", "reference": "#### 18",
    }  # fmt: skip


def test_without_ids_every_line_is_a_prompt(tmp_path):
    lines = [{"response": "a", "reference": "a"}, {"response": "b", "reference": "a"}]
    found = grade_responses(write(tmp_path / "r.jsonl", lines), "exact")
    assert found.by_prompt == {"accuracy": {"line 1": 1.0, "line 2": 0.0}}
    # Wilson, 1 of 2: 0.5 +- z sqrt(2/4 + z^2/4) / (2 + z^2)
    assert found.metrics["accuracy"].low == pytest.approx(0.094531, abs=1e-5)


def test_countdown_in_both_formats(tmp_path):
    puzzle = {"nums": [3, 7, 12], "target": 15}
    lines = [
        {"id": "a", **puzzle, "response": "hm <answer>(12 - 7) * 3</answer>"},
        {"id": "b", **puzzle, "response": "<answer>12 + 3</answer>"},
        {"id": "c", **puzzle, "response": "<answer>" + "(" * 10**5 + "</answer>"},
    ]
    found = grade_responses(write(tmp_path / "think.jsonl", lines), "countdown")
    assert [row["score"] for row in found.responses] == [1.0, 0.1, 0.1]
    assert found.metrics["accuracy"].value == pytest.approx(1 / 3)
    compact = [{**puzzle, "responses": ["3+7=10,10+12=22;12-7=5,5*3=15!(12-7)*3", "3*7"]}]
    found = grade_responses(write(tmp_path / "compact.jsonl", compact), "countdown-compact", ks=[2])
    assert found.by_prompt == {
        "accuracy": {"line 1": 0.5},
        "avg@2": {"line 1": 0.5},
        "pass@2": {"line 1": 1.0},
        "majority@2": {"line 1": 1.0},
    }


def test_math(tmp_path):
    pytest.importorskip("math_verify")
    lines = [{"response": "\\boxed{0.5}", "reference": "\\frac12"}, {"response": "2", "reference": "(B)"}]
    found = grade_responses(write(tmp_path / "r.jsonl", lines), "math")
    assert [row["is_correct"] for row in found.responses] == [True, False]


def test_uneven_numbers_of_samples(tmp_path):
    lines = [
        {"id": "a", "responses": ["x", "y", "y", "y", "y"], "reference": "x"},
        {"id": "b", "responses": ["x", "y", "y"], "reference": "x"},
    ]
    file = write(tmp_path / "r.jsonl", lines)
    found = grade_responses(file, "exact")
    assert [name for name in found.metrics if name.startswith("pass")] == ["pass@1", "pass@2"]
    assert found.by_prompt["pass@2"] == {"a": pytest.approx(4 / 10), "b": pytest.approx(2 / 3)}
    # the prompt is the unit: 1/5 and 1/3 count alike
    assert found.metrics["accuracy"].value == pytest.approx(float((Fraction(1, 5) + Fraction(1, 3)) / 2))
    with pytest.raises(DataError, match=r"k = 4 needs as many responses.*'b' \(.*line 2\) has 3"):
        grade_responses(file, "exact", ks=[1, 4])


@pytest.mark.parametrize(
    ("lines", "grader", "message"),
    [
        (
            [{"reference": "1"}],
            "exact",
            "line 1: expected 'response' .* or 'responses' .*, found neither.*'reference'",
        ),
        ([{"response": "1", "responses": ["1"], "reference": "1"}], "exact", "found both. Keep one"),
        ([{"response": 3, "reference": "1"}], "exact", "line 1: response must be text, found 3"),
        ([{"responses": [], "reference": "1"}], "exact", "responses must be a list of at least one text"),
        ([{"responses": ["a", None], "reference": "1"}], "exact", r"responses\[1\] must be text, found None"),
        ([{"response": "1"}], "exact", "line 1: no field 'reference'"),
        (
            [{"response": "1", "reference": "none"}],
            "numeric",
            "grader 'numeric' finds no answer in the reference 'none'",
        ),
        (
            [{"id": 1, "response": "1", "reference": "1"}, {"id": 1, "response": "1", "reference": "2"}],
            "numeric",
            "line 2: the prompt '1' has another reference here than in .*line 1",
        ),
        ([{"response": "1", "reference": "1"}], "countdown", "nums .* and target .*, found nums = None"),
        ([{"response": "1", "nums": [1, True], "target": 2}], "countdown", "found nums = .1, True."),
        ([{"response": "1", "nums": [1, 2], "target": 1.5}], "countdown", "and target = 1.5"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, lines, grader, message):
    with pytest.raises(DataError, match=message):
        grade_responses(write(tmp_path / "r.jsonl", lines), grader)


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        grade_responses(tmp_path / "gone.jsonl", "exact")
    (tmp_path / "bad.jsonl").write_text('{"response": "1", "reference": "1"}\nnot json\n')
    with pytest.raises(DataError, match="line 2: not JSON"):
        grade_responses(tmp_path / "bad.jsonl", "exact")


def test_two_files_must_be_about_the_same_prompts(tmp_path):
    def graded(name, reference, prompt_id="p"):
        line = {"id": prompt_id, "response": "1", "reference": reference}
        return grade_responses(write(tmp_path / name, [line]), "numeric")

    refuse_other_prompts(graded("a.jsonl", "1"), graded("b.jsonl", "1"))
    with pytest.raises(DataError, match="'p' has the reference '1' in one file and '2' in the other"):
        refuse_other_prompts(graded("a.jsonl", "1"), graded("c.jsonl", "2"))
    with pytest.raises(DataError, match=r"no prompt in common .*'p' and 'q'"):
        refuse_other_prompts(graded("a.jsonl", "1"), graded("d.jsonl", "1", "q"))


def test_the_recipe_says_how_to_grade(tmp_path):
    table = make_world(tmp_path)
    file = write(tmp_path / "r.jsonl", [{"gold": "17", "responses": ["17", " 17\n", "18", "17."]}])
    recipe = recipe_from_table(
        table, {"task.reference_field": "gold", "evaluate.samples_per_prompt": 4, "evaluate.ks": [4]}
    )
    assert evaluate_responses(file, recipe=recipe).by_prompt == {
        "accuracy": {"line 1": 0.5}, "avg@4": {"line 1": 0.5}, "pass@4": {"line 1": 1.0}, "majority@4": {"line 1": 1.0},
    }  # fmt: skip
    assert evaluate_responses(file, recipe=recipe, grader="numeric").by_prompt["accuracy"] == {"line 1": 0.75}
    with pytest.raises(ConfigError, match=r"sets no task\.grader\. Give --grader: exact, numeric"):
        evaluate_responses(file, recipe=recipe_from_table(table, {"task.grader": None}))
    with pytest.raises(ConfigError, match="no --recipe and no --grader is given"):
        evaluate_responses(file)


def test_what_a_checkpoint_wrote_is_graded_the_same_from_its_file(tmp_path):
    table = make_world(tmp_path)
    sums = rows(40, 16)
    recipe = recipe_from_table(
        table, {"evaluate.samples_per_prompt": 2, "evaluate.ks": [1, 2], "evaluate.prompts": 16}
    )
    found = evaluate_checkpoint(tmp_path / "student", recipe, keeps_responses=True)
    assert [row["reference"] for row in found.responses[::2]] == [
        next(r["reference"] for r in sums if r["prompt"] == row["prompt"]) for row in found.responses[::2]
    ]
    file = tmp_path / "written.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in found.responses))
    again = evaluate_responses(file, recipe=recipe)
    assert again.by_prompt["accuracy"] == found.by_prompt["accuracy_sampled"]
    assert {n: again.metrics[n] for n in again.metrics if "@" in n} == {
        n: found.metrics[n] for n in found.metrics if "@" in n
    }
    assert last_number(found.responses[0]["reference"]) is not None
