"""Lengths, keywords and n-grams of responses, against definitions in plain Python."""

import random
import re

import numpy as np
import pytest

from understudy.diagnostics.events import (
    default_bin,
    distinct,
    holds_keyword,
    holds_ngram,
    length_bins,
    rank_ngrams,
    word_stream,
)
from understudy.errors import ConfigError


def test_keywords_are_whole_words_in_any_case():
    texts = [
        "Thus, so",
        "enthused",
        "THUS",
        "thus_far",
        "(thus)",
        "athus",
        "",
        "on\n  the  other hand",
        "x+y",
        "a.b",
        "axb",
    ]
    assert holds_keyword(texts, "thus").tolist() == [True, False, True, False, True, *[False] * 6]
    assert holds_keyword(texts, "on the").nonzero()[0].tolist() == [7]
    assert holds_keyword(texts, "a.b").nonzero()[0].tolist() == [9]
    assert holds_keyword(["l'été", "ete", "ÉTÉ"], "été").tolist() == [True, False, True]
    with pytest.raises(ConfigError, match="a keyword is empty"):
        holds_keyword(texts, " ")


@pytest.mark.parametrize(
    ("most", "size"),
    [(1, 1), (9, 1), (14, 1), (15, 2), (40, 5), (98, 10), (150, 20), (99_000, 10_000), (47_000, 5000)],
)
def test_the_default_bin_is_round(most, size):
    assert default_bin(np.array([most] * 20)) == size


def test_bins():
    assert length_bins(np.array([0, 4, 5, 9, 10]), 5).tolist() == [0, 0, 1, 1, 2]
    assert length_bins(np.array([199]), 1).tolist() == [199]
    with pytest.raises(
        ConfigError, match=r"a bin size of 1 cuts lengths up to 200 into 201 bins.* Use 2 or more"
    ):
        length_bins(np.array([0, 200]), 1)
    assert length_bins(np.array([0, 200]), 2).max() == 100
    with pytest.raises(ConfigError, match="the bin size must be >= 1, got 0"):
        length_bins(np.array([1]), 0)


def oracle(texts, weights, max_n):
    """Every n-gram with its gap, by sets of tuples."""
    gaps = {}
    for text, weight in zip(texts, weights, strict=True):
        words = re.findall(r"\w+|[^\w\s]", text.casefold())
        held = {tuple(words[t : t + n]) for n in range(1, max_n + 1) for t in range(len(words) - n + 1)}
        for gram in held if weight else ():
            gaps[gram] = gaps.get(gram, 0) + weight
    return gaps


@pytest.mark.parametrize("seed", range(20))
def test_ngrams_against_sets(seed):
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(["A", "b", "c,", "d"], k=rng.randint(0, 7))) for _ in range(9)]
    weights = [rng.choice([-1.0, 0.0, 0.5, 0.25]) for _ in texts]
    stream = word_stream(texts)
    expected = oracle(texts, weights, 3)
    found = {gram.words: gram.gap for gram in rank_ngrams(stream, np.array(weights), 3, 1000)}
    assert found == pytest.approx({gram: gap for gram, gap in expected.items() if abs(gap) > 1e-12})
    ranked = sorted(found, key=lambda gram: (-abs(found[gram]), len(gram), gram))
    assert [gram.words for gram in rank_ngrams(stream, np.array(weights), 3, 5)] == ranked[:5]
    for gram in ranked[:5]:
        held = [gram in oracle([text], [1], 3) for text in texts]
        assert holds_ngram(stream, gram).tolist() == held


def test_an_ngram_does_not_cross_two_responses():
    stream = word_stream(["a b", "", "c a"])
    grams = {gram.words for gram in rank_ngrams(stream, np.ones(3), 5, 99)}
    assert grams == {("a",), ("b",), ("c",), ("a", "b"), ("c", "a")}
    assert not holds_ngram(stream, ("b", "c")).any()
    assert not holds_ngram(stream, ("z",)).any()
    assert not holds_ngram(stream, ("a",) * 9).any()
    assert rank_ngrams(word_stream(["", " "]), np.ones(2), 3, 9) == []


def test_ties_are_no_matter_of_rounding():
    """0.1 + 0.2 is more than 0.3 by rounding alone: the alphabet decides."""
    ranked = rank_ngrams(word_stream(["b", "b", "a"]), np.array([0.1, 0.2, 0.3]), 1, 9)
    assert [gram.text for gram in ranked] == ["a", "b"]


def test_distinct_ngrams_are_no_part_of_each_other():
    stream = word_stream(["a b c", "a b", "d"])
    ranked = rank_ngrams(stream, np.array([0.5, 0.25, 0.2]), 3, 99)
    assert [gram.text for gram in distinct(ranked, 9)] == ["a", "b", "c", "d"]
    assert [gram.text for gram in distinct(ranked[::-1], 9)] == ["d", "a b c"]
    assert len(distinct(ranked, 2)) == 2
