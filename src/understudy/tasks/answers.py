"""Reading the final answer out of a response, and grading it against the reference.

Nothing is evaluated: numbers are read by one grammar into exact fractions. Every function here takes any
text, in time proportional to its length, and never raises on it: a response comes from a model and may be
hostile.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Literal

from understudy.tasks.task import Grade

Grader = Callable[[str, str], Grade]
"""(response, reference) -> grade."""
GraderName = Literal["exact", "numeric", "gsm8k", "math"]

MAX_NUMBER_CHARS = 256
"""A longer number is no answer: arithmetic on it would take more than linear time."""
MAX_EXPONENT = 400
MAX_ANSWER_CHARS = 1000
"""A longer box is not read as a number."""

# [0-9], never \d: digits of other scripts are not part of any answer format.
_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
# A sign counts where it cannot be a minus between two terms. It stands before or after the dollar.
_SIGN = r"(?:(?<![\w)\].])[+-])?"
_PLAIN = rf"(?P<sign>{_SIGN}(?:\$[ ]?)?{_SIGN})(?P<over>{_DECIMAL})(?:[ ]?/[ ]?(?P<under>{_DECIMAL}))?"
_LATEX = (
    rf"(?P<latex_sign>{_SIGN})\\[dt]?frac[ ]?"
    rf"\{{[ ]?(?P<latex_over>[+-]?{_DECIMAL})[ ]?\}}[ ]?\{{[ ]?(?P<latex_under>[+-]?{_DECIMAL})[ ]?\}}"
)
_NUMBER = re.compile(f"{_LATEX}|{_PLAIN}")
_UNIT = re.compile(r"[ ]?[A-Za-z%\u00b0 ]*")
_LEAD = re.compile(r"[ \t*]{0,16}")
_BOX_TOKEN = re.compile(r"\\boxed[ ]?\{|\\[{}\\]|[{}]")
_WRAPPER = re.compile(r"\\(?:text|textbf|mathbf|mathrm)\{([^{}]*)\}")
_SPELLINGS = (
    ("\u2212", "-"),
    ("{,}", ","),
    ("\\$", "$"),
    ("\\%", "%"),
    ("\\!", ""),
    ("\\,", " "),
    ("~", " "),
)


def last_number(text: str) -> Fraction | None:
    """The last number of a text, exactly; None where there is none or it is too long to be an answer.

    "1,234", "$1,234.50", "-3", "3/4", "\\frac{3}{4}" and "2e3" are one number each; "7-5" is a 7 and a 5,
    "7 -5" a 7 and a -5. Digits of other scripts are not numbers.
    """
    found = None
    for found in _NUMBER.finditer(_respelled(text)):  # noqa: B007 - the last one is wanted
        pass
    return None if found is None else _value(found)


def read_number(text: str) -> Fraction | None:
    """The number that a short text consists of, but for what is usual around one: "x =", a unit, a period.

    "18", "$18.00", "x = 18", "18 \\text{ dollars}" and "**18**." are 18; "2^3", "\\sqrt{16}", "17 or 18" and
    "" are None.
    """
    if len(text) > MAX_ANSWER_CHARS:
        return None
    text = _WRAPPER.sub(r" \1", _respelled(text)).rpartition("=")[2]
    text = text.strip().removeprefix("\\(").removesuffix("\\)").strip(" \t\n\r*").rstrip("$.* ")
    found = _NUMBER.match(text)
    if found is None or not _UNIT.fullmatch(text, found.end()):
        return None
    return _value(found)


def last_box(text: str) -> str | None:
    """The content of the closed \\boxed{...} that begins last; braces inside it may nest.

    Boxes that are never closed (a response cut off) and boxes with nothing in them do not count.
    """
    # One entry for every open brace: where the content of its box begins, None where it is a plain brace.
    open_at: list[int | None] = []
    best = (-1, -1)
    for token in _BOX_TOKEN.finditer(text):
        if token[0].startswith("\\boxed"):
            open_at.append(token.end())
        elif token[0] == "{":
            open_at.append(None)
        elif token[0] == "}" and open_at:
            start, end = open_at.pop(), token.start()
            if start is not None and start > best[0] and text[start:end].strip():
                best = (start, end)
    return None if best[0] < 0 else text[best[0] : best[1]]


def marked_number(text: str) -> Fraction | None:
    """The number after the first '####' that a number follows on its line, as in the answers of GSM8K."""
    text = _respelled(text)
    at = text.find("####")
    while at >= 0:
        lead = _LEAD.match(text, at + 4)
        found = _NUMBER.match(text, lead.end()) if lead else None
        if found is not None:
            return _value(found)
        at = text.find("####", at + 4)
    return None


def gsm8k_answer(text: str) -> str | None:
    """The final answer of a solution, in one spelling: its last box, else the number marked by '####'.

    A box goes first because models that box their answers also write '####' as a heading.
    """
    box = last_box(text)
    if box is None:
        number = marked_number(text)
        return None if number is None else spelled(number)
    number = read_number(box)
    return box.strip()[:MAX_ANSWER_CHARS] if number is None else spelled(number)


def spelled(number: Fraction) -> str:
    """One spelling for each number: 18.00 and 18 are '18', 0.75 and 6/8 are '3/4'."""
    return str(number)


def grade_exact(response: str, reference: str) -> Grade:
    """Right if the texts are equal but for white space around them."""
    answer = response.strip()
    return _grade(answer, is_correct=answer == reference.strip())


def grade_numeric(response: str, reference: str) -> Grade:
    """Right if the last numbers of the two texts are equal, as exact fractions."""
    number, gold = last_number(response), last_number(reference)
    answer = None if number is None else spelled(number)
    return _grade(answer, is_correct=number is not None and number == gold)


def grade_gsm8k(response: str, reference: str) -> Grade:
    """Right if the marked answers are the same number; a response without a mark or a box has no answer."""
    answer, gold = gsm8k_answer(response), gsm8k_answer(reference)
    return _grade(answer, is_correct=answer is not None and answer == gold)


def grade_math(response: str, reference: str) -> Grade:
    """Right if the answers are equal as mathematics: see `tasks.math`, which needs math-verify."""
    from understudy.tasks.math import grade_math as grade  # what it starts is started when it is wanted

    return grade(response, reference)


GRADERS: Mapping[GraderName, Grader] = MappingProxyType(
    {"exact": grade_exact, "numeric": grade_numeric, "gsm8k": grade_gsm8k, "math": grade_math}
)


def _grade(answer: str | None, *, is_correct: bool) -> Grade:
    return Grade(score=float(is_correct), is_correct=is_correct, answer=answer)


def _respelled(text: str) -> str:
    for spelling, plain in _SPELLINGS:
        text = text.replace(spelling, plain)
    return text


def _value(found: re.Match[str]) -> Fraction | None:
    if len(found[0]) > MAX_NUMBER_CHARS:
        return None
    kind = "latex_" if found["over"] is None else ""
    over = _decimal(found[f"{kind}over"])
    under = Fraction(1) if found[f"{kind}under"] is None else _decimal(found[f"{kind}under"])
    if over is None or not under:  # no number, or a division by zero
        return None
    return over / under * (-1) ** found[f"{kind}sign"].count("-")


def _decimal(text: str) -> Fraction | None:
    mantissa, _, exponent = text.replace(",", "").lower().partition("e")
    power = int(exponent or 0)
    return None if abs(power) > MAX_EXPONENT else Fraction(mantissa) * Fraction(10) ** power
