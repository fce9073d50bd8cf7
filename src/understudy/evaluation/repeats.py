"""Several samples a prompt: how good one of them is on average, the best of k, and the vote of k.

The prompt is the independent unit throughout: samples of one prompt share it. n samples of a prompt come in the order of
their sample index; where k does not divide n, the last n mod k of them take no part in avg@k and majority@k.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from understudy.evaluation.statistics import Estimate, mean_interval, pass_at_k, wilson

MIN_TRIALS = 10
"""Of right and of wrong responses, were every prompt one trial: with fewer of either, the spread that was seen says little."""
AT_K = ("avg", "pass", "majority")
"""The metrics of k samples; each is called `<one of these>@<k>`."""


@dataclass(frozen=True)
class Graded:
    """One response as its grader saw it; `answer` is None where the grader read none."""

    is_correct: bool
    answer: str | None = None


def avg_at_k(samples: Sequence[Graded], k: int) -> float:
    """The share of right responses among the first floor(n / k) * k: the mean over blocks of k of their share.

    Its expectation is the accuracy of one sample, whatever k is; k says how many stand behind each prompt.

    Raises:
        ValueError: k outside 1..n.
    """
    blocks = _blocks("avg_at_k", samples, k)
    return sum(s.is_correct for block in blocks for s in block) / (len(blocks) * k)


def majority_at_k(samples: Sequence[Graded], k: int) -> float:
    """How often a vote of k samples is right: the share of blocks of k consecutive samples whose winner is.

        winner(block) = the answer most samples of the block gave; of several, the one that was given first

    A sample without an answer does not vote, and a block without votes is wrong. The winner is right if any sample that
    gave it was graded so: a grader may also judge the way to an answer. Answers are compared as the grader spells them.
    Blocks make it unbiased for the vote of k fresh samples, as they share none.

    Raises:
        ValueError: k outside 1..n.
    Source: self-consistency, arXiv:2203.11171, section 2, unweighted; ours says what ties do, and averages over blocks.
    """
    blocks = _blocks("majority_at_k", samples, k)
    return sum(_vote(block) for block in blocks) / len(blocks)


def _vote(block: Sequence[Graded]) -> bool:
    votes = Counter(s.answer for s in block if s.answer is not None)
    if not votes:
        return False
    # A Counter keeps the order in which answers came, and max takes the first of equals.
    winner = max(votes, key=lambda answer: votes[answer])
    return any(s.is_correct for s in block if s.answer == winner)


def _blocks(function: str, samples: Sequence[Graded], k: int) -> list[Sequence[Graded]]:
    if not 1 <= k <= len(samples):
        raise ValueError(f"{function} needs 1 <= k <= n samples, got n={len(samples)}, k={k}.")
    return [samples[start : start + k] for start in range(0, len(samples) - k + 1, k)]


def rate_over_prompts(rates: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The mean of one rate in [0, 1] per prompt, with an interval over prompts.

        every rate 0 or 1      Wilson: they are trials
        otherwise              mean +- t(n - 1) s / sqrt(n), cut to [0, 1]
        near 0 or 1, or equal  that, widened to hold the Wilson interval of round(mean * n) out of n;
                               near: n min(mean, 1 - mean) < 10

    A mean near 0 or 1 may hang on prompts of which the sample has none or two: s, which knows the prompts it saw, is then far
    too small, and for equal rates it is 0. Rates in [0, 1] never vary more than trials do, so Wilson is wide enough, and beyond
    ten expected trials of the rarer kind the t interval needs no help (in simulated sets of 10 to 256 prompts it covers 0.92 or
    more there, and without the floor 0.54 to 0.90).

    Assumes that prompts are independent draws from those one wants to speak about.

    Args:
        rates: one per prompt.
    Returns:
        n = number of prompts. One prompt with a rate strictly between 0 and 1: low = high = None.
    Raises:
        ValueError: no rates, one outside [0, 1], or confidence outside (0, 1).
    Source: textbook, as `wilson` and `mean_interval`; the widening is ours.
    """
    estimate = mean_interval(rates, confidence, bounds=(0.0, 1.0))
    if min(rates) < 0 or max(rates) > 1:
        raise ValueError(f"rates must lie in [0, 1], got {min(rates)} to {max(rates)}.")
    if all(rate in (0.0, 1.0) for rate in rates):
        return wilson(int(sum(rates)), len(rates), confidence)
    num_rarer = len(rates) * min(estimate.value, 1 - estimate.value)
    has_no_spread = max(rates) - min(rates) <= 1e-12
    if estimate.low is None or estimate.high is None or (num_rarer >= MIN_TRIALS and not has_no_spread):
        return estimate
    floor = wilson(round(estimate.value * len(rates)), len(rates), confidence)
    assert floor.low is not None
    assert floor.high is not None
    return Estimate(estimate.value, min(estimate.low, floor.low), max(estimate.high, floor.high), len(rates))


def at_k(samples: Mapping[str, Sequence[Graded]], ks: Iterable[int]) -> dict[str, dict[str, float]]:
    """Metric -> prompt id -> rate, for every k: `avg@k`, `pass@k` (`statistics.pass_at_k`) and `majority@k`.

    No majority where a right response has no answer: its grader reads none, so nothing can be voted on.

    Raises:
        ValueError: a k that is larger than the samples of a prompt.
    """
    has_answers = all(s.answer is not None for row in samples.values() for s in row if s.is_correct)
    found: dict[str, dict[str, float]] = {}
    for k in ks:
        found[f"avg@{k}"] = {prompt: avg_at_k(row, k) for prompt, row in samples.items()}
        found[f"pass@{k}"] = {
            prompt: pass_at_k(len(row), sum(s.is_correct for s in row), k) for prompt, row in samples.items()
        }
        if has_answers:
            found[f"majority@{k}"] = {prompt: majority_at_k(row, k) for prompt, row in samples.items()}
    return found


def shares(samples: Mapping[str, Sequence[Graded]]) -> dict[str, float]:
    """Prompt id -> share of its responses that are right."""
    return {prompt: sum(s.is_correct for s in row) / len(row) for prompt, row in samples.items()}
