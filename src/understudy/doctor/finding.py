"""One thing that was looked at, and what was found."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from understudy.errors import UnderstudyError

T = TypeVar("T")
Status = Literal["ok", "warning", "problem"]
"""warning: the run works, and may not do what you think. problem: it would stop, or train on something wrong."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`fix` says what to do; only what is ok has none."""

    check: str
    status: Status
    found: str
    fix: str = ""

    def __post_init__(self) -> None:
        assert (self.status == "ok") == (not self.fix), f"{self.check}: {self.status} with fix {self.fix!r}"


def fine(check: str, found: str) -> Finding:
    return Finding(check=check, status="ok", found=found)


def warning(check: str, found: str, fix: str) -> Finding:
    return Finding(check=check, status="warning", found=found, fix=fix)


def problem(check: str, found: str, fix: str) -> Finding:
    return Finding(check=check, status="problem", found=found, fix=fix)


def from_error(check: str, error: Exception, otherwise: str) -> Finding:
    """A refusal as a finding. Our messages end with the sentence that says what to do; `otherwise` stands in for it."""
    first, *rest = re.split(r"(?<=[.?]) (?=[A-Z`])", str(error), maxsplit=1)
    return problem(check, first, rest[0] if rest else otherwise)


def attempt(findings: list[Finding], check: str, make: Callable[[], T], otherwise: str) -> T | None:
    """What `make` returns; a refusal is noted among the findings and gives None."""
    try:
        return make()
    except UnderstudyError as error:
        findings.append(from_error(check, error, otherwise))
        return None
