"""Lower bounds on the total variation between two sets of responses: by hand, against enumeration, and for coverage."""

import itertools
import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from understudy.diagnostics.discrepancy import discrepancy
from understudy.diagnostics.findings import KEYWORDS, Settings
from understudy.diagnostics.held_out import half_weights
from understudy.diagnostics.pairing import first_half, lay_out, resampled_means, shuffled_weights, subset
from understudy.diagnostics.reading import reading
from understudy.diagnostics.responses import Response, ResponseSet, read_responses
from understudy.errors import ConfigError, DataError

# Prompt p: A "so wait one" (3 words), "so two three four" (4); B "one" (1), "two" (1).
# Prompt q: A "thus" (1), "Wait, so on" (3); B "thus and it" (3), "maybe wait here" (3).
A_ROWS = [
    {"prompt_id": "p", "response": "so wait one", "score": 1},
    {"prompt_id": "q", "response": "thus", "score": 1},
    {"prompt_id": "p", "response": "so two three four", "score": 0},
    {"prompt_id": "q", "response": "Wait, so on", "score": True},
]
B_ROWS = [
    {"prompt_id": "q", "responses": ["thus and it", "maybe wait here"], "score": [1, 0]},
    {"prompt_id": "p", "responses": ["one", "two"], "score": [False, 0.0]},
]


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def made(name, texts, grades=None):
    """{prompt: [text, ...]} as a set."""
    return ResponseSet(
        name=name,
        responses=tuple(
            Response(prompt=p, text=t, length=len(t.split()), grade=None if grades is None else grades(t))
            for p, mine in texts.items()
            for t in mine
        ),
    )


@pytest.fixture
def by_hand(tmp_path):
    a = read_responses(write(tmp_path / "a.jsonl", A_ROWS), name="A")
    b = read_responses(write(tmp_path / "b.jsonl", B_ROWS), name="B", fields=None)
    return a, b


def seed_that_chooses(ids, first):
    return next(
        s for s in range(99) if [i for i, f in zip(ids, first_half(ids, s), strict=True) if f] == first
    )


def test_an_example_by_hand(by_hand):
    """Bins of 3 words. A: p 1, 1; q 0, 1. B: p 0, 0; q 1, 1.

    Length: A has 1/4 in bin 0 and B 1/2, so TV = 1/2 (1/4 + 1/4) = 1/4. Dealing labels: in p the share of bin 1 differs
    by -1, 0, 1 in 1, 4, 1 of 6 deals, in q by -1/2, 1/2 in 3, 3 of 6; TV = |sum| / 2 is 1/4 unless both have one sign, then
    3/4: (4/6) 1/4 + (2/6) (1/4 + 3/4) / 2 = 1/3. All deals reach 1/4. What exceeds chance: nothing.
    "wait": A 1/2 (one of two twice), B 1/4. In p one of four has it (+-1/2), in q two of four (-1, 0, 1 in 1, 4, 1 of 6):
    the same deals, 1/3. "maybe": 0 and 1/4, and 1/4 in every deal. "thus": 1/4 and 1/4; q alone, (2/6) 1/2 = 1/6.
    By prompt: length p 1, q 1/2; chance p 1/3, q 1/2; both 1s need p = +-1: 2 of 6 deals. "wait": p 1/2, q 0; chance 1/2, 1/3.
    Grades: A p 1/2, q 1; B p 0, q 1/2. Difference 1/2 in both. Dealing: one of four and three of four, +-1/2 each, of
    which half agree: p = 1/2. Both prompts show the same, and a share of 1 - 0.05^(1/2) of others could go unseen.
    """
    found = discrepancy(*by_hand, Settings(bin_size=3, max_ngram=2))
    assert (found.num_responses, found.num_prompts, found.mean_length) == ((4, 4), (2, 2), (2.75, 2.0))
    assert found.bins == ((0, 0.25, 0.5), (3, 0.75, 0.5))
    rows = {row.name: row for row in found.gaps}
    expected = {
        "length": (None, None, 1 / 4, 1 / 3, 1),
        '"wait"': (1 / 2, 1 / 4, 1 / 4, 1 / 3, 1),
        '"maybe"': (0, 1 / 4, 1 / 4, 1 / 4, 1),
        '"thus"': (1 / 4, 1 / 4, 0, 1 / 6, 1),
        '"alternatively"': (0, 0, 0, 0, 1),
    }
    for name, numbers in expected.items():
        row = rows[name]
        assert (row.share_a, row.share_b) == numbers[:2]
        assert (row.gap, row.chance, row.p_value) == pytest.approx(numbers[2:], abs=1e-15), name
    assert rows["length"].bound.value == 0
    assert rows['"maybe"'].bound.value == 0.25
    assert {row.verdict for row in rows.values()} == {"cannot tell"}
    within = {row.name: (row.gap, row.chance, row.p_value, row.bound.value) for row in found.by_prompt}
    assert within["length"] == pytest.approx((3 / 4, 5 / 12, 1 / 3, 1 / 3), abs=1e-15)
    assert within['"wait"'] == pytest.approx((1 / 4, 5 / 12, 1, 0), abs=1e-15)
    grades = found.performance
    assert grades is not None
    assert (grades.mean_a, grades.mean_b, grades.p_value, grades.is_rate) == (0.75, 0.25, 0.5, True)
    unseen = 1 - math.sqrt(0.05)
    assert grades.difference.low == pytest.approx(0.5 - 1.5 * unseen)
    assert grades.difference.high == pytest.approx(0.5 + 0.5 * unseen)
    assert [(p.prompt, p.num_a, p.length_a, p.length_b, p.grade_a, p.grade_b) for p in found.prompts] == [
        ("p", 2, 3.5, 1, 0.5, 0),
        ("q", 2, 2, 3, 1, 0.5),
    ]


def test_what_one_half_chooses_is_measured_on_the_other_by_hand(by_hand):
    """p chooses: lengths of bin 1 (A 1, B 0) and "so" (1 and 0, the first n-gram of gap 1). q measures: lengths of bin 1
    are 1/2 of A and all of B, a gap of -1/2; "so" is in 1/2 of A and in no B. Next p likes "four", "three" and "wait" with 1/2
    each, by the alphabet ("one" and "two" are even, longer n-grams hold these): on q 0, 0, and 1/2 of both."""
    seed = seed_that_chooses(("p", "q"), ["p"])
    found = discrepancy(*by_hand, Settings(bin_size=3, seed=seed))
    held = [(row.name, row.share_a, row.share_b, row.gap) for row in found.gaps if row.kind == "held out"]
    assert held == [
        ("best lengths: length 3-5", 0.5, 1, -0.5),
        ('best n-gram: has "so"', 0.5, 0, 0.5),
        ("best event: length 3-5", 0.5, 1, -0.5),
    ]
    assert [row.bound.value for row in found.gaps if row.kind == "held out"] == [0, 0.5, 0]
    assert [(row.name, row.share_a, row.share_b) for row in found.ngrams] == [
        ('"so"', 0.5, 0), ('"four"', 0, 0), ('"three"', 0, 0), ('"wait"', 0.5, 0.5),
    ]  # fmt: skip
    assert {row.bound.low for row in found.ngrams} == {None}  # one prompt measures: nothing to resample
    assert {row.verdict for row in found.ngrams} == {"cannot tell"}


def test_the_other_half_may_turn_an_event_around(by_hand):
    """q chooses: bin 0 (A 1/2, B 0); "and" 0 and 1/2 is the first n-gram of gap 1/2 ("," only comes before it and is in A)."""
    seed = seed_that_chooses(("p", "q"), ["q"])
    found = discrepancy(*by_hand, Settings(bin_size=3, seed=seed))
    rows = {row.name: (row.share_a, row.share_b, row.gap) for row in found.gaps if row.kind == "held out"}
    # On p: bin 0 holds no A and all B; "," is nowhere.
    assert rows["best lengths: length 0-2"] == (0, 1, -1)
    assert rows['best n-gram: has ","'] == (0, 0, 0)
    names = [row.name for row in found.ngrams]
    assert names.index('","') < names.index('"and"')
    swapped = discrepancy(by_hand[1], by_hand[0], Settings(bin_size=3, seed=seed))
    assert swapped.gaps[6].name == 'best n-gram: lacks ","'
    assert (swapped.gaps[6].share_a, swapped.gaps[6].share_b) == (1, 1)


def random_set(name, rng, prompts, sizes):
    words = ["wait", "so", "x", "y z"]
    return made(
        name,
        {
            p: [" ".join(rng.choices(words, k=rng.randint(0, 5))) for _ in range(rng.choice(sizes))]
            for p in prompts
        },
        grades=lambda text: float("so" in text),
    )


def oracle(a, b, bin_size, keyword):
    """Gaps by looping over prompts and responses; shares no code with the package."""
    prompts = list(dict.fromkeys(r.prompt for r in a.responses))
    tv, word = {}, 0.0
    for sign, one in ((1, a), (-1, b)):
        for p in prompts:
            mine = [r for r in one.responses if r.prompt == p]
            for r in mine:
                share = sign / len(mine) / len(prompts)
                tv[r.length // bin_size] = tv.get(r.length // bin_size, 0) + share
                word += share * (keyword in r.text.split())
    return sum(map(abs, tv.values())) / 2, abs(word)


@pytest.mark.parametrize("seed", range(6))
def test_gaps_and_chance_against_enumeration(seed):
    """Every deal of labels within prompts, in plain Python."""
    rng = random.Random(seed)
    a, b = (random_set(name, rng, "pqr", (1, 2)) for name in "AB")
    found = discrepancy(a, b, Settings(bin_size=2, seed=seed))
    row, wait = found.gaps[0], found.gaps[1]
    assert (row.gap, wait.gap) == pytest.approx(oracle(a, b, 2, "wait"), abs=1e-14)
    deals = []
    slots = {p: [r for one in (a, b) for r in one.responses if r.prompt == p] for p in "pqr"}
    num_a = {p: sum(r.prompt == p for r in a.responses) for p in "pqr"}
    for deal in itertools.product(*(itertools.combinations(range(len(slots[p])), num_a[p]) for p in "pqr")):
        in_a = [slots[p][i] for p, mine in zip("pqr", deal, strict=True) for i in mine]
        in_b = [
            r for p, mine in zip("pqr", deal, strict=True) for i, r in enumerate(slots[p]) if i not in mine
        ]
        deals.append(oracle(replace(a, responses=tuple(in_a)), replace(b, responses=tuple(in_b)), 2, "wait"))
    assert (row.chance, wait.chance) == pytest.approx(np.mean(deals, axis=0), abs=1e-14)
    reached = [
        np.mean([deal[k] >= value - 1e-12 for deal in deals]) for k, value in enumerate((row.gap, wait.gap))
    ]
    assert [row.p_value, wait.p_value] == pytest.approx(reached)


def test_independent_sets_deal_whole_prompts():
    a = made("A", {"p": ["x", "x x"], "q": ["x"]})
    b = made("B", {"r": ["x x x"]})
    found = discrepancy(a, b, Settings(bin_size=1, prompts="independent"))
    # Lengths: p half 1 half 2, q 1, r 3. A - B by deal, TV: {p, q} r 1; {p, r} q: 1/4, 1/4, 1/2 against 1: 3/4; {q, r} p: 1/2.
    assert found.gaps[0].gap == 1
    assert found.gaps[0].chance == pytest.approx((1 + 3 / 4 + 1 / 2) / 3)
    assert found.gaps[0].p_value == pytest.approx(1 / 3)
    assert not found.is_paired
    assert found.prompts == found.by_prompt == found.ngrams == ()
    assert [row.kind for row in found.gaps] == ["law", *["event"] * 4]  # one prompt cannot be halved
    assert "independent" in reading(found)[-1]


def test_drawn_deals_agree_with_all_deals():
    """Means over 4,000 drawn deals against all 6^3: the standard error of a mean of values in [0, 1] is below 0.008."""
    rng = random.Random(3)
    a, b = (random_set(name, rng, "pqr", (2,)) for name in "AB")
    layout = lay_out(a, b, "same")
    every, is_every = shuffled_weights(layout, 216, 0)
    drawn, is_drawn = shuffled_weights(layout, 215, 0)
    assert (is_every, is_drawn) == (True, False)
    every = np.array(list(every))
    assert len(np.unique(every, axis=0)) == len(every) == 216
    assert len(list(drawn)) == 215
    # Of 6 deals of a prompt each comes up in a sixth of the cases (4,000 draws: standard error 0.006, margin 5 of them).
    many = np.array(list(shuffled_weights(replace(layout), 4000, 1)[0]))
    assert len(many) == 216
    large_a, large_b = (random_set(name, rng, [f"p{i}" for i in range(9)], (2,)) for name in "AB")
    large = lay_out(large_a, large_b, "same")
    drawn = np.array(list(shuffled_weights(large, 4000, 1)[0]))
    first = drawn[:, large.prompt_N == 0] > 0
    values, counts = np.unique(first, axis=0, return_counts=True)
    assert len(values) == 6
    assert np.abs(counts / 4000 - 1 / 6).max() < 0.03
    assert (first.sum(1) == 2).all()


def test_resamples_against_all_resamples():
    """3 prompts, 27 resamples: quantiles of 20,000 drawn ones against the enumerated law."""
    a = made("A", {"p": ["wait"], "q": ["wait"], "r": ["x"]})
    b = made("B", {"p": ["x"], "q": ["wait"], "r": ["wait"]})
    layout = lay_out(a, b, "same")
    a_PK, b_PK = np.array([[1.0], [1], [0]]), np.array([[0.0], [1], [1]])
    drawn = resampled_means(layout, a_PK, b_PK, 20_000, 0)[:, 0]
    every = [np.mean([(1, 0, -1)[i] for i in choice]) for choice in itertools.product(range(3), repeat=3)]
    for value in set(every):
        share = np.mean(np.isclose(every, value))
        assert np.mean(np.isclose(drawn, value)) == pytest.approx(share, abs=5 * math.sqrt(share / 20_000))
    apart = resampled_means(lay_out(a, b, "independent"), a_PK, b_PK, 20_000, 0)[:, 0]
    assert np.isclose(apart, 1).mean() == pytest.approx((8 / 27) * (1 / 27), abs=0.005)


WORLDS = ((20, 1, 0.0), (40, 2, 0.25))


@pytest.mark.parametrize(("num_prompts", "num_each", "shift"), WORLDS)
def test_no_bound_is_above_the_truth_too_often(num_prompts, num_each, shift):
    """100 data sets; a lower end above the truth is to be seen in 2.5 % of them (5 % for a keyword of gap 0, which may go
    either way). 14 or more of 100 at 5 % have probability 4e-4."""
    law_a = np.full(10, 0.1)
    law_b = law_a + shift / 5 * np.repeat([1, -1], 5)
    truth = {"length": shift, '"wait"': shift, "best lengths": shift}
    either = 1 - (1 - shift) ** 2  # of length and word together, which are independent here
    missed, plug_in = {}, []
    for trial in range(100):
        rng = np.random.default_rng([5, trial])

        def drawn(name, law, rate, rng=rng):
            texts = {}
            for i in range(num_prompts):
                lengths = rng.choice(np.arange(1, 11), p=law / law.sum(), size=num_each)
                texts[str(i)] = [("wait" if rng.random() < rate else "x") + " y" * (n - 1) for n in lengths]
            return made(name, texts)

        settings = Settings(bin_size=1, keywords=("wait",), num_resamples=200, num_shuffles=100, max_ngram=1)
        found = discrepancy(drawn("A", law_a, 0.3), drawn("B", law_b, 0.3 + shift), settings)
        plug_in.append(found.gaps[0].gap)
        for row in (*found.gaps, *found.by_prompt):
            name = row.name.split(":")[0]
            assert row.bound.low is not None
            assert row.bound.high is not None
            assert 0 <= row.bound.low <= row.bound.value <= row.bound.high <= 1
            key = (row.kind, name)
            missed[key] = missed.get(key, 0) + (row.bound.low > truth.get(name, either) + 1e-9)
    assert max(missed.values()) < 14, missed
    assert len(missed) == (5 if num_each == 1 else 7)
    if shift == 0:
        assert np.mean(plug_in) > 0.3  # what the plug-in says of two samples of one law


def test_a_real_difference_is_found():
    a = made("A", {str(i): ["wait and see"] if i % 10 else ["see"] for i in range(60)})
    b = made("B", {str(i): ["see"] for i in range(60)})
    found = discrepancy(a, b, Settings(bin_size=1))
    rows = {row.name.split(":")[0]: row for row in found.gaps}
    for name in ("length", '"wait"', "best lengths", "best n-gram", "best event"):
        assert rows[name].verdict == "differ", name
    assert rows['"wait"'].gap == pytest.approx(0.9)
    assert rows['"wait"'].p_value == pytest.approx(1 / 1001)
    assert "or more apart in total variation" in reading(found)[0]
    # Labels dealt at random differ by E|sum of 54 signs| / 60, close to sqrt(2 * 54 / pi) / 60 = 0.098.
    assert rows['"wait"'].chance == pytest.approx(0.098, abs=0.01)
    assert rows["length"].bound.value == pytest.approx(0.9 - rows["length"].chance)
    # Which set comes first does not change how far apart they are.
    swapped = discrepancy(b, a, Settings(bin_size=1))
    for one, other in zip((*found.gaps, *found.ngrams), (*swapped.gaps, *swapped.ngrams), strict=True):
        assert (one.share_a, one.share_b) in (
            (other.share_b, other.share_a),
            (1 - (other.share_b or 0), 1 - (other.share_a or 0)),
        )
        assert [one.gap, one.bound.value] == pytest.approx([other.gap, other.bound.value])
        assert [one.bound.low, one.bound.high] == pytest.approx([other.bound.low, other.bound.high])
    assert found.gaps[1].bound.low == pytest.approx(0.9, abs=0.1)


def test_the_interval_of_a_keyword_against_the_binomial_law():
    """9 prompts, of which A says "wait" in 5 and B in none: a resampled gap is Binomial(9, 5/9) / 9, at most 1/9 with 0.0083.

    The percentile of 9 prompts, Phi(-t(8) sqrt(9/8)) = 0.0072, lies below; that of t alone, 0.0106, above.
    """
    a = made("A", {str(i): ["wait" if i < 5 else "x"] for i in range(9)})
    b = made("B", {str(i): ["x"] for i in range(9)})
    found = discrepancy(a, b, Settings(num_resamples=100_000, num_shuffles=100))
    level = stats.norm.cdf(-stats.t.ppf(0.975, 8) * math.sqrt(9 / 8))
    assert stats.binom.ppf(level, 9, 5 / 9) == 1
    assert found.gaps[1].bound.low == pytest.approx(1 / 9)


def test_the_bound_of_a_law_stands_in_the_middle_of_its_interval():
    """Resamples of a law lie above it, since they add their own noise to that of the data; the interval must not."""
    rng = random.Random(0)
    a = made("A", {str(i): ["x " * rng.randrange(10)] for i in range(60)})
    b = made("B", {str(i): ["x " * rng.randrange(5, 15)] for i in range(60)})
    bound = discrepancy(a, b, Settings(bin_size=1)).gaps[0].bound
    assert 0 < bound.low < bound.high < 1
    assert (bound.low + bound.high) / 2 == pytest.approx(bound.value, abs=0.02)


def test_weights_of_a_half_add_up_to_one_on_each_side():
    a = made("A", {"p": ["x", "y"], "q": ["x"], "r": ["x"]})
    b = made("B", {"u": ["x"], "v": ["x"]})
    layout = lay_out(a, b, "independent")
    weight_N = half_weights(layout, np.array([True, True, True, False, False, True]))
    assert weight_N.tolist() == [0.25, 0.25, 0.5, 0, 0, -1]


def test_the_same_set_twice_does_not_differ():
    a = made("A", {str(i): ["wait so", "thus"] for i in range(8)}, grades=lambda text: 1.0)
    found = discrepancy(a, replace(a, name="B"), Settings())
    assert all(
        row.gap == 0 and row.p_value in (1, None) and row.verdict == "cannot tell" for row in found.gaps
    )
    assert found.ngrams == ()
    # Nobody differs on 8 prompts: up to a share of 1 - 0.05^(1/8) = 31 % could.
    assert found.gaps[1].bound.high == pytest.approx(1 - 0.05 ** (1 / 8))
    for row in (found.gaps[0], *found.by_prompt):
        beyond = row.gap - row.chance
        assert row.bound.high == pytest.approx(beyond + (1 - beyond) * (1 - 0.05 ** (1 / 8)))
    grades = found.performance
    assert grades is not None
    assert (grades.difference.low, grades.difference.high) == pytest.approx((-0.3123, 0.3123), abs=1e-4)


def test_grades_that_are_no_rates():
    a = made("A", {str(i): ["x"] for i in range(5)}, grades=lambda text: 7.0)
    b = made("B", {str(i): ["x"] for i in range(5)}, grades=lambda text: 4.0)
    found = discrepancy(a, b)
    assert found.performance is not None
    assert not found.performance.is_rate
    assert (found.performance.difference.value, found.performance.difference.low) == (3, None)
    assert "A minus B is 3" in reading(found)[2]


def test_a_prompt_weighs_the_same_however_often_it_was_answered():
    a = made("A", {"p": ["wait"] * 9, "q": ["x"]})
    b = made("B", {"p": ["wait"], "q": ["x"] * 9})
    assert discrepancy(a, b).gaps[1].gap == pytest.approx(0, abs=1e-15)


def test_order_of_rows_does_not_matter_and_the_seed_does():
    rng = random.Random(8)
    a, b = (random_set(name, rng, [f"p{i}" for i in range(12)], (2,)) for name in "AB")
    mixed = list(a.responses)
    rng.shuffle(mixed)
    found, other = discrepancy(a, b), discrepancy(replace(a, responses=tuple(mixed)), b)
    assert [r.name for r in found.gaps] == [r.name for r in other.gaps]
    assert [r.gap for r in found.gaps] == pytest.approx([r.gap for r in other.gaps])
    assert found == discrepancy(a, b)
    halves = {tuple(first_half([f"p{i}" for i in range(12)], seed)) for seed in range(5)}
    assert len(halves) == 5
    assert {sum(half) for half in halves} == {6}
    assert sum(first_half(("x", "y", "z"), 0)) == 2


def test_a_subset_weighs_its_prompts_anew():
    a = made("A", {"p": ["x", "y"], "q": ["x"], "r": ["x"]})
    b = made("B", {"p": ["x"], "q": ["x"], "r": ["z"]})
    layout = lay_out(a, b, "same")
    part = subset(layout, np.isin(layout.prompt_N, [0, 2]))
    assert part.ids_a == part.ids_b == ("p", "r")
    assert part.weight_N.tolist() == [0.25, 0.25, 0.5, -0.5, -0.5]
    assert [response.text for response in part.responses] == ["x", "y", "x", "x", "z"]


def test_matched_prompts_are_compared_on_what_both_have():
    a = made("A", {"p": ["wait"], "q": ["x"], "only-a": ["wait"]})
    b = made("B", {"q": ["x"], "p": ["x"], "only-b": ["x"]})
    with pytest.raises(
        DataError, match=r"A has 3 prompts, B has 3, and 2 of them match\. .*--prompts matched"
    ):
        discrepancy(a, b)
    found = discrepancy(a, b, Settings(prompts="matched"))
    assert (found.num_prompts, found.num_responses, found.gaps[1].gap) == ((2, 2), (2, 2), 0.5)
    with pytest.raises(DataError, match=r"B has 1, and 0 of them match.*--prompts independent"):
        discrepancy(a, made("B", {"z": ["x"]}), Settings(prompts="matched"))
    fewer = replace(a, responses=a.responses[:2])
    for one, other in ((fewer, a), (a, fewer)):
        with pytest.raises(DataError, match="and 2 of them match"):
            discrepancy(one, replace(other, name="B"))
    with pytest.raises(DataError, match=r"B has no prompt ids.*--id"):
        discrepancy(a, replace(b, has_ids=False))


def test_prompt_by_prompt_needs_two_responses_in_both_sets():
    a = made("A", {"p": ["x", "x x"], "q": ["x", "x"], "r": ["x"]})
    b = made("B", {"p": ["x", "x"], "q": ["x"], "r": ["x", "x"]})
    found = discrepancy(a, b, Settings(bin_size=1))
    assert [row.bound.n for row in found.by_prompt] == [1] * 5  # p alone
    assert found.by_prompt[0].gap == 0.5
    assert found.by_prompt[0].chance == pytest.approx(0.5)  # one of four is longer: always half
    none = discrepancy(made("A", {"p": ["x"]}), made("B", {"p": ["x", "y"]}))
    assert none.by_prompt == ()
    assert "No prompt has two responses" in reading(none)[-1]
    assert {row.bound.low for row in none.gaps} == {None}


def test_settings_out_of_range():
    for bad in (
        {"max_ngram": 0},
        {"seed": -1},
        {"num_resamples": 99},
        {"num_shuffles": 0},
        {"confidence": 1.0},
    ):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Settings(**bad)
    assert Settings(keywords=(*KEYWORDS, "Wait", " hmm ", "on  the")).keywords == (*KEYWORDS, "hmm", "on the")


def test_a_record_is_json(by_hand):
    record = discrepancy(*by_hand).as_record()
    assert json.loads(json.dumps(record))["gaps"][0]["verdict"] == "cannot tell"
    assert record["gaps"][0]["bound"].keys() == {"value", "low", "high", "n"}
