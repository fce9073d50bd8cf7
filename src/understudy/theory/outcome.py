"""What an experiment returns: rows that say which claim holds, and panels to draw. Plain data, no drawing.

An `Outcome` turns into JSON with `as_record` and is drawn from that JSON alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Progress = Callable[[float], None]
"""Called with the share of the work that is done, in [0, 1]."""

Verdict = Literal["yes", "no", "cannot tell", "not judged"]
Role = Literal["measured", "predicted", "bound"]


def silent(share_done: float) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One claim against one number.

    `measured` relation `bound`: with "<=" the claim is measured <= bound + tolerance, and so on. A simulated number comes
    with its interval (`low`, `high`): the claim then holds if the whole interval satisfies it, fails if none of it does,
    and otherwise one cannot tell; "=" holds if the bound lies within [low - tolerance, high + tolerance]. "~" sets two
    numbers side by side and judges nothing: for what a reader brings, about which nothing is claimed.
    """

    claim: str
    """One short sentence: what is claimed, with the values of the parameters."""
    source: str
    """Paper and statement (`arXiv:2606.30445 Thm 1`), or `DERIVED` for our own reasoning."""
    relation: Literal["<=", ">=", "=", "~"]
    bound: float
    measured: float
    low: float | None = None
    high: float | None = None
    num: int | None = None
    """Instances enumerated, or repetitions simulated, behind `measured`."""
    tolerance: float = 0.0
    """Absolute: rounding, or for "=" how near counts as equal."""
    is_refuted: bool = False
    """The claim as printed is wrong, and this row shows it: it is expected not to hold."""
    note: str = ""

    def __post_init__(self) -> None:
        if self.relation == "~" and self.is_refuted:
            raise ValueError(f"a row that is not judged ('~') cannot be refuted, got {self.claim!r}.")

    @property
    def holds(self) -> Verdict:
        """Whether the claim holds; where a NaN stands nobody can tell."""
        if self.relation == "~":
            return "not judged"
        low = self.measured if self.low is None else self.low
        high = self.measured if self.high is None else self.high
        if math.isnan(low) or math.isnan(high) or math.isnan(self.bound):
            return "cannot tell"
        if self.relation == "=":
            return "yes" if low - self.tolerance <= self.bound <= high + self.tolerance else "no"
        if self.relation == "<=":
            always, never = high <= self.bound + self.tolerance, low > self.bound + self.tolerance
        else:
            always, never = low >= self.bound - self.tolerance, high < self.bound - self.tolerance
        return "yes" if always else "no" if never else "cannot tell"

    @property
    def is_as_expected(self) -> bool:
        """False only where something is wrong: a claim that should hold does not, or a refuted one does."""
        return self.holds != ("yes" if self.is_refuted else "no")

    def as_record(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points (x, y), joined. `measured` is drawn solid with marks, `predicted` dashed, `bound` dotted.

    Lines of one panel with the same `group` share a colour: a measurement and its prediction.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    role: Role = "measured"
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """Points that are not joined: one an instance."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Area:
    """A closed polygon, filled faintly: a region of a plane."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Heat:
    """A table of numbers drawn as colours, one row a value of y, each cell with its number."""

    columns: Sequence[str]
    rows: Sequence[str]
    values: Sequence[Sequence[float]]
    label: str
    """What the numbers are, with their unit."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes. Either marks on axes, or a `heat` table."""

    title: str
    x_label: str
    y_label: str
    x_scale: Literal["linear", "log"] = "linear"
    y_scale: Literal["linear", "log"] = "linear"
    lines: Sequence[Line] = ()
    clouds: Sequence[Cloud] = ()
    areas: Sequence[Area] = ()
    heat: Heat | None = None
    y_limits: tuple[float, float] | None = None
    x_limits: tuple[float, float] | None = None
    has_equal_axes: bool = False
    """One unit is as long on x as on y: for pictures of a plane."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one experiment."""

    rows: tuple[Row, ...]
    panels: tuple[Panel, ...]
    reading: tuple[str, ...]
    """Up to five sentences: what the numbers say, where a bound is tight, where it stops holding."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Sizes and parameters that were run."""

    @property
    def is_as_expected(self) -> bool:
        return all(row.is_as_expected for row in self.rows)

    def as_record(self) -> dict[str, Any]:
        return {
            "rows": [row.as_record() for row in self.rows],
            "panels": [asdict(panel) for panel in self.panels],
            "reading": list(self.reading),
            "settings": self.settings,
        }
