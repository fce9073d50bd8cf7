"""Arithmetic expressions as a model may write them: read by a grammar into exact fractions, never evaluated as code.

    expression  term (("+" | "-") term)*        term    factor (("*" | "/") factor)*
    factor      number | "(" expression ")"     number  "0" | a digit 1 .. 9 and further digits, ASCII only

Spaces, tabs and line ends may stand between tokens. There is no sign before a number or bracket, no power, no
decimal point. Every function here takes any text, in time proportional to its length, and never raises on it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARS = 200
"""A longer text is not read; the longest answer to a puzzle of five numbers has some 60 characters."""
MAX_DEPTH = 32
MAX_DIGITS = 9

_TOKEN = re.compile(r"[ \t\r\n]*(?:(?P<number>[0-9]+)|(?P<sign>[-+*/()]))")
_BLANK = " \t\r\n"
RANK = {"+": 1, "-": 1, "*": 2, "/": 2}
"""How strongly an operator binds; a number or a bracket binds with NUMBER_RANK."""
NUMBER_RANK = 3

Written = tuple[str, int]
"""An expression's text and the rank of its outermost operator."""


@dataclass(frozen=True, kw_only=True)
class Expression:
    """A well-formed expression: its value (None: it divides by zero), its numbers from left to right, its text without
    spaces."""

    value: Fraction | None
    numbers: tuple[int, ...]
    text: str


def read_expression(text: str) -> Expression | None:
    """The expression that a text consists of; None where it is not one, or is over a limit (`MAX_...`)."""
    tokens = _tokens(text)
    if tokens is None:
        return None
    values: list[Fraction | None] = []
    waiting: list[str] = []  # operators and open brackets whose right side is not complete
    depth, is_operand_next = 0, True
    for token in tokens:
        is_operand = token == "(" or token[0].isdigit()
        if is_operand != is_operand_next:
            return None
        if token == "(":
            depth += 1
            if depth > MAX_DEPTH:
                return None
            waiting.append(token)
        elif token == ")":
            _reduce(values, waiting, rank=1)
            if not waiting:
                return None
            waiting.pop()
            depth -= 1
        elif is_operand:
            values.append(Fraction(int(token)))
            is_operand_next = False
        else:
            _reduce(values, waiting, rank=RANK[token])
            waiting.append(token)
            is_operand_next = True
    if is_operand_next or depth:
        return None
    _reduce(values, waiting, rank=1)
    numbers = tuple(int(token) for token in tokens if token[0].isdigit())
    return Expression(value=values[0], numbers=numbers, text="".join(tokens))


def _tokens(text: str) -> list[str] | None:
    if len(text) > MAX_CHARS:
        return None
    text = text.rstrip(_BLANK)
    tokens: list[str] = []
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            return None
        number = found["number"]
        if number is not None and (len(number) > MAX_DIGITS or (number[0] == "0" and number != "0")):
            return None
        tokens.append(number or found["sign"])
        at = found.end()
    return tokens


def _reduce(values: list[Fraction | None], waiting: list[str], *, rank: int) -> None:
    """Carry out the waiting operators, back to the last open bracket, that bind at least as strongly as `rank`."""
    while waiting and waiting[-1] != "(" and RANK[waiting[-1]] >= rank:
        right, left = values.pop(), values.pop()
        values.append(_applied(waiting.pop(), left, right))


def _applied(operator: str, left: Fraction | None, right: Fraction | None) -> Fraction | None:
    if left is None or right is None or (operator == "/" and right == 0):
        return None
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    return left * right if operator == "*" else left / right


def number(value: int) -> Written:
    """A number as an expression."""
    return str(value), NUMBER_RANK


def joined(operator: str, left: Written, right: Written) -> Written:
    """left operator right, with the brackets that the value needs and no others."""
    rank = RANK[operator]
    a = f"({left[0]})" if left[1] < rank else left[0]
    # a-(b+c) and a/(b*c) need theirs; a+(b-c) = a+b-c and a*(b/c) = a*b/c do not.
    needs = right[1] < rank or (right[1] == rank and operator in "-/")
    return f"{a}{operator}{f'({right[0]})' if needs else right[0]}", rank


def spaced(text: str) -> str:
    """(12-7)*3 -> (12 - 7) * 3, as in prose."""
    return re.sub(r"([-+*/])", r" \1 ", text)
