"""The program of the child process that compares mathematical answers: run as a script by `tasks.math`, never imported.

One JSON object a line in, {"gold": text, "answer": text}, each with its mathematics in a box or between dollars; one out:
{"is_correct": bool, "answer": text or null}. math-verify stops what takes long with signals, which work in the main thread
of a process alone; and not all that sympy does can be stopped by a signal: our caller kills us then.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from functools import lru_cache
from typing import Any

import sympy
from math_verify import parse, verify  # pyright: ignore[reportMissingImports]

PARSE_SECONDS = 3
VERIFY_SECONDS = 3
MEMORY_BYTES = 4 << 30
MAX_SPELLED = 200


_BARE_FRACTION = re.compile(r"\\[dt]?frac\s*(\\[A-Za-z]+)\s*([0-9]|\\[A-Za-z]+)")


def read(text: str) -> list[Any]:
    """What math-verify reads; a bare fraction such as \\frac\\pi2 first gets the braces without which it would be cut."""
    return parse(_BARE_FRACTION.sub(r"\\frac{\1}{\2}", text), parsing_timeout=PARSE_SECONDS)


read_gold = lru_cache(maxsize=4096)(read)


def spelled(found: list[Any]) -> str | None:
    """One spelling of an answer, so that equal ones can be counted: 0.5, 1/2 and x = 1/2 are '1/2'."""
    if not found:
        return None
    value = found[0]
    if isinstance(value, sympy.Equality) and value.lhs.is_Symbol:
        value = value.rhs
    if isinstance(value, sympy.Expr) and value.is_number and _is_small(value):
        value = value.doit()
        value = sympy.nsimplify(value, rational=True) if value.has(sympy.Float) else value
    return str(value)[:MAX_SPELLED]


def _is_small(value: sympy.Expr) -> bool:
    """Whether it can be computed at once: no towers of powers."""
    return all(p.exp.is_Integer and abs(p.exp) <= 10 for p in value.atoms(sympy.Pow))


def judge(gold: str, answer: str) -> dict[str, Any]:
    """The verdict on one answer."""
    wanted, found = read_gold(gold), read(answer)
    # Gold first: math-verify is not symmetric.
    is_correct = bool(verify(wanted, found, timeout_seconds=VERIFY_SECONDS)) if wanted and found else False
    return {"is_correct": is_correct, "answer": spelled(found)}


def main() -> None:
    with contextlib.suppress(
        ImportError, ValueError, OSError
    ):  # a platform without it, or a lower limit that holds
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not stand between the answers
    out.write("ready\n")
    out.flush()
    for line in sys.stdin:
        try:
            verdict = judge(**json.loads(line))
        except Exception as error:  # noqa: BLE001 - whatever a model wrote, the next answer must be judged
            verdict = {"is_correct": False, "answer": None, "error": repr(error)[:200]}
        out.write(json.dumps(verdict) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
