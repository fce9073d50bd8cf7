"""Grading mathematical answers through math-verify (the extra `math-verify`), in a child process.

Why not here: math-verify's time limits are signals, which no thread but the main one can have; and an answer such as
9^{9^{9^9}} can keep sympy busy where no signal reaches it. The child is killed after `HARD_SECONDS`, the answer is wrong,
and the next one gets a new child. Two kinds of answers never go there, for it reads letters as products of symbols:

    choices    a gold answer that is one capital letter, such as B, (B) or \\text{(B)}: the letter must be the same
    words      a gold answer of letters alone, such as \\text{Evelyn} or even: the words must be the same, but for case
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import re
import select
import subprocess
import sys
import threading
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from understudy.errors import ConfigError
from understudy.tasks.answers import MAX_ANSWER_CHARS, last_box
from understudy.tasks.task import Grade

HARD_SECONDS = 10.0
"""More than the child's own limits for reading two answers and comparing them, which end most of what takes long."""
START_SECONDS = 120.0
MAX_READ_CHARS = 4000
"""Of a response without a box only its end is read."""

_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textrm|mbox)\s*\{([^{}]*)\}")
_CHOICE = re.compile(r"\(?([A-J])\)?[.:]?")
_WORDS = re.compile(r"[A-Za-z]+(?:[ -][A-Za-z]+)*")
_LETTER = r"[\s*$]*(?:\(([A-J])\)|([A-J])(?![A-Za-z0-9]))[*$]*"
_LETTER_ALONE = r"[\s*$]*(?:\(([A-J])\)|([A-J])(?=[*$]*(?:[.,;:!?\n]|\Z)))[*$]*"
_STATED_CHOICE = re.compile(
    rf"(?:(?i:answer)\s*(?i:is|:)\s*:?{_LETTER}|\b(?i:choice|option)\s*(?i:is|:)?\s*:?{_LETTER}|\b(?i:must be){_LETTER_ALONE})"
)
_DENIED = re.compile(
    r"\s*(?:(?:is|are|was)\s+(?:not|wrong|incorrect|false|impossible|out)\b|(?:is|does|can|wo)n't\b|cannot\b|does not\b|fails\b)"
)
_STATED_WORDS = re.compile(r"\b(?i:answer)\s*(?i:is|:)[\s:*$]*([A-Za-z]+(?:[ -][A-Za-z]+)*)")
_MONEY = re.compile(r"(?<!\\)\\\$")
"""A dollar that is money; one without a backslash opens or closes mathematics."""
_LEAST_WORD = 4
"""Shorter words outside \\text{} may be mathematics: pi, xy, sin."""


def grade_math(response: str, reference: str) -> Grade:
    """Right if the response's answer equals the reference's, as mathematics.

    The answer is what stands in the last closed \\boxed{}; without one, what math-verify finds last in the text. The
    reference is a solution with a box, or the bare answer. `answer` is spelled so that equal answers mostly look equal
    (0.5 and 1/2 are both '1/2'). Takes any response: what cannot be read, or takes too long, is wrong.

    Raises:
        ConfigError: math-verify is not installed, or does not start.
    """
    require_math_verify()
    gold = last_box(reference)
    gold = (reference if gold is None else gold).strip()
    box = last_box(response)
    choice = _CHOICE.fullmatch(_plain(gold))
    if choice is not None:
        found = _choice(response if box is None else box, is_boxed=box is not None)
        return _grade(found, is_correct=found == choice[1])
    if _is_words(gold):
        words = None if box is None else _folded(box)
        words = _words(response, gold) if words is None else words
        return _grade(words, is_correct=words == _folded(gold))
    if not gold or len(gold) > MAX_READ_CHARS or (box is not None and len(box) > MAX_ANSWER_CHARS):
        return _grade(None, is_correct=False)
    if box is None and response.strip() == gold:
        box = gold  # the bare answer, which without a box or dollars is not always seen to be mathematics
    answer = _MONEY.sub("", response[-MAX_READ_CHARS:]) if box is None else f"\\boxed{{{box}}}"
    gold = _MONEY.sub("", gold)
    return _judged(gold if gold.count("$") > 1 else f"\\boxed{{{gold}}}", answer)


def require_math_verify() -> None:
    """Refuse before anything is graded.

    Raises:
        ConfigError: the extra is not installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise ConfigError(
            "grader 'math' compares answers with math-verify, which is not installed: pip install 'understudy[math-verify]'. "
            "For plain numbers grader = 'numeric' or 'gsm8k' needs nothing."
        )


def _grade(answer: str | None, *, is_correct: bool) -> Grade:
    return Grade(score=float(is_correct), is_correct=is_correct, answer=answer or None)


def _plain(text: str) -> str:
    return _WRAPPED.sub(r"\1", text).strip(" \t\n$.")


def _folded(text: str) -> str:
    return " ".join(_plain(text).casefold().split())[:MAX_ANSWER_CHARS]


def _choice(text: str, *, is_boxed: bool) -> str | None:
    """The letter a response settles on: its box, all of it, or the last 'answer is (B)', 'option (B)' or 'must be (B)' in it
    that is not taken back at once ('option A is wrong')."""
    whole = _CHOICE.fullmatch(_plain(text)) if len(text) <= MAX_ANSWER_CHARS else None
    if whole is not None or is_boxed:
        return None if whole is None else whole[1]
    text = _WRAPPED.sub(r"\1", text[-MAX_READ_CHARS:])
    stated = [m for m in _STATED_CHOICE.finditer(text) if _DENIED.match(text, m.end()) is None]
    return next(filter(None, stated[-1].groups())) if stated else None


def _words(response: str, gold: str) -> str | None:
    """The words a response without a box settles on: all of it, or what the last 'answer is even' in it says."""
    whole = _folded(response) if len(response) <= MAX_ANSWER_CHARS else None
    if whole == _folded(gold):
        return whole
    stated = _STATED_WORDS.findall(_WRAPPED.sub(r"\1", response[-MAX_READ_CHARS:]))
    return _folded(stated[-1]) if stated else whole


def _is_words(gold: str) -> bool:
    plain = _plain(gold)
    if len(plain) > MAX_ANSWER_CHARS or _WORDS.fullmatch(plain) is None:
        return False
    is_wrapped = _WRAPPED.fullmatch(gold.strip(" $")) is not None
    return is_wrapped or (len(plain) >= _LEAST_WORD and "\\" not in gold)


@lru_cache(maxsize=1 << 16)
def _judged(gold: str, answer: str) -> Grade:
    verdict = _judge.ask({"gold": gold, "answer": answer})
    return _grade(verdict.get("answer"), is_correct=verdict["is_correct"])


class _Judge:
    """The child process: started when first asked, again after it had to be killed, anew in a forked process."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        self.owner = 0
        self.lock = threading.Lock()
        self.rest = b""

    def ask(self, question: dict[str, str]) -> dict[str, Any]:
        """The child's verdict; wrong if it takes longer than HARD_SECONDS or dies of the question."""
        with self.lock:
            if self.child is None or self.owner != os.getpid() or self.child.poll() is not None:
                self._start()
            assert self.child is not None
            assert self.child.stdin is not None
            try:
                self.child.stdin.write(json.dumps(question).encode() + b"\n")
                self.child.stdin.flush()
                line = self._line(HARD_SECONDS)
            except OSError:
                line = None
            if line is None:
                self._kill()
                return {"is_correct": False, "answer": None}
            return json.loads(line)

    def _start(self) -> None:
        script = Path(__file__).with_name("math_worker.py")
        paths = os.pathsep.join(path for path in sys.path if path)
        self.child = subprocess.Popen(
            # -P: the script's own folder, where this file is called math.py, must not be searched for modules.
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
        )
        self.owner, self.rest = os.getpid(), b""
        if self._line(START_SECONDS) != b"ready":
            self._kill()
            raise ConfigError(
                f"math-verify does not start: `{sys.executable} -c 'import math_verify'` says why. Install it anew: "
                "pip install 'understudy[math-verify]'."
            )

    def _line(self, seconds: float) -> bytes | None:
        """The child's next line; None if it takes longer or the child ends."""
        assert self.child is not None
        assert self.child.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self.rest:
            left = deadline - time.monotonic()
            ready = select.select([self.child.stdout], [], [], max(left, 0))[0] if left > 0 else []
            piece = os.read(self.child.stdout.fileno(), 65536) if ready else b""
            if not piece:
                return None
            self.rest += piece
        line, _, self.rest = self.rest.partition(b"\n")
        return line

    def _kill(self) -> None:
        child, self.child = self.child, None
        if child is not None and self.owner == os.getpid():
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()

    def close(self) -> None:
        with self.lock:
            self._kill()


_judge = _Judge()
atexit.register(_judge.close)
