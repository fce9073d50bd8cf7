"""Countdown by Python's own parser and by brute force: what the tests compare with. Shares no code with the package."""

from __future__ import annotations

import ast
import re
import warnings
from fractions import Fraction
from itertools import permutations


def by_python(text: str) -> tuple[Fraction | None, list[int]] | None:
    """(value, numbers) of an expression of whole numbers with + - * /; None where it is anything else."""
    if re.search(r"(?<![0-9])0[0-9]", text) or "_" in text or not text.isascii():
        return None  # 00 and 1_0 are numbers in Python alone
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError):
        return None
    numbers: list[int] = []
    try:
        return _value(tree, numbers), numbers
    except TypeError:
        return None


def _value(node: ast.AST, numbers: list[int]) -> Fraction | None:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        numbers.append(node.value)
        return Fraction(node.value)
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div):
        raise TypeError(node)
    left, right = _value(node.left, numbers), _value(node.right, numbers)
    if left is None or right is None:
        return None
    if isinstance(node.op, ast.Div):
        return left / right if right else None
    if isinstance(node.op, ast.Mult):
        return left * right
    return left + right if isinstance(node.op, ast.Add) else left - right


def is_right(text: str, nums: list[int], target: int) -> bool:
    found = by_python(text)
    return found is not None and found[0] == target and sorted(found[1]) == sorted(nums)


def all_expressions(nums: tuple[int, ...]) -> dict[str, Fraction]:
    """Every fully bracketed expression over every order of the numbers, with its value."""
    found: dict[str, Fraction] = {}
    for order in set(permutations(nums)):
        found.update(_over(order))
    return found


def _over(order: tuple[int, ...]) -> dict[str, Fraction]:
    if len(order) == 1:
        return {str(order[0]): Fraction(order[0])}
    found: dict[str, Fraction] = {}
    for cut in range(1, len(order)):
        for x, a in _over(order[:cut]).items():
            for y, b in _over(order[cut:]).items():
                found[f"({x}+{y})"] = a + b
                found[f"({x}-{y})"] = a - b
                found[f"({x}*{y})"] = a * b
                if b:
                    found[f"({x}/{y})"] = a / b
    return found


def shape(text: str) -> object:
    """An expression up to the order and the bracketing of its sums and products: equal for a-(b-c) and c+(a-b)."""
    return _shape(ast.parse(text, mode="eval").body)


def _shape(node: ast.AST) -> object:
    if isinstance(node, ast.Constant):
        return node.value
    assert isinstance(node, ast.BinOp)
    kind = "sum" if isinstance(node.op, ast.Add | ast.Sub) else "product"
    return kind, tuple(sorted(_parts(node, kind, False), key=repr))


def _parts(node: ast.AST, kind: str, is_inverse: bool) -> list[tuple[bool, object]]:
    pairs = {"sum": (ast.Add, ast.Sub), "product": (ast.Mult, ast.Div)}[kind]
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, pairs)):
        return [(is_inverse, _shape(node))]
    flips = isinstance(node.op, pairs[1])
    return [*_parts(node.left, kind, is_inverse), *_parts(node.right, kind, is_inverse != flips)]
