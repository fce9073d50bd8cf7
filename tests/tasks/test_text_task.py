"""What every text task does with its rows: epochs, slices, disjoint splits, held-out rows, grades."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import make_tokenizer

from understudy.errors import ConfigError, DataError
from understudy.tasks import Split, Task, TextEncoder, TextRow, TextTask
from understudy.tasks.answers import grade_numeric
from understudy.tasks.text_task import hold_out

ENCODER = TextEncoder(tokenizer=make_tokenizer(), max_prompt_tokens=50, max_new_tokens=20)


def rows_of(split: str, count: int) -> list[TextRow]:
    return [
        TextRow(
            id=str(i), where=f"{split}.jsonl, line {i + 1}", content=f"{split} {i}", reference=f" it is {i}"
        )
        for i in range(count)
    ]


def make_task(seed: int = 1337, train: int = 7, **others: int) -> TextTask:
    rows: dict[Split, list[TextRow]] = {"train": rows_of("train", train)}
    if "validation" in others:
        rows["validation"] = rows_of("validation", others["validation"])
    return TextTask(name="t", rows=rows, encoder=ENCODER, grader=grade_numeric, seed=seed)


def test_is_a_task():
    task: Task = make_task()
    assert (task.vocab_size, task.action_ids, task.oracle(), task.stop_strings) == (None, None, None, ())
    assert (task.max_new_tokens, task.eos_ids) == (20, {2})
    prompt = task.prompts("train", 0, 1)[0]
    assert task.token_grades(prompt, prompt.reference_ids or ()) is None


@settings(deadline=None, max_examples=30)
@given(start=st.integers(0, 40), count=st.integers(0, 40), split=st.sampled_from(["train", "validation"]))
def test_an_item_depends_on_its_index_alone(start, count, split):
    task, other = make_task(validation=11), make_task(validation=11)
    whole = task.prompts(split, start, count)
    assert whole == [p for i in range(start, start + count) for p in other.prompts(split, i, 1)]
    assert len(whole) == (count if split == "train" else max(0, min(count, 11 - start)))


def test_an_epoch_is_every_row_once_in_an_order_of_its_own():
    task = make_task(train=50)
    epochs = [[p.id for p in task.prompts("train", 50 * e, 50)] for e in range(3)]
    assert all(sorted(epoch) == sorted(f"train/{i}" for i in range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [p.id for p in make_task(seed=1, train=50).prompts("train", 0, 50)] != epochs[0]


def test_evaluation_keeps_the_order_of_the_rows():
    task = make_task(validation=5)
    assert task.size("validation") == 5
    assert [p.id for p in task.prompts("validation", 1, 99)] == [f"validation/{i}" for i in range(1, 5)]


def test_a_split_that_is_not_there():
    task = make_task()
    assert task.size("test") == 0
    with pytest.raises(DataError, match=r"the task t has no test split \(it has: train\)"):
        task.prompts("test", 0, 1)


def test_a_prompt_carries_its_row():
    (prompt,) = make_task(train=1).prompts("train", 0, 1)
    assert (prompt.id, prompt.text, prompt.reference) == ("train/0", "train 0", " it is 0")
    assert ENCODER.decode(prompt.token_ids) == "train 0"
    assert ENCODER.decode(prompt.reference_ids or ()) == " it is 0<eos>"
    assert prompt.meta == {"source": "train.jsonl, line 1", "answer": "0"}


def test_the_reference_is_right_and_others_are_wrong():
    task = make_task(train=9)
    prompts = task.prompts("train", 0, 9)
    for prompt, other in zip(prompts, [*prompts[1:], prompts[0]], strict=True):
        right = task.grade(prompt, prompt.reference_ids or ())
        wrong = task.grade(prompt, other.reference_ids or ())
        assert right is not None
        assert wrong is not None
        assert (right.is_correct, right.answer) == (True, prompt.meta["answer"])
        assert (wrong.is_correct, wrong.answer) == (False, other.meta["answer"])


def test_without_a_grader_there_is_no_grade():
    rows = [TextRow(id="0", where="line 1", content="hi")]
    task = TextTask(name="t", rows={"train": rows}, encoder=ENCODER, grader=None)
    assert task.grade(task.prompts("train", 0, 1)[0], [70]) is None


def test_rows_that_cannot_be_used():
    one, two = rows_of("a", 2)

    def build(train: list[TextRow], validation: list[TextRow]) -> None:
        TextTask(
            name="t", rows={"train": train, "validation": validation}, encoder=ENCODER, grader=grade_numeric
        )

    again = TextRow(id="0", where="a.jsonl, line 9", content="other", reference="1")
    with pytest.raises(DataError, match=r"a.jsonl, line 9: the id '0' is also that of a.jsonl, line 1"):
        build([one, again], [two])
    with pytest.raises(
        DataError, match=r"a.jsonl, line 1: this prompt of the validation split is also.*line 1\)"
    ):
        build([one], [one])
    with pytest.raises(DataError, match=r"line 9: has no reference, and the grader needs one"):
        build([one], [TextRow(id="0", where="line 9", content="x")])
    build([TextRow(id="0", where="line 9", content="x")], [two])  # training rows need no reference
    with pytest.raises(DataError, match=r"line 9: the grader finds no answer in the reference 'none'"):
        build([TextRow(id="0", where="line 9", content="x", reference="none")], [two])
    with pytest.raises(DataError, match=r"nothing is left of the validation split of t: it has no rows"):
        build([one], [])


def test_dropped_rows_are_counted_and_never_all():
    short = TextEncoder(tokenizer=make_tokenizer(), max_prompt_tokens=7, max_new_tokens=20, too_long="drop")
    rows = rows_of("a", 12)  # "a 10" and "a 11" are one token longer
    sizes = [len(short.tokenizer(str(row.content))["input_ids"]) for row in rows]
    short = TextEncoder(
        tokenizer=short.tokenizer, max_prompt_tokens=sizes[0], max_new_tokens=20, too_long="drop"
    )
    task = TextTask(name="t", rows={"train": rows}, encoder=short, grader=None)
    assert (task.size("train"), task.num_dropped) == (
        sizes.count(sizes[0]),
        {"train": 12 - sizes.count(sizes[0])},
    )
    assert 0 < task.num_dropped["train"] < 12
    none = TextEncoder(tokenizer=short.tokenizer, max_prompt_tokens=1, max_new_tokens=20, too_long="drop")
    with pytest.raises(DataError, match="nothing is left of the train split of t: all 12 rows are too long"):
        TextTask(name="t", rows={"train": rows}, encoder=none, grader=None)


def test_held_out_rows_depend_on_content_and_seed_alone():
    rows = rows_of("a", 40)
    rest, held = hold_out(rows, 8, seed=1)
    assert len(held) == 8
    assert sorted(r.id for r in rest + held) == sorted(r.id for r in rows)
    assert [int(r.id) for r in held] == sorted(int(r.id) for r in held)
    shuffled = random.Random(0).sample(rows, 40)
    assert {r.id for r in hold_out(shuffled, 8, seed=1)[1]} == {r.id for r in held}
    assert {r.id for r in hold_out(rows, 8, seed=2)[1]} != {r.id for r in held}
    more = hold_out(rows + rows_of("b", 2), 8, seed=1)[1]
    assert len({r.content for r in more} & {r.content for r in held}) >= 6


def test_a_twin_of_a_held_out_row_is_not_trained_on():
    rows = rows_of("a", 20)
    twins = [TextRow(id=f"twin {r.id}", where=r.where, content=r.content) for r in rows]
    rest, held = hold_out(rows + twins, 5, seed=1)
    assert len(held) == 5
    assert not {r.content for r in rest} & {r.content for r in held}
    assert len(rest) == 40 - 2 * len({r.content for r in held})


@pytest.mark.parametrize("count", [-1, 0, 4, 5])
def test_too_many_held_out_rows(count):
    with pytest.raises(ConfigError, match=rf"validation_rows must be in 1 \.\. 3 .*got {count}"):
        hold_out(rows_of("a", 4), count, seed=1)


def test_held_out_rows_that_leave_nothing():
    same = [TextRow(id=str(i), where="", content="same") for i in range(3)]
    with pytest.raises(DataError, match="all 3 rows have the same few prompts"):
        hold_out(same, 1, seed=1)


def test_a_seed_that_cannot_be():
    with pytest.raises(ConfigError, match="seed must be >= 0, got -1"):
        make_task(seed=-1)
