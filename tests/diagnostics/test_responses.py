"""Responses from JSON Lines: what is read, and one sentence for what cannot be."""

import json

import pytest

from understudy.diagnostics.responses import Fields, Response, ResponseSet, read_responses
from understudy.errors import DataError


def write(file, *rows):
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def test_default_fields_and_several_responses_a_row(tmp_path):
    file = write(
        tmp_path / "r.jsonl",
        {"id": 3, "responses": ["a b", ""], "is_correct": [True, False], "other": 1},
        {"id": "x", "responses": ["c"], "is_correct": [0.5]},
    )
    found = read_responses(file, name="A")
    assert found.responses == (
        Response(prompt="3", text="a b", length=2, grade=1.0),
        Response(prompt="3", text="", length=0, grade=0.0),
        Response(prompt="x", text="c", length=1, grade=0.5),
    )
    assert found.has_ids
    assert found.is_graded


def test_named_fields_reach_into_objects(tmp_path):
    file = write(tmp_path / "r.jsonl", {"q.id": 1, "m": {"text": "a b c", "ok": 1, "n": 7}, "response": "no"})
    fields = Fields(prompt="q.id", response="m.text", grade="m.ok", tokens="m.n")
    (found,) = read_responses(file, name="A", fields=fields, measure=len).responses
    assert found == Response(prompt="1", text="a b c", length=5, grade=1.0)
    (found,) = read_responses(file, name="A", fields=fields, measure=None).responses
    assert found.length == 7


def test_without_ids_every_row_is_a_prompt(tmp_path):
    found = read_responses(write(tmp_path / "r.jsonl", {"response": "a"}, {"response": "a"}), name="A")
    assert [response.prompt for response in found.responses] == ["row 0", "row 1"]
    assert not found.has_ids
    assert not found.is_graded


ROW = {"id": 1, "response": "a", "score": 1, "num_tokens": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["", " "], "r.jsonl has no rows"),
        ([ROW, '{"id": 2, "response"}'], "r.jsonl, line 2: not JSON"),
        ([ROW, "", [1]], "r.jsonl, line 3: expected a JSON object"),
        ([{"id": 1, "respons": "a"}], "line 1: no field 'response' or 'responses'. The row has 'id', 'respons'. Did you mean"),
        ([ROW, {"id": 2, "score": 1}], "line 2: no field 'response'. The row has 'id', 'score'."),
        ([ROW, {"response": "a", "score": 1}], "line 2: no field 'id'"),
        ([ROW, {"id": 2, "response": "a"}], "line 2: no field 'score'"),
        ([ROW, {**ROW, "score": None}], "A: 1 of 2 responses have a grade. Grade all of them, or none."),
        ([{**ROW, "set": "ood"}], "the file has no row without a set. Its field 'set' says: ood. Choose with --of-set."),
        ([ROW, {**ROW, "score": "1"}], "line 2: score must be a finite number, true or false, found '1'"),
        (['{"id": 1, "response": "a", "score": NaN}'], "line 1: score must be a finite number"),
        ([{**ROW, "response": 5}], "line 1: response must be text, found the number 5"),
        ([{**ROW, "response": []}], "line 1: response is an empty list"),
        ([{**ROW, "response": ["a", "b"]}], "line 1: score must be a list of 2, one for each response, found 1"),
        ([{**ROW, "response": ["a", "b"], "score": [1]}], "must be a list of 2, one for each response, found a list of 1"),
        ([{**ROW, "response": ["a", 2], "score": [1, 1]}], "line 1: response must be text"),
        ([{**ROW, "response": "\ud800"}], "half of a surrogate pair"),
        ([{**ROW, "id": 1.5}], "line 1: id must be text, found the number 1.5"),
        ([{**ROW, "id": True}], "line 1: id must be text, found true or false"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(tmp_path, rows, message):
    with pytest.raises(DataError) as error:
        read_responses(write(tmp_path / "r.jsonl", *rows), name="A")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_tokens": -1}, "num_tokens must be a number of tokens, 0 or more, found -1"),
        ({"num_tokens": True}, "found True"),
        ({"num_tokens": 2.0}, "found 2.0"),
    ],
)
def test_token_counts_of_the_file(tmp_path, changes, message):
    file = write(tmp_path / "r.jsonl", {**ROW, **changes})
    with pytest.raises(DataError, match=message):
        read_responses(file, name="A", measure=None)
    assert len(read_responses(file, name="A").responses) == 1  # words do not look at it


def test_missing_files_fields_and_counts(tmp_path):
    file = write(tmp_path / "small.jsonl", {"response": "a", "m": {"text": "x"}})
    with pytest.raises(DataError, match=r"no such file.*Did you mean .*small\.jsonl"):
        read_responses(tmp_path / "smal.jsonl", name="A")
    with pytest.raises(DataError, match="cannot read"):
        read_responses(tmp_path, name="A")
    with pytest.raises(
        DataError, match=r"line 1: no field 'm\.txt'\. The row has 'text'\. Did you mean 'text'\?"
    ):
        read_responses(file, name="A", fields=Fields(response="m.txt"))
    with pytest.raises(DataError, match=r"no field 'm\.text\.x'\. The row has no fields"):
        read_responses(file, name="A", fields=Fields(response="m.text.x"))
    with pytest.raises(DataError, match="no field 'score'"):
        read_responses(file, name="A", fields=Fields(grade="score"))
    with pytest.raises(DataError, match=r"no field with a number of tokens\. Name it with --tokens"):
        read_responses(file, name="A", measure=None)


def test_a_set_is_graded_as_a_whole_or_not_at_all():
    graded = Response(prompt="p", text="", length=0, grade=1.0)
    with pytest.raises(DataError, match="A: 1 of 2 responses have a grade"):
        ResponseSet(name="A", responses=(graded, Response(prompt="p", text="", length=0)))
    with pytest.raises(DataError, match="A has no responses"):
        ResponseSet(name="A", responses=())


def test_a_verdict_comes_before_a_score_and_null_is_no_grade(tmp_path):
    """Countdown gives 0.1 for an answer that is wrong: the share of right ones is `is_correct`."""
    row = {"id": 1, "response": "a", "score": 0.1, "is_correct": False}
    found = read_responses(write(tmp_path / "r.jsonl", row), name="A")
    assert (found.responses[0].grade, found.fields.grade) == (0.0, "is_correct")
    named = read_responses(tmp_path / "r.jsonl", name="A", fields=Fields(grade="score"))
    assert (named.responses[0].grade, named.fields.grade) == (0.1, "score")
    nulls = write(tmp_path / "n.jsonl", *[{"id": 1, "response": "a", "score": None, "is_correct": None}] * 2)
    assert not read_responses(nulls, name="A").is_graded
    lists = write(tmp_path / "l.jsonl", {"id": 1, "responses": ["a", "b"], "score": [None, None]})
    assert not read_responses(lists, name="A").is_graded
    with pytest.raises(DataError, match="score must be a finite number, true or false, found None"):
        read_responses(nulls, name="A", fields=Fields(grade="score"))


def test_rows_of_evaluation_sets_are_kept_apart(tmp_path):
    rows = [{"id": 1, "response": "own"}, {"id": "ood/1", "response": "far", "set": "ood"}]
    file = write(tmp_path / "r.jsonl", *rows)
    assert [r.text for r in read_responses(file, name="A").responses] == ["own"]
    assert [r.text for r in read_responses(file, name="A", of_set="ood").responses] == ["far"]
    with pytest.raises(DataError, match=r"has no row of the set 'odd'\. Its field 'set' says: ood"):
        read_responses(file, name="A", of_set="odd")
