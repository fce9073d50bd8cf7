"""How far apart are two models, as their responses show it, and how far apart is their performance?

A, B the two sets; N responses of both (A first), P prompts, K events, R resamples.

For every event E of a response, |Pr_A(E) - Pr_B(E)| is at most the total variation TV(A, B) between the two laws of
responses (prompts drawn alike for both). Every row here is such a lower bound:

    event        the gap of the shares of responses that do it; keywords are fixed before anybody looks
    held out     an event chosen on one half of the prompts and measured on the other, so that looking for the largest
                 gap does not create one; may be negative by chance, and then bounds nothing
    law          1/2 sum over bins |share_A - share_B| of a binned length: the best event of its kind, chosen and counted
                 on the same responses. It is never 0, not even for two samples of one model: `chance` is what it would
                 be if labels were dealt at random, and the bound is what exceeds it
    by prompt    the same within each prompt, averaged over prompts: bounds the mean over prompts of TV(A, B | prompt)

Taking `chance` off is safe on average: |gap + noise| <= |gap| + |noise|.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from understudy.diagnostics.events import default_bin, holds_keyword, length_bins, word_stream
from understudy.diagnostics.findings import Discrepancy, PromptGap, Settings
from understudy.diagnostics.held_out import hold_out
from understudy.diagnostics.lower_bounds import gaps, gaps_by_prompt, ngram_gaps, performance
from understudy.diagnostics.pairing import Layout, by_prompt, lay_out
from understudy.diagnostics.responses import ResponseSet


def discrepancy(a: ResponseSet, b: ResponseSet, settings: Settings | None = None) -> Discrepancy:
    """Lower bounds on the total variation between the laws that two sets of responses were drawn from.

    Assumes that prompts are independent draws (intervals resample prompts, the same ones in both sets where they are
    paired) and that responses to one prompt are exchangeable (`chance` deals labels within a prompt). Intervals are
    percentile bootstrap ones with the percentiles widened for few prompts, a row at a time: twenty rows have about one
    that misses. With ten prompts or fewer they are still too narrow. If the sets are independent, a
    difference of their prompts counts as one of the models.

    Args:
        a, b: one response or more a prompt. With prompts "same" or "matched" both need prompt ids.
    Returns:
        Shares, gaps and bounds in [0, 1]; lengths in the unit of the sets. One prompt: bounds without interval.
    Raises:
        DataError: prompts that do not match. ConfigError: a setting out of range.
    Source: the question and the quantities are those of arXiv:2606.30445, Fig. 3 and Table 1. Ours adds intervals, what
        chance gives, held-out events and the rows by prompt.
    """
    settings = settings or Settings()
    layout = lay_out(a, b, settings.prompts)
    length_N = np.array([response.length for response in layout.responses], dtype=np.int64)
    bin_size = default_bin(length_N) if settings.bin_size is None else settings.bin_size
    bin_N = length_bins(length_N, bin_size)
    texts = [response.text for response in layout.responses]
    keywords = {keyword: holds_keyword(texts, keyword) for keyword in settings.keywords}
    stream = word_stream(texts)
    held = hold_out(
        layout, stream, bin_N, bin_size, keywords, max_ngram=settings.max_ngram, seed=settings.seed
    )
    grades = [response.grade for response in layout.responses]
    grade_N = None if None in grades else np.array(grades, dtype=np.float64)
    cut = int((~layout.is_b_N).sum())
    mean_a, mean_b = by_prompt(layout, length_N[:, None].astype(np.float64))
    return Discrepancy(
        name_a=a.name,
        name_b=b.name,
        num_responses=(cut, len(texts) - cut),
        num_prompts=(len(layout.ids_a), len(layout.ids_b)),
        is_paired=layout.is_paired,
        mean_length=(float(mean_a.mean()), float(mean_b.mean())),
        bin_size=bin_size,
        bins=_bins(layout, bin_N, bin_size),
        gaps=gaps(layout, bin_N, keywords, held, settings),
        by_prompt=gaps_by_prompt(layout, bin_N, keywords, settings),
        ngrams=() if held is None else ngram_gaps(layout, stream, held, settings),
        performance=None if grade_N is None else performance(layout, grade_N, settings),
        prompts=_prompt_gaps(layout, length_N, grade_N) if layout.is_paired else (),
    )


def _bins(layout: Layout, bin_N: NDArray[np.int64], bin_size: int) -> tuple[tuple[int, float, float], ...]:
    """Where each bin starts, and its share of A and of B."""
    num = int(bin_N.max()) + 1
    share_a, share_b = (
        np.bincount(bin_N[is_side_N], weights=np.abs(layout.weight_N[is_side_N]), minlength=num).tolist()
        for is_side_N in (~layout.is_b_N, layout.is_b_N)
    )
    return tuple((i * bin_size, x, y) for i, (x, y) in enumerate(zip(share_a, share_b, strict=True)))


def _prompt_gaps(
    layout: Layout, length_N: NDArray[np.int64], grade_N: NDArray[np.float64] | None
) -> tuple[PromptGap, ...]:
    length_a, length_b = by_prompt(layout, length_N[:, None].astype(np.float64))
    grade_a, grade_b = (None, None) if grade_N is None else by_prompt(layout, grade_N[:, None])
    num_a, num_b = (np.bincount(layout.prompt_N[is_N]) for is_N in (~layout.is_b_N, layout.is_b_N))
    return tuple(
        PromptGap(
            prompt=prompt,
            num_a=int(num_a[i]),
            num_b=int(num_b[i]),
            length_a=float(length_a[i, 0]),
            length_b=float(length_b[i, 0]),
            grade_a=None if grade_a is None else float(grade_a[i, 0]),
            grade_b=None if grade_b is None else float(grade_b[i, 0]),
        )
        for i, prompt in enumerate(layout.ids_a)
    )
