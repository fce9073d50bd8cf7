"""Expressions and grades of Countdown, against Python's own parser; hostile text never raises and never hangs."""

from __future__ import annotations

import json
import os
import random
import time
from fractions import Fraction
from pathlib import Path

import pytest
from countdown_oracle import by_python, is_right
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.tasks.countdown import grade_compact, grade_countdown, read_expression
from understudy.tasks.countdown.expressions import MAX_CHARS, MAX_DEPTH, RANK, joined, number, spaced

SAMPLE = Path(__file__).parent.parent / "data" / "countdown_sample"


def random_expression(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.3:
        return str(rng.choice([0, 1, 2, 3, 7, 25, 100, 999]))
    blank = rng.choice(["", "", " "])
    text = f"{random_expression(rng, depth - 1)}{blank}{rng.choice('+-*/')}{blank}{random_expression(rng, depth - 1)}"
    return f"({text})" if rng.random() < 0.5 else text


def damaged(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text) + 1)
    return rng.choice(
        [
            text[:at] + rng.choice("+-*/() 059.%_") + text[at:],
            text[:at] + text[at + 1 :],
            text[at:],
            text[:at],
        ]
    )


def test_ten_thousand_random_expressions_against_pythons_parser():
    rng = random.Random(1)
    num_valid = num_undefined = 0
    for i in range(10_000):
        text = random_expression(rng, rng.randrange(5))
        for _ in range(i % 3):
            text = damaged(rng, text)
        if len(text) > MAX_CHARS:
            continue
        expected, found = by_python(text), read_expression(text)
        assert (found is None) == (expected is None), text
        if found is not None and expected is not None:
            assert (found.value, list(found.numbers)) == expected, text
            assert found.text == text.replace(" ", "")
            num_valid += 1
            num_undefined += found.value is None
    assert num_valid > 4000
    assert num_undefined > 100


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2-3-4", -5),  # from the left
        ("2/3/4", Fraction(1, 6)),
        ("2+3*4", 14),
        ("(2+3)*4", 20),
        ("2-3*4+5", -5),
        ("7/(3-1)", Fraction(7, 2)),
        (" ( 1 + 2 ) / 3\n", 1),
        ("0", 0),
        ("999999999", 999999999),
    ],
)
def test_by_hand(text, value):
    found = read_expression(text)
    assert found is not None
    assert found.value == value


NO_EXPRESSIONS = (
    *(
        "",
        " ",
        "+",
        "()",
        "(1",
        "1)",
        ")1(",
        "1)+(2",
        "1 2",
        "1+",
        "*1",
        "-1+2",
        "+1",
        "1--2",
        "(-1)",
        "2**3",
        "7//2",
    ),
    *(
        "1.5+2",
        "1e3",
        "0x10",
        "1_0",
        "05",
        "00",
        "1+2=3",
        "1,2",
        "1;2",
        "x",
        "1(2)",
        "(1)(2)",
        "1\x002",
        "1\x0b+2",
    ),
    *(
        "\u0663+1",
        "\uff11\uff0b\uff12",
        "1\u22122",
        "2\u00d73",
        "6\u00f72",
        "\u00b2",
        "1\u00a0+2",
        "1234567890",
    ),
)


@pytest.mark.parametrize("text", NO_EXPRESSIONS)
def test_what_is_no_expression(text):
    assert read_expression(text) is None


@pytest.mark.parametrize("text", ["1/0", "1/(2-2)", "0/0", "(1/0)*0", "0*(5/(3-3))", "3-1/0"])
def test_a_division_by_zero_has_no_value(text):
    found = read_expression(text)
    assert found is not None
    assert found.value is None


def test_limits():
    deep = "(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH
    assert read_expression(deep) is not None
    assert read_expression(f"({deep})") is None
    assert read_expression("1" + "+1" * ((MAX_CHARS - 1) // 2)) is not None
    assert read_expression("1" + "+1" * (MAX_CHARS // 2)) is None


HOSTILE = [
    "9**9**9**9",
    "(" * 100_000,
    ")" * 100_000,
    "(" * 50_000 + "1" + ")" * 50_000,
    "9" * 1_000_000,
    "1+" * 500_000,
    " " * 1_000_000,
    "\n" * 1_000_000 + "1",
    "<answer>" * 100_000,
    "</answer>" * 100_000,
    "<answer></answer>" * 50_000,
    "__import__('os').system('true')",
    "\x00",
    "\ud800",
    "1/0" * 60,
    "999999999*" * 19 + "999999999",
    "1/" * 99 + "7",
    "!" * 100_000,
    "!" + "9" * 100_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:12]))
def test_hostile_text_is_graded_at_once(text):
    begin = time.process_time()
    for response in (text, f"<answer>{text}</answer>", f"!{text}"):
        for grade in (grade_countdown(response, [1, 2], 3), grade_compact(response, [1, 2], 3)):
            assert not grade.is_correct
            assert grade.score in (0.0, 0.1)
    read_expression(text)
    assert time.process_time() - begin < 0.5


def test_twenty_thousand_random_strings():
    rng = random.Random(2)
    alphabet = "0123456789+-*/() \t\n\r\x00=.,!<>answer/\u0661\uff10\uff0b\u2212\u00d7\ud83d\udfff_eEj#"
    for _ in range(20_000):
        text = "".join(rng.choices(alphabet, k=rng.randrange(40)))
        assert grade_countdown(text, [1, 2], 3).score <= 1
        assert grade_compact(text, [1, 2], 3).score <= 1


@settings(deadline=None, max_examples=300)
@given(st.text())
def test_any_text(text):
    assert grade_countdown(f"<answer>{text}</answer>", [1], 1).score in (0.1, 1.0)


@pytest.mark.parametrize(
    ("response", "score", "answer"),
    [
        ("<answer> (12 - 7) * 3 </answer>", 1, "(12-7)*3"),
        ("no</think>\n<answer>3*(12-7)</answer> and more\nlines", 1, "3*(12-7)"),
        ("<answer>1</answer> wait <answer>(12-7)*3</answer>", 1, "(12-7)*3"),
        ("<answer>(12-7)*3</answer> wait <answer>1</answer>", 0.1, "1"),
        ("<answer><answer>(12-7)*3</answer>", 1, "(12-7)*3"),
        ("<answer>(12-7)*3</answer> <answer>12", 1, "(12-7)*3"),
        ("<answer>(12-7)*3 = 15</answer>", 0.1, None),
        ("<answer>15</answer>", 0.1, "15"),
        ("<answer>12+3</answer>", 0.1, "12+3"),  # 7 is not used
        ("<answer>(12-7)*3*1</answer>", 0.1, "(12-7)*3*1"),  # 1 was not given
        ("<answer>(12-7)*3+7-7</answer>", 0.1, "(12-7)*3+7-7"),
        ("<answer>12/7*3</answer>", 0.1, "12/7*3"),
        ("<answer></answer>", 0.1, None),
        ("<answer>15/0</answer>", 0.1, "15/0"),
        ("(12-7)*3", 0, None),
        ("<answer>(12-7)*3", 0, None),
        ("(12-7)*3</answer>", 0, None),
        ("</answer>(12-7)*3<answer>", 0, None),
        ("<ANSWER>(12-7)*3</ANSWER>", 0, None),
        ("", 0, None),
    ],
)
def test_the_published_rewards(response, score, answer):
    grade = grade_countdown(response, [3, 7, 12], 15)
    assert (grade.score, grade.is_correct, grade.answer) == (score, score == 1, answer)


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("12-7=5,5*3=15!(12-7)*3", 1),
        ("!1!(12-7)*3", 1),
        ("!(12-7)*3!1", 0.1),
        ("!", 0.1),
        ("(12-7)*3", 0),
        ("", 0),
    ],
)
def test_the_compact_rewards(response, score):
    assert grade_compact(response, [3, 7, 12], 15).score == score


def test_a_number_that_is_there_twice_is_used_twice():
    assert grade_compact("!5*5", [5, 5], 25).is_correct
    assert not grade_compact("!5*5", [5, 7], 25).is_correct
    assert not grade_compact("!25", [5, 5], 25).is_correct
    assert not grade_compact("!5+20", [5], 25).is_correct


def test_nearly_is_not_equal():
    # 10**9 / 3 * 3 is exact; 1/3 in floating point would make these two equal.
    assert grade_compact("!1/3*3", [1, 3, 3], 1).is_correct
    assert not grade_compact("!999999999/999999998", [999999999, 999999998], 1).is_correct


def check_golds(folder: Path) -> int:
    """Every solution scores 1, and alterations of it score what Python's parser says."""
    rng = random.Random(3)
    num_rows = 0
    for file in sorted(folder.glob("*.jsonl")):
        for row in map(json.loads, file.read_text().splitlines()):
            nums, target, solution = row["nums"], row["target"], row["solution"]
            num_rows += 1
            for answer in (
                solution,
                damaged(rng, solution),
                solution.replace("-", "+"),
                solution.replace("(", ""),
            ):
                expected = is_right(answer, nums, target)
                assert expected or answer != solution
                for grade in (
                    grade_countdown(f"<answer>{answer}</answer>", nums, target),
                    grade_compact(f"!{answer}", nums, target),
                ):
                    assert (grade.score, grade.is_correct) == (1.0 if expected else 0.1, expected), answer
    return num_rows


def test_gold_answers_of_the_sample_are_right():
    assert check_golds(SAMPLE) == 40


@pytest.mark.skipif(
    "UNDERSTUDY_COUNTDOWN" not in os.environ, reason="UNDERSTUDY_COUNTDOWN: folder of the real rows"
)
def test_gold_answers_of_the_real_data_are_right():
    assert check_golds(Path(os.environ["UNDERSTUDY_COUNTDOWN"])) == 12_000


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_written_expressions_have_the_value_of_their_tree(data):
    """Random trees: the brackets that are written are enough, and leaving out any pair changes value or tree."""

    def tree(depth: int):
        if depth == 0 or data.draw(st.booleans()):
            n = data.draw(st.integers(1, 9))
            return number(n), Fraction(n)
        (left, a), (right, b) = tree(depth - 1), tree(depth - 1)
        operator = data.draw(st.sampled_from(sorted(RANK)))
        if a is None or b is None or (operator == "/" and not b):
            return joined(operator, left, right), None
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[operator]
        return joined(operator, left, right), value

    (text, _), value = tree(4)
    found = by_python(text)
    assert found is not None
    assert found[0] == value
    assert spaced(text).replace(" ", "") == text


def test_brackets_are_written_only_where_they_are_needed():
    a, b, c = map(number, (1, 2, 3))
    assert joined("-", a, joined("-", b, c))[0] == "1-(2-3)"
    assert joined("+", a, joined("-", b, c))[0] == "1+2-3"
    assert joined("-", joined("-", a, b), c)[0] == "1-2-3"
    assert joined("/", a, joined("*", b, c))[0] == "1/(2*3)"
    assert joined("*", a, joined("/", b, c))[0] == "1*2/3"
    assert joined("*", joined("+", a, b), c)[0] == "(1+2)*3"
    assert joined("+", joined("*", a, b), c)[0] == "1*2+3"
