"""Several samples a prompt: every metric against enumeration in plain Python, and the intervals at their edges."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.evaluation.repeats import Graded, at_k, avg_at_k, majority_at_k, rate_over_prompts, shares

RIGHT = "a"
answers = st.lists(st.sampled_from([RIGHT, "b", "c", None]), min_size=1, max_size=7)


def graded(given: list[str | None]) -> list[Graded]:
    return [Graded(answer == RIGHT, answer) for answer in given]


def vote_oracle(block: list[str | None]) -> bool:
    """Every answer against every other one: more votes, or as many and an earlier first vote."""
    for candidate in set(block) - {None}:
        votes, first = block.count(candidate), block.index(candidate)
        rivals = set(block) - {None, candidate}
        if all((votes, -first) > (block.count(r), -block.index(r)) for r in rivals):
            return candidate == RIGHT
    return False


@settings(deadline=None)
@given(answers, st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(row, data):
    k = data.draw(st.integers(1, len(row)))
    subsets = list(itertools.combinations(row, k))
    expected = sum(RIGHT in subset for subset in subsets) / len(subsets)
    assert at_k({"p": graded(row)}, [k])[f"pass@{k}"]["p"] == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(answers, st.data())
def test_votes_and_means_are_over_whole_blocks(row, data):
    k = data.draw(st.integers(1, len(row)))
    blocks = [row[i * k : (i + 1) * k] for i in range(len(row) // k)]
    expected = sum(map(vote_oracle, blocks)) / len(blocks)
    assert majority_at_k(graded(row), k) == pytest.approx(expected, abs=1e-12)
    flat = [answer == RIGHT for block in blocks for answer in block]
    assert avg_at_k(graded(row), k) == pytest.approx(sum(flat) / len(flat), abs=1e-12)


def test_blocks_make_the_vote_of_k_unbiased():
    """Over all 3^6 outcomes of six samples of a law, the mean of majority@3 is the enumerated chance of a vote of three."""
    law = {RIGHT: 0.5, "b": 0.3, None: 0.2}

    def chance(row: tuple[str | None, ...]) -> float:
        return math.prod(law[answer] for answer in row)

    vote = sum(chance(row) * vote_oracle(list(row)) for row in itertools.product(law, repeat=3))
    mean = sum(chance(row) * majority_at_k(graded(list(row)), 3) for row in itertools.product(law, repeat=6))
    assert mean == pytest.approx(vote, abs=1e-12)


@pytest.mark.parametrize(
    ("row", "is_right"),
    [
        (["b", RIGHT, RIGHT], True),
        ([RIGHT, "b", "b"], False),
        ([RIGHT, "b"], True),  # a tie: the answer that came first
        (["b", RIGHT], False),
        (["b", RIGHT, RIGHT, "b"], False),
        ([None, None, RIGHT], True),  # who gives no answer does not vote
        ([None, None], False),
    ],
)
def test_a_vote_by_hand(row, is_right):
    assert majority_at_k(graded(row), len(row)) == float(is_right)


def test_an_answer_is_right_if_anybody_got_it_right():
    """A grader that also judges the way may refuse one of two responses with the same answer."""
    row = [Graded(False, "7"), Graded(True, "7"), Graded(False, "8")]
    assert majority_at_k(row, 3) == 1.0


def test_without_answers_there_is_no_vote():
    found = at_k({"p": [Graded(True), Graded(False)]}, [1, 2])
    assert sorted(found) == ["avg@1", "avg@2", "pass@1", "pass@2"]
    silent = at_k({"p": [Graded(False), Graded(False)]}, [2])
    assert silent["majority@2"] == {"p": 0.0}  # nobody answered, and nobody was right


def test_more_than_there_are_is_refused():
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"1 <= k <= n samples, got n=2, k={k}"):
            majority_at_k([Graded(True, "a")] * 2, k)


def test_shares():
    assert shares({"p": graded([RIGHT, "b"]), "q": graded([RIGHT])}) == {"p": 0.5, "q": 1.0}


def test_an_interval_over_prompts_by_hand():
    # mean 1/2, s^2 = (1/16 + 0 + 1/16) / 2, t(2) = 4.302653: half = 4.302653 * sqrt(1/16 / 3) = 0.621034, cut to [0, 1]
    found = rate_over_prompts([0.25, 0.5, 0.75])
    assert (found.value, found.low, found.high, found.n) == (0.5, 0.0, 1.0, 3)
    # twenty prompts, ten at 1/4 and ten at 3/4: s = 0.25 * sqrt(20/19), t(19) = 2.093024, half = 0.120044
    found = rate_over_prompts([0.25, 0.75] * 10)
    assert (found.low, found.high) == (pytest.approx(0.379956, abs=1e-5), pytest.approx(0.620044, abs=1e-5))


def test_little_spread_is_not_certainty():
    # 19 of 20 prompts always right, one mostly: Wilson, 20 of 20, has low 20 / (20 + z^2) = 0.838875
    found = rate_over_prompts([1.0] * 19 + [0.9])
    assert (found.low, found.high) == (pytest.approx(0.838875, abs=1e-5), 1.0)
    mirrored = rate_over_prompts([0.0] * 19 + [0.1])
    assert (mirrored.low, mirrored.high) == (0.0, pytest.approx(1 - 0.838875, abs=1e-5))


def test_no_spread_is_not_certainty():
    # Wilson, 0 of 10: z^2 / (n + z^2) = 3.841459 / 13.841459
    assert rate_over_prompts([0.0] * 10).high == pytest.approx(0.277533, abs=1e-5)
    assert rate_over_prompts([1.0] * 10).low == pytest.approx(1 - 0.277533, abs=1e-5)
    halves = rate_over_prompts([0.5] * 10)
    # Wilson, 5 of 10: 0.5 +- z sqrt(10 / 4 + z^2 / 4) / (10 + z^2) = 0.5 +- 0.263406
    assert (halves.low, halves.high) == (pytest.approx(0.236594, abs=1e-5), pytest.approx(0.763406, abs=1e-5))
    one = rate_over_prompts([0.5])
    assert (one.low, one.high, one.n) == (None, None, 1)


def test_zeros_and_ones_are_trials():
    # 3 of 4: centre (3 + z^2/2) / (4 + z^2), half z sqrt(3/4 + z^2/4) / (4 + z^2)
    z = 1.959964
    centre = (3 + z * z / 2) / (4 + z * z)
    half = z * math.sqrt(3 * 1 / 4 + z * z / 4) / (4 + z * z)
    found = rate_over_prompts([1.0, 0.0, 1.0, 1.0])
    assert found.low == pytest.approx(centre - half, abs=1e-6)
    assert found.high == pytest.approx(centre + half, abs=1e-6)


def test_a_rate_is_a_rate():
    with pytest.raises(ValueError, match=r"rates must lie in \[0, 1\], got 0.5 to 1.5"):
        rate_over_prompts([0.5, 1.5])


def test_the_interval_covers():
    """Prompts of different difficulty, four samples each: 95 % intervals over 40 prompts cover the mean rate in 92 to 98 %
    of 2,000 worlds. Binomial(2000, 0.95) leaves [0.92, 0.98] with probability below 1e-8."""
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(2000):
        difficulty = rng.beta(2, 2, size=40)
        rates = rng.binomial(4, difficulty) / 4
        found = rate_over_prompts(rates.tolist())
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.5 <= found.high
    assert 0.92 <= hits / 2000 <= 0.98


def test_votes_are_counted_like_a_counter():
    rng = np.random.default_rng(0)
    for _ in range(200):
        row = [["a", "b", "c", None][i] for i in rng.integers(0, 4, size=9)]
        counts = Counter(answer for answer in row if answer is not None)
        top = max(counts.values(), default=0)
        leaders = [answer for answer in row if answer is not None and counts[answer] == top]
        assert majority_at_k(graded(row), 9) == float(bool(leaders) and leaders[0] == RIGHT)


def rare(rng: np.random.Generator, num: int) -> np.ndarray:
    """One prompt in 20 is easy, the others are nearly hopeless: the mean rate hangs on how many easy ones come."""
    return np.where(rng.random(num) < 0.05, 0.95, 0.01)


def skewed(rng: np.random.Generator, num: int) -> np.ndarray:
    return rng.beta(0.1, 1.9, size=num)


def even(rng: np.random.Generator, num: int) -> np.ndarray:
    return np.full(num, 0.01)


@pytest.mark.parametrize("is_near_one", [False, True])
@pytest.mark.parametrize(("law", "mean"), [(rare, 0.057), (skewed, 0.05), (even, 0.01)])
@pytest.mark.parametrize("num", [20, 40])
def test_the_interval_covers_near_0_and_1(law, mean, num, is_near_one):
    """16 samples a prompt, 500 worlds: an interval that covers in 95 % falls below 0.92 with probability 2e-3 a case, which
    these exceed by far (0.98 and more in 4,000 worlds); the t interval alone covers in 66 to 88 % of them."""
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(500):
        rates = rng.binomial(16, law(rng, num)) / 16
        found = rate_over_prompts((1 - rates if is_near_one else rates).tolist())
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= (1 - mean if is_near_one else mean) <= found.high
    assert hits / 500 >= 0.92
