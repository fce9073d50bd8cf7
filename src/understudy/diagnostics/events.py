"""What a response may be seen to do: have a length, hold a keyword, hold an n-gram of words.

N responses, T words of all responses one after the other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from understudy.errors import ConfigError

MAX_BINS = 200
"""More bins than this would be a histogram of single responses, and slow."""

_WORD = re.compile(r"\w+|[^\w\s]")


# --- lengths ----------------------------------------------------------------------------------------------------------


def default_bin(length_N: NDArray[np.int64]) -> int:
    """A round bin size: of 1, 2, 5, 10, 20, ... the one nearest (in ratio) to a tenth of the 95th percentile.

    It sees both sets pooled, so it cannot favour a difference.
    """
    target = max(float(np.quantile(length_N, 0.95)) / 10, 1.0)
    sizes = [step * 10**power for power in range(9) for step in (1, 2, 5)]
    return min(sizes, key=lambda size: abs(math.log(size / target)))


def length_bins(length_N: NDArray[np.int64], bin_size: int) -> NDArray[np.int64]:
    """The bin of every response: floor(length / bin_size).

    Raises:
        ConfigError: bin_size < 1, or more than MAX_BINS bins.
    """
    if bin_size < 1:
        raise ConfigError(f"the bin size must be >= 1, got {bin_size}.")
    bin_N = length_N // bin_size
    if (num := int(bin_N.max()) + 1) > MAX_BINS:
        least = int(length_N.max()) // MAX_BINS + 1
        raise ConfigError(
            f"a bin size of {bin_size} cuts lengths up to {length_N.max()} into {num} bins; at most {MAX_BINS} are drawn. "
            f"Use {least} or more."
        )
    return bin_N


# --- keywords ---------------------------------------------------------------------------------------------------------


def holds_keyword(texts: Sequence[str], keyword: str) -> NDArray[np.bool_]:
    """Whether each text holds the keyword as whole words, in any case: "thus" is in "Thus," and not in "enthused".

    Raises:
        ConfigError: the keyword is empty.
    """
    if not keyword.split():
        raise ConfigError("a keyword is empty. Give a word, such as --keyword however.")
    inner = r"\s+".join(map(re.escape, keyword.split()))
    pattern = re.compile(rf"(?<!\w){inner}(?!\w)", re.IGNORECASE)
    return np.array([pattern.search(text) is not None for text in texts])


# --- n-grams ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Ngram:
    """Neighbouring words, and the weight that `rank_ngrams` found for them."""

    words: tuple[str, ...]
    gap: float

    @property
    def text(self) -> str:
        return " ".join(self.words)


@dataclass(frozen=True, kw_only=True, eq=False)
class WordStream:
    """All responses as word numbers. Numbers follow the alphabet, so that ties are broken the same way every time."""

    word_T: NDArray[np.int64]
    response_T: NDArray[np.int64]
    vocabulary: tuple[str, ...]
    num_responses: int


def word_stream(texts: Sequence[str]) -> WordStream:
    """Texts cut into words: runs of letters and digits, or single other signs, in lower case."""
    cut = [_WORD.findall(text.casefold()) for text in texts]
    vocabulary = tuple(sorted({word for words in cut for word in words}))
    number = {word: i for i, word in enumerate(vocabulary)}
    return WordStream(
        word_T=np.array([number[word] for words in cut for word in words], dtype=np.int64),
        response_T=np.repeat(np.arange(len(cut)), [len(words) for words in cut]),
        vocabulary=vocabulary,
        num_responses=len(cut),
    )


def rank_ngrams(stream: WordStream, weight_N: NDArray[np.float64], max_n: int, top: int) -> list[Ngram]:
    """The n-grams of 1 to max_n words with the largest |gap|, largest first; those
    without a gap are left out.

        gap(g) = sum_i weight[i] * 1[response i holds g]

    With weights that add up to 1 over one set and to -1 over the other, the gap is that of the shares of responses
    that hold g. Ties go to the shorter n-gram, then to the alphabet. Responses of weight 0 are not looked at.
    """
    is_seen_T = weight_N[stream.response_T] != 0
    word_T, response_T = stream.word_T[is_seen_T], stream.response_T[is_seen_T]
    code_T = word_T
    found: list[tuple[float, int, tuple[str, ...], float]] = []
    for n in range(1, max_n + 1):
        if n > 1:
            # The number of an n-gram: that of its first n - 1 words and its last word, numbered anew so that it stays small.
            is_whole_T = response_T[: len(code_T) - 1] == response_T[n - 1 :]
            paired = code_T[:-1] * len(stream.vocabulary) + word_T[n - 1 :]
            # An n-gram across the border of two responses is none: -1 marks it.
            code_T = np.where(is_whole_T, paired, -1)
        if not (code_T >= 0).any():
            break
        values, first, code_T = np.unique(code_T, return_index=True, return_inverse=True)
        if values[0] < 0:  # the mark must keep its value
            values, first, code_T = values[1:], first[1:], code_T - 1
        is_gram_T = code_T >= 0
        pair = np.sort(response_T[: len(code_T)][is_gram_T] * len(values) + code_T[is_gram_T])
        pair = pair[np.concatenate([[True], pair[1:] != pair[:-1]])]  # an n-gram counts once in a response
        gap = np.bincount(pair % len(values), weights=weight_N[pair // len(values)], minlength=len(values))
        size = np.round(np.abs(gap), 12)
        best = np.argsort(-size, kind="stable")[:top]
        for code in best[size[best] > 0].tolist():
            at = int(first[code])
            words = tuple(stream.vocabulary[w] for w in word_T[at : at + n].tolist())
            found.append((-float(size[code]), n, words, float(gap[code])))
    return [Ngram(words=words, gap=gap) for *_, words, gap in sorted(found)[:top]]


def distinct(ngrams: Sequence[Ngram], num: int) -> list[Ngram]:
    """The first few of which none is part of another."""
    chosen: list[Ngram] = []
    for ngram in ngrams:
        if len(chosen) == num:
            break
        if not any(_is_part(ngram.words, c.words) or _is_part(c.words, ngram.words) for c in chosen):
            chosen.append(ngram)
    return chosen


def holds_ngram(stream: WordStream, words: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each response holds these neighbouring words."""
    holds_N = np.zeros(stream.num_responses, dtype=bool)
    number = {word: i for i, word in enumerate(stream.vocabulary)}
    last = len(stream.word_T) - len(words) + 1
    if last < 1 or not all(word in number for word in words):
        return holds_N
    is_here_T = stream.response_T[:last] == stream.response_T[len(words) - 1 :]
    for k, word in enumerate(words):
        is_here_T &= stream.word_T[k : k + last] == number[word]
    holds_N[stream.response_T[:last][is_here_T]] = True
    return holds_N


def _is_part(inner: Sequence[str], outer: Sequence[str]) -> bool:
    n = len(inner)
    return any(tuple(outer[k : k + n]) == tuple(inner) for k in range(len(outer) - n + 1))
