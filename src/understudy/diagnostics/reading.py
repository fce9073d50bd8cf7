"""A comparison of two sets of responses in sentences, each with its numbers."""

from __future__ import annotations

from understudy.diagnostics.findings import Discrepancy, Gap, Performance
from understudy.evaluation.statistics import Estimate


def reading(found: Discrepancy) -> list[str]:
    """What the rows say together; where they cannot tell, that they cannot."""
    rows = {gap.name.split(":")[0]: gap for gap in found.gaps}
    sentences = []
    best = rows.get("best event")
    if best is not None:
        sentences.append(_best(best))
    sentences.append(_length(rows["length"], found))
    if found.performance is not None:
        sentences.append(_performance(found, found.performance))
    several = next(iter(found.by_prompt), None)
    if several is not None:
        verb = "differ" if several.verdict == "differ" else "cannot be told apart"
        sentences.append(
            f"Prompt by prompt the lengths {verb}: {percent(several.gap)} as counted on average, {percent(several.chance)} by "
            f"chance, so {_within(several.bound)} or more."
        )
    elif found.is_paired:
        sentences.append(
            "No prompt has two responses in both sets, so nothing is said prompt by prompt: one response does not show a law."
        )
    else:
        sentences.append(
            "The sets are independent: a difference of their prompts counts as one of the models."
        )
    return sentences


def _best(best: Gap) -> str:
    _, event = best.name.split(": ", 1)
    if best.verdict == "cannot tell":
        return (
            f"Cannot tell the two laws apart by one event: the best that one half of the prompts offers ({event}) has a gap of "
            f"{percent(best.gap)} on the other half, a bound of {_within(best.bound)}."
        )
    return (
        f"The two laws of responses are {_within(best.bound)} or more apart in total variation: the gap, on the other half of "
        f"the prompts, of the best event that one half offers ({event})."
    )


def _length(row: Gap, found: Discrepancy) -> str:
    end = (
        f"so {_within(row.bound)} of total variation or more." if row.verdict == "differ" else "cannot tell."
    )
    return (
        f"Mean lengths are {found.mean_length[0]:.1f} and {found.mean_length[1]:.1f}. In bins of {found.bin_size} their laws "
        f"differ by {percent(row.gap)} as counted; chance alone gives {percent(row.chance)} (p = {row.p_value:.3f}): {end}"
    )


def _performance(found: Discrepancy, performance: Performance) -> str:
    difference = performance.difference
    if not performance.is_rate:
        interval = "" if difference.low is None else f" ({difference.low:.4g} to {difference.high:.4g})"
        return (
            f"Mean grades are {performance.mean_a:.4g} and {performance.mean_b:.4g}: {found.name_a} minus {found.name_b} is "
            f"{difference.value:.4g}{interval}, p = {performance.p_value:.3f}."
        )
    return (
        f"Performance: {found.name_a} {percent(performance.mean_a)}, {found.name_b} {percent(performance.mean_b)}; the gap is "
        f"{_within(difference)} (p = {performance.p_value:.3f})."
    )


def percent(value: float | None) -> str:
    """0.123 -> '12.3 %'."""
    return "-" if value is None else f"{100 * value:.1f} %"


def _within(estimate: Estimate) -> str:
    """'8.1 % (4.0 to 12.2 %)'."""
    shown = percent(estimate.value)
    if estimate.low is None or estimate.high is None:
        return f"{shown} (no interval)"
    return f"{shown} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f} %)"
