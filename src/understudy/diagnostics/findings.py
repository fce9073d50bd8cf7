"""What a comparison of two sets of responses is asked, and what it finds: values alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from understudy.diagnostics.pairing import Prompts
from understudy.errors import ConfigError
from understudy.evaluation.statistics import Estimate

KEYWORDS = ("wait", "maybe", "thus", "alternatively")
"""The words of arXiv:2606.30445, Table 1."""

Kind = Literal["law", "event", "held out", "by prompt"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How two sets are compared. `bin_size` None: a round number chosen from both sets pooled."""

    bin_size: int | None = None
    keywords: tuple[str, ...] = KEYWORDS
    max_ngram: int = 3
    prompts: Prompts = "same"
    seed: int = 0
    num_resamples: int = 2000
    num_shuffles: int = 1000
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for name, least in (
            ("max_ngram", 1),
            ("seed", 0),
            ("num_resamples", 100),
            ("num_shuffles", 100),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be >= {least}, got {getattr(self, name)}.")
        # The same word in another case or spacing is the same event, and would be counted twice.
        once = dict.fromkeys(" ".join(keyword.casefold().split()) for keyword in self.keywords)
        object.__setattr__(self, "keywords", tuple(once))
        if not 0 < self.confidence < 1:
            raise ConfigError(f"confidence must be in (0, 1), got {self.confidence}.")


@dataclass(frozen=True, kw_only=True)
class Gap:
    """One lower bound. `gap` is what was counted; `bound` what it says about the total variation, with its interval.

    `chance`: the mean gap if the labels are dealt at random (None where held out: it is 0); `p_value`: the share of such
    deals with a gap at least as large. `bound.n` counts prompts."""

    name: str
    kind: Kind
    share_a: float | None
    share_b: float | None
    gap: float
    chance: float | None
    p_value: float | None
    bound: Estimate

    @property
    def verdict(self) -> Literal["differ", "cannot tell"]:
        return "differ" if self.bound.low is not None and self.bound.low > 0 else "cannot tell"

    def as_record(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True, kw_only=True)
class Performance:
    """Mean grades and their difference A - B, every prompt weighing the same."""

    mean_a: float
    mean_b: float
    difference: Estimate
    p_value: float
    is_rate: bool


@dataclass(frozen=True, kw_only=True)
class PromptGap:
    """One prompt: how many responses, their mean length and mean grade."""

    prompt: str
    num_a: int
    num_b: int
    length_a: float
    length_b: float
    grade_a: float | None
    grade_b: float | None


@dataclass(frozen=True, kw_only=True)
class Discrepancy:
    """Everything that was found. `bins`: (from, share of A, share of B)."""

    name_a: str
    name_b: str
    num_responses: tuple[int, int]
    num_prompts: tuple[int, int]
    is_paired: bool
    mean_length: tuple[float, float]
    bin_size: int
    bins: tuple[tuple[int, float, float], ...]
    gaps: tuple[Gap, ...]
    by_prompt: tuple[Gap, ...]
    ngrams: tuple[Gap, ...]
    performance: Performance | None
    prompts: tuple[PromptGap, ...] = field(repr=False)

    def as_record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rows = {
            name: [gap.as_record() for gap in getattr(self, name)] for name in ("gaps", "by_prompt", "ngrams")
        }
        return asdict(self) | rows
