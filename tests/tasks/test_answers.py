"""Reading answers: numbers by one grammar, boxes by their braces; hostile text is graded, in linear time."""

from __future__ import annotations

import json
import math
import os
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from understudy.tasks import Grade
from understudy.tasks.answers import (
    GRADERS,
    grade_exact,
    grade_gsm8k,
    grade_numeric,
    gsm8k_answer,
    last_box,
    last_number,
    marked_number,
    read_number,
)

SAMPLE = Path(__file__).parent.parent / "data" / "gsm8k_sample"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", 18),
        ("18.00", 18),
        ("$18.50", Fraction(37, 2)),
        ("-3", -3),
        ("+3", 3),
        ("-$5", -5),
        ("$-5", -5),
        ("\u22127", -7),
        ("1,234", 1234),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("1{,}234", 1234),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        ("3/4", Fraction(3, 4)),
        ("6 / 8", Fraction(3, 4)),
        ("\\frac{3}{4}", Fraction(3, 4)),
        ("-\\dfrac{1}{2}", Fraction(-1, 2)),
        ("\\tfrac{-1}{2}", Fraction(-1, 2)),
        ("2e3", 2000),
        ("1.5E-1", Fraction(3, 20)),
    ],
)
def test_a_number_is_read_exactly(text, value):
    assert read_number(text) == value
    assert last_number(text) == value
    assert last_number(f"first 99, then {text}") == value
    assert marked_number(f"so\n#### {text}\n") == value
    assert gsm8k_answer(f"so \\boxed{{{text}}}.") == str(Fraction(value))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x = 18", 18),
        ("16 + 2 = 18", 18),
        ("18 \\text{ dollars}", 18),
        ("\\text{18 dollars}", 18),
        ("**18**.", 18),
        ("$18$", 18),
        ("\\$18", 18),
        ("\\(18\\)", 18),
        ("50\\%", 50),
        ("18 dollars per day.", 18),
        ("", None),
        ("eighteen", None),
        ("2^3", None),
        ("\\sqrt{16}", None),
        ("17 or 18", None),
        ("17, 18", None),
        ("1 1/2", None),
        ("5/0", None),
        ("\u0663", None),  # an Arabic-Indic 3
        ("\uff11\uff18", None),  # full-width 18
        ("\u00b2", None),  # a superscript 2: isdigit() is true, int() fails
        ("1e401", None),
        ("1e999999999", None),
        ("9" * 257, None),
    ],
)
def test_what_a_short_answer_says(text, value):
    assert read_number(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7-5", 5),
        ("(7)-5", 5),
        ("7 - 5", 5),
        ("7 -5", -5),
        ("it is -5.", -5),
        ("1,23", 23),
        ("1,2345", 2345),
        ("from 10,20", 20),
        ("48/2=24", 24),
        ("$0.2 x 50 = $10.", 10),
        ("none", None),
        ("10 or 1e999999999", None),  # the last number counts, and it is none that can be used
    ],
)
def test_the_last_number_of_a_text(text, value):
    assert last_number(text) == value


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\\boxed{5}", "5"),
        ("\\boxed{5} or \\boxed{6}", "6"),
        ("\\boxed{5} or \\boxed{6", "5"),  # cut off
        ("\\boxed{\\frac{1}{2}} then {", "\\frac{1}{2}"),
        ("\\boxed{{{5}}}", "{{5}}"),
        ("\\boxed{\\boxed{5}}", "5"),
        ("}}}{\\boxed{5}", "5"),
        ("\\boxed{a\\}b}", "a\\}b"),
        ("\\boxed{5} \\boxed{} \\boxed{ }", "5"),
        ("\\\\boxed{5}", None),  # an escaped backslash, then a word
        ("boxed{5}", None),
        ("\\boxed 5", None),
        ("", None),
    ],
)
def test_the_last_closed_box(text, content):
    assert last_box(text) == content


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("#### 72", 72),
        ("####72", 72),
        ("#### $1,000.", 1000),
        ("#### **-4**", -4),
        ("#### 18 dollars", 18),
        ("#### 5\nQuestion: another?\n#### 7", 5),  # the model went on with a question of its own
        ("#### Step by step\n#### 4", 4),
        ("#### \n5", None),
        ("### 5", None),
        ("5", None),
    ],
)
def test_the_marked_number(text, value):
    assert marked_number(text) == value


def test_a_box_goes_before_a_heading():
    assert gsm8k_answer("#### 1. Add\n#### 2. Halve\nso \\boxed{18}") == "18"
    assert gsm8k_answer("#### \\boxed{18}") == "18"
    assert gsm8k_answer("\\boxed{\\text{yes}}") == "\\text{yes}"
    assert gsm8k_answer("18") is None


def test_graders():
    gold = "16 + 2 = 18\n#### 18"
    for right in (
        "#### 18",
        "#### 18.00",
        "#### $18.",
        "\\boxed{18}",
        "\\boxed{\\frac{36}{2}}",
        "... #### 18 eggs",
    ):
        assert grade_gsm8k(right, gold) == Grade(score=1.0, is_correct=True, answer="18")
    for wrong in ("#### 17", "#### -18", "#### 180", "#### 1.8", "\\boxed{18, 19}", "\\boxed{17} #### 18"):
        assert not grade_gsm8k(wrong, gold).is_correct
    for nothing in ("18", "", "####", "the answer is 18", "\\boxed{18"):
        assert grade_gsm8k(nothing, gold) == Grade(score=0.0, is_correct=False, answer=None)
    assert grade_gsm8k("#### 1000", "#### 1,000").is_correct
    assert grade_numeric("it is 18 in all, A: 18", gold) == Grade(score=1.0, is_correct=True, answer="18")
    assert grade_numeric("18, no, 17", gold) == Grade(score=0.0, is_correct=False, answer="17")
    assert grade_numeric("none", "none") == Grade(score=0.0, is_correct=False, answer=None)
    assert grade_exact(" Paris\n", "Paris") == Grade(score=1.0, is_correct=True, answer="Paris")
    assert not grade_exact("paris", "Paris").is_correct
    assert not grade_gsm8k("", "").is_correct


def test_a_score_is_a_share():
    for score in (1.5, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"score must be in \[0, 1\]"):
            Grade(score=score, is_correct=False)


def gold_rows(folder: Path) -> list[str]:
    lines = [
        line for split in ("train", "test") for line in (folder / f"{split}.jsonl").read_text().splitlines()
    ]
    return [json.loads(line)["answer"] for line in lines]


def check_golds(solutions: list[str]) -> None:
    answers = [gsm8k_answer(solution) for solution in solutions]
    for solution, answer, other in zip(solutions, answers, [*answers[1:], answers[0]], strict=True):
        assert answer == solution.rpartition("####")[2].strip().replace(",", "")
        assert grade_gsm8k(solution, solution).is_correct
        assert grade_numeric(solution, solution).is_correct
        assert grade_gsm8k(f"The answer is \\boxed{{{answer}}}.", solution).is_correct
        assert grade_gsm8k(f"#### {other}", solution).is_correct == (answer == other)
        assert not grade_gsm8k(f"#### {answer}1", solution).is_correct


def test_gold_answers_are_right():
    check_golds(gold_rows(SAMPLE))


@pytest.mark.skipif(
    "UNDERSTUDY_GSM8K" not in os.environ, reason="UNDERSTUDY_GSM8K: folder of the real data set"
)
def test_gold_answers_of_the_real_data_are_right():
    solutions = gold_rows(Path(os.environ["UNDERSTUDY_GSM8K"]))
    assert len(solutions) > 8000
    check_golds(solutions)


hostile = (
    st.text(alphabet="0123456789,.$-+/eE#{}\\ boxedfracinty=\n<>\u0663\u00b2\u2212%~*", max_size=300)
    | st.text()
)


@settings(deadline=None, max_examples=300)
@given(hostile, hostile)
@example("\\boxed{1e999999999}", "#### 5")
@example("#### 1/0", "#### 0/1")
@example("\\frac{1}{0}", "1")
@example("#### " + "9" * 5000, "#### 9")
@example("1." + "0" * 5000, "1")
@example("\ud800", "\ud800")
def test_hostile_text_is_graded(response, reference):
    for name, grade in GRADERS.items():
        verdict = grade(response, reference)
        assert verdict.score == float(verdict.is_correct)
        assert not (verdict.is_correct and verdict.answer is None), name
        if (
            name != "math"
        ):  # its verdict is that of an answer against a reference: an interval is no inequality
            assert grade(reference, response).is_correct == verdict.is_correct


@settings(deadline=None)
@given(st.integers(-(10**12), 10**12), st.integers(1, 10**6))
def test_every_spelling_of_a_number_is_that_number(over, under):
    value = Fraction(over, under)
    spellings = [f"{over}/{under}", f"\\frac{{{over}}}{{{under}}}"] + (
        [f"{over:,}", f"{over}.00"] if under == 1 else []
    )
    for spelling in [*spellings, str(value)]:
        assert read_number(spelling) == last_number(f"so {spelling}") == value


SIZE = 2**17
BOMBS = {
    "digits": "1" * SIZE,
    "spaces": " " * SIZE,
    "signs": "-" * SIZE,
    "dollars": "$" * SIZE,
    "backslashes": "\\" * SIZE,
    "equals": "=" * SIZE,
    "open braces": "{" * SIZE,
    "open boxes": "\\boxed{" * (SIZE // 7),
    "closed boxes": "\\boxed{1}" * (SIZE // 9),
    "nested boxes": "\\boxed{" * (SIZE // 8) + "}" * (SIZE // 8),
    "blank nested boxes": "\\boxed{" * (SIZE // 16) + " " * (SIZE // 2) + "}" * (SIZE // 16),
    "marks": "#" * SIZE,
    "spaced marks": "#### " * (SIZE // 5),
    "far marks": ("####" + " " * 990) * (SIZE // 994),
    "marks of huge numbers": "#### 1e999999999 " * (SIZE // 17),
    "groups": "1," + "111," * (SIZE // 4),
    "open fractions": "\\frac{1" * (SIZE // 7),
    "a fraction that never ends": "\\frac{" + "111," * (SIZE // 4),
    "a denominator that never ends": "\\frac{1}{" + "1" * SIZE,
    "exponents": "1e" * (SIZE // 2),
    "slashes": "1/" * (SIZE // 2),
    "points": "1." * (SIZE // 2),
}


@pytest.mark.parametrize("name", BOMBS)
def test_time_grows_with_the_length_only(name):
    """128 KiB take under 0.2 s, where quadratic time would take minutes (2**34 steps)."""
    begin = time.process_time()
    for grade in GRADERS.values():
        grade(BOMBS[name], "#### 5")
    assert time.process_time() - begin < 2
