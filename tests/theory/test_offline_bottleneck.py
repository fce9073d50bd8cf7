"""The offline lower bound: closed forms against enumeration in plain Python, learners, constants, the experiment."""

import json
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from understudy.theory import bandit_panels, bandits
from understudy.theory.bounds import bandits as bounds
from understudy.theory.experiments import offline_bottleneck
from understudy.theory.experiments.offline_bottleneck import Settings, fewest, log_slope, run

SMALL = Settings(
    num_contexts=4,
    num_demos=200,
    coverages=(1.0, 2.0, 8.0),
    demo_counts=(200, 400),
    context_counts=(10, 20),
    num_repetitions=400,
    num_likelihood_data_sets=20,
)


def expert_prob(action, secret, coverage):
    """pi_e(action | x): y1 = 0 is the habit."""
    return 1 - 1 / coverage if action == 0 else 1 / coverage if action == secret else 0.0


def data_law(demos, secrets, law, coverage):
    return math.prod(law[x] * expert_prob(a, secrets[x], coverage) for x, a in demos)


def student_risk(student, secrets, law):
    return sum(p for p, mine, right in zip(law, student, secrets, strict=True) if mine != right)


def brute_bayes(law, coverage, num_demos):
    """Least average risk over the secrets: the best student after every data set, nothing assumed about learners."""
    contexts, students = range(len(law)), list(product((1, 2), repeat=len(law)))
    total = 0.0
    for demos in product(product(contexts, range(3)), repeat=num_demos):
        joint = [data_law(demos, s, law, coverage) / len(students) for s in students]
        total += min(
            sum(w * student_risk(mine, s, law) for w, s in zip(joint, students, strict=True))
            for mine in students
        )
    return total


LAWS = [
    ((0.3, 0.7), 1.0, 3),
    ((0.3, 0.7), 2.5, 3),
    ((0.05, 0.95), 4.0, 2),
    ((0.2, 0.3, 0.5), 1.5, 2),
    ((1.0,), 3.0, 4),
]


@pytest.mark.parametrize(("law", "coverage", "num_demos"), LAWS)
def test_offline_risk_is_that_of_the_best_learner(law, coverage, num_demos):
    expected = brute_bayes(law, coverage, num_demos)
    assert bandits.offline_risk(np.array(law), coverage, num_demos) == pytest.approx(expected, abs=1e-13)
    enumerated = bandits.enumerated_risks(np.array(law), coverage, num_demos)
    assert enumerated["best"] == pytest.approx(expected, abs=1e-13)
    # minimax: the learner that guesses has this risk at its worst secret as well
    assert enumerated["best_worst_secret"] == pytest.approx(expected, abs=1e-13)


def test_no_deterministic_learner_of_all_4096_is_better():
    law, coverage = (0.4, 0.6), 2.0
    cells = list(product(range(2), range(3)))
    students = list(product((1, 2), repeat=2))
    # cost[data][student]: contribution to the average risk; a learner chooses one student per data set
    cost = [
        [
            sum(data_law([d], s, law, coverage) * student_risk(k, s, law) / 4 for s in students)
            for k in students
        ]
        for d in cells
    ]
    least = min(
        sum(cost[i][k] for i, k in enumerate(learner)) for learner in product(range(4), repeat=len(cells))
    )
    assert bandits.offline_risk(np.array(law), coverage, 1) == pytest.approx(least, abs=1e-14)


@pytest.mark.parametrize(("law", "num"), [((0.3, 0.7), 3), ((0.2, 0.3, 0.5), 4), ((0.1, 0.2), 3)])
def test_online_and_copying_risk_by_enumeration_of_visits(law, num):
    online = copying = 0.0
    rest = 1 - sum(law)
    for visits in product(range(len(law) + 1), repeat=num):
        prob = math.prod((*law, rest)[x] for x in visits)
        missed = sum(p for x, p in enumerate(law) if x not in visits)
        online += prob * missed / 2  # a coin between y2 and y3
        copying += prob * missed / 3  # uniform over three actions, of which one is not rewarded
    assert bandits.online_risk(np.array(law), num) == pytest.approx(online, abs=1e-14)
    assert bandits.copying_risk(np.array(law), num) == pytest.approx(copying, abs=1e-14)


def test_copying_student_by_enumeration_of_its_data():
    law, coverage, num = (0.25, 0.75), 3.0, 2
    secrets, risk = (2, 1), 0.0
    for demos in product(product(range(2), range(3)), repeat=num):
        for x, p in enumerate(law):
            shown = [a for context, a in demos if context == x] or [0, 1, 2]
            share_unrewarded = sum(a not in (0, secrets[x]) for a in shown) / len(shown)
            risk += data_law(demos, secrets, law, coverage) * p * share_unrewarded
    assert bandits.copying_risk(np.array(law), num) == pytest.approx(risk, abs=1e-14)


@pytest.mark.parametrize("coverage", [1.0, 2.0, 5.0])
def test_log_loss_without_a_floor_by_enumeration(coverage):
    law, num = (0.3, 0.7), 3
    students = list(product((1, 2), repeat=2))
    worst = 0.0
    for demos, secrets in product(product(product(range(2), range(3)), repeat=num), students):
        # the loss is infinite for a student that contradicts one demonstration; y1 contradicts all of them
        losses = [any(k[x] != a for x, a in demos) for k in students]
        tied = [k for k, is_bad in zip(students, losses, strict=True) if is_bad == min(losses)]
        worst += (
            data_law(demos, secrets, law, coverage) / 4 * max(student_risk(k, secrets, law) for k in tied)
        )
    found = bandits.enumerated_risks(np.array(law), coverage, num)["unfloored"]
    assert found == pytest.approx(worst, abs=1e-13)


def test_published_setting_in_numbers():
    # 20 bits, N = 10^4: 1/2 19 (C/N) (1 - 1/N)^N offline, 1/2 19 (C/N) (1 - C/N)^N online; the frequent context adds nothing
    for coverage, offline, online in ((1, 3.49e-4, 3.49e-4), (4, 1.40e-3, 7.0e-5), (16, 5.59e-3, 1.7e-9)):
        # three (two) digits are given
        assert bandits.family_risk(20, coverage, 10_000) == pytest.approx(offline, rel=2e-3)
        assert bandits.family_online_risk(20, coverage, 10_000) == pytest.approx(online, rel=3e-2)
        exact = 0.5 * 19 * coverage / 1e4 * (1 - 1e-4) ** 10_000
        assert bandits.family_risk(20, coverage, 10_000) == pytest.approx(exact, rel=1e-9)
    assert bandits.family_risk(20, 64, 10_000) == pytest.approx(2.24e-2, rel=2e-3)
    assert bandits.family_online_risk(20, 64, 10_000) < 1e-25


def test_context_laws_by_hand():
    np.testing.assert_allclose(bandits.printed_context_law(4, 2.0, 100), [0.02, 0.02, 0.02, 0.94], atol=1e-15)
    np.testing.assert_allclose(bandits.printed_context_law(4, 50.0, 100), [0.25] * 4, atol=1e-15)
    np.testing.assert_allclose(bandits.sharp_context_law(3, 2.0, 99), [0.02] * 3, atol=1e-15)
    np.testing.assert_allclose(bandits.sharp_context_law(3, 70.0, 99), [1 / 3] * 3, atol=1e-15)
    # zeta = C / (N + 1) is the most harmful frequency of a rare context
    costs = {zeta: bandits.offline_risk(np.array([zeta]), 2.0, 99) for zeta in (0.019, 0.02, 0.021)}
    assert max(costs, key=costs.__getitem__) == 0.02


def test_coverage_and_values_of_the_construction():
    secret_X = np.array([1, 2, 2])
    expert_XA, student_XA = bandits.expert_law(secret_X, 5.0), bandits.student_law(secret_X)
    np.testing.assert_allclose(expert_XA, [[0.8, 0.2, 0], [0.8, 0, 0.2], [0.8, 0, 0.2]], atol=1e-15)
    np.testing.assert_array_equal(student_XA, [[0, 1, 0], [0, 0, 1], [0, 0, 1]])
    np.testing.assert_array_equal(bandits.reward_table(secret_X), [[1, 1, 0], [1, 0, 1], [1, 0, 1]])
    assert sorted(map(tuple, bandits.all_students(2))) == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_offline_students_follow_the_majority_and_guess_ties():
    counts_XA = np.array([[7, 1, 0], [0, 0, 3], [9, 0, 0], [0, 2, 2]])
    choice_RX = bandits.offline_students(np.tile(counts_XA, (200, 1, 1)), np.random.default_rng(0))
    assert (choice_RX[:, 0] == 1).all()
    assert (choice_RX[:, 1] == 2).all()
    for tied in (2, 3):
        # 200 fair coins: fewer than 60 or more than 140 of one side has probability 1e-8
        assert 60 < (choice_RX[:, tied] == 1).sum() < 140
    assert set(np.unique(choice_RX)) == {1, 2}


def test_online_students_know_what_they_visited():
    secret_X = np.array([1, 2, 1, 2])
    visits_RX = np.tile([1, 5, 0, 0], (200, 1))
    choice_RX = bandits.online_students(
        visits_RX, bandits.expert_law(secret_X, 9.0), np.random.default_rng(0)
    )
    assert (choice_RX[:, :2] == secret_X[:2]).all()
    for unseen in (2, 3):
        assert 60 < (choice_RX[:, unseen] == 1).sum() < 140


def test_drawn_counts_have_the_demonstrations_law():
    law_X, secret_X, coverage = np.array([0.2, 0.3]), np.array([2, 1]), 4.0
    counts_RXA = bandits.draw_counts(law_X, secret_X, coverage, 10, 20_000, np.random.default_rng(3))
    expected_XA = [[10 * p * expert_prob(a, s, coverage) for a in range(3)] for p, s in ((0.2, 2), (0.3, 1))]
    # a cell's mean has a standard error of at most sqrt(10 / 4 / 20000) = 0.0112; 6 cells at 6 of them: 1e-8
    np.testing.assert_allclose(counts_RXA.mean(0), expected_XA, atol=0.067)
    assert (counts_RXA[:, 0, 1] == 0).all()
    assert counts_RXA.sum((1, 2)).max() <= 10


@pytest.mark.parametrize("is_online", [False, True])
def test_simulated_learners_have_the_closed_form_risk(is_online):
    law_X, coverage, num_data, num = np.array([0.1, 0.15, 0.2, 0.55]), 3.0, 6, 40_000
    risk_R = bandits.simulated_risks(law_X, coverage, num_data, num, np.random.default_rng(1), is_online)
    rate = 1 if is_online else 3
    expected = 0.5 * sum(p * (1 - p / rate) ** num_data for p in law_X)
    # six standard errors: 2e-9
    assert abs(risk_R.mean() - expected) < 6 * risk_R.std() / math.sqrt(num)
    assert risk_R.std() / math.sqrt(num) < 2e-3


def test_floored_log_likelihood_by_hand():
    counts_XA = np.array([[2, 1, 0], [0, 0, 0]])
    low, high = 0.2 / 3, 0.8 + 0.2 / 3
    found = bandits.floored_log_likelihood(np.array([[1, 1], [2, 1]]), counts_XA, 0.2)
    assert found[0] == pytest.approx(2 * math.log(low) + math.log(high), abs=1e-12)
    assert found[1] == pytest.approx(3 * math.log(low), abs=1e-12)
    assert (bandits.floored_log_likelihood(np.array([[1, 1], [2, 1]]), counts_XA, 0.0) == -math.inf).all()
    only_secret = np.array([[0, 4, 0], [0, 0, 0]])
    assert bandits.floored_log_likelihood(np.array([[1, 1]]), only_secret, 0.0)[0] == 0


GRID = list(product((1, 2, 3, 7, 20, 100), (1.0, 1.3, 2.0, 9.0, 300.0), (1, 2, 4, 17, 300, 10_000, 10**7)))


def excess(risk_of, constant, first=1, *, class_power=1.0, coverage_power=1.0, num_power=1.0):
    """Least risk minus bound over the grid, the bound rewritten here with any constant and any powers."""
    return min(
        risk_of(bits, c, n)
        - constant * min(1.0, c**coverage_power * (bits * math.log(2)) ** class_power / n**num_power)
        for bits, c, n in GRID
        if bits >= first
    )


def test_lower_bound_holds_and_is_sharp():
    printed, sharp = 1 / (16 * math.log(2)), 1 / (8 * math.log(2))
    assert excess(bandits.family_risk, printed, first=2) >= 0
    assert excess(bandits.sharp_risk, sharp) >= -1e-15
    # mutated bounds fail: constants a little larger, and each wrong power
    assert excess(bandits.sharp_risk, 1.001 * sharp) < -1e-5
    assert excess(bandits.family_risk, 2 * printed, first=2) < 0
    assert excess(bandits.family_risk, printed) < 0, "one bit: the printed family has no rare context"
    assert excess(bandits.family_risk, printed, first=2, class_power=2.0) < 0
    assert excess(bandits.family_risk, printed, first=2, coverage_power=2.0) < 0
    assert excess(bandits.sharp_risk, sharp, class_power=2.0) < 0
    assert excess(bandits.sharp_risk, sharp, coverage_power=2.0) < 0
    assert excess(bandits.sharp_risk, sharp, num_power=0.5) < 0


def test_sharp_constant_is_attained():
    # K = 2, C = N = 1: zeta = 1/2, risk 1/2 * 1/2 * 1/2; the bound is ln 2 / (8 ln 2)
    assert bandits.sharp_risk(1, 1.0, 1) == pytest.approx(1 / 8, abs=1e-15)
    assert bounds.offline_lower_bound(2, 1.0, 1, bounds.SHARP_FAMILY_CONSTANT) == pytest.approx(
        1 / 8, abs=1e-15
    )
    # N to infinity: 1 / (2 e ln 2) of C ln|Pi| / N
    ratio = bandits.sharp_risk(6, 3.0, 10**9) / bounds.offline_lower_bound(2.0**6, 3.0, 10**9, 1.0)
    assert ratio == pytest.approx(1 / (2 * math.e * math.log(2)), rel=1e-8)


def test_bounds_by_hand():
    assert bounds.offline_lower_bound(8, 4.0, 100, 0.5) == pytest.approx(
        0.5 * 4 * 2.0794415416798357 / 100, rel=1e-12
    )
    assert bounds.offline_lower_bound(8, 100.0, 100, 0.5) == 0.5
    assert bounds.last_display_scale(8, 4.0, 100) == pytest.approx(2.0794415416798357 / 400, rel=1e-12)
    assert pytest.approx(0.09016844, abs=1e-8) == bounds.PRINTED_FAMILY_CONSTANT
    assert pytest.approx(0.18033688, abs=1e-8) == bounds.SHARP_FAMILY_CONSTANT


def test_helpers():
    assert log_slope([1, 10, 100], [5, 0.05, 0.0005]) == pytest.approx(-2, abs=1e-12)
    assert fewest(lambda n: 1 / n, 0.01) == 100
    assert fewest(lambda n: 1 / n, 1.0) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bandits.offline_risk(np.array([0.5, 0.6]), 1.0, 1), "sum of at most 1"),
        (lambda: bandits.offline_risk(np.array([-0.1, 0.6]), 1.0, 1), ">= 0"),
        (lambda: bandits.offline_risk(np.array([0.5]), 0.9, 1), "coverage >= 1"),
        (lambda: bandits.online_risk(np.array([0.5]), 0), "num_demos >= 1"),
        (lambda: bandits.printed_context_law(0, 1.0, 1), "at least one context"),
        (lambda: bandits.sharp_context_law(0, 1.0, 1), "at least one context"),
        (lambda: bandits.expert_law(np.array([0, 1]), 2.0), "secrets must be 1 or 2"),
        (
            lambda: bandits.floored_log_likelihood(np.array([[1]]), np.ones((1, 3)), 1.0),
            r"floor must be in \[0, 1\)",
        ),
        (lambda: bandits.enumerated_risks(np.array([0.5]), 2.0, 1), "sums to 1"),
        (lambda: bounds.offline_lower_bound(1, 1.0, 1, 1.0), "num_policies >= 2"),
        (lambda: bounds.offline_lower_bound(2, 1.0, 1, 0.0), "constant must be > 0"),
        (lambda: bounds.last_display_scale(2, 0.5, 1), "coverage >= 1"),
        (lambda: run(0, settings=Settings(coverages=(2.0, 4.0))), "rise from 1.0"),
        (
            lambda: run(0, settings=Settings(coverages=(1.0, 1_000.0))),
            "num_demos >= 80000 and",
        ),
        (lambda: run(0, settings=Settings(demo_counts=(300, 400))), "demo_counts >= 320"),
    ],
)
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_experiment_holds_and_repeats():
    shares: list[float] = []
    outcome = run(0, shares.append, SMALL)
    assert [row.claim for row in outcome.rows if not row.is_as_expected] == []
    assert {row.holds for row in outcome.rows if not row.is_refuted} == {"yes"}
    refuted = [row for row in outcome.rows if row.is_refuted]
    assert len(refuted) == 3
    assert {row.holds for row in refuted} == {"no"}
    assert all(len(row.claim) < 80 for row in outcome.rows)
    assert len(outcome.rows) <= 25
    assert shares == sorted(shares)
    assert shares[-1] == 1
    record = outcome.as_record()
    assert json.loads(json.dumps(record))["rows"] == record["rows"]
    assert run(0, settings=SMALL).rows == outcome.rows
    assert run(1, settings=SMALL).rows != outcome.rows


def test_experiment_measures_what_its_rows_say():
    rows = {row.claim: row for row in run(0, settings=SMALL).rows}

    def measured(start):
        (row,) = (row for claim, row in rows.items() if claim.startswith(start))
        return row.measured

    # 3 rare contexts at zeta = C / 200 for C = 2, and the frequent one
    family = sum(0.5 * p * (1 - p) ** 200 for p in (0.01, 0.01, 0.01, 0.97))
    assert measured("Online in the family: the risk at C = 2") == pytest.approx(family, rel=1e-9)
    law = (0.01, 0.01, 0.01, 0.97)
    assert measured("C = 8: the bound also binds") == pytest.approx(
        sum(p * (1 - p) ** 200 for p in (0.04, 0.04, 0.04, 0.88)) / 3, rel=1e-9
    )
    target = 0.01 * sum(0.5 * p * (1 - p) for p in law)
    needed = {
        c: next(n for n in range(1, 9_999) if sum(0.5 * p * (1 - p / c) ** n for p in law) <= target)
        for c in (1, 8)
    }
    assert measured("Fixed contexts, risk to 1 %") == pytest.approx(needed[8] / needed[1], rel=1e-12)

    def fixed_risk(rate, num):
        return sum(p * (1 - p / rate) ** num for p in law)

    numbers = sorted({int(n) for n in np.geomspace(1, 20_000, 40)})
    least = min(fixed_risk(c, n * c) / fixed_risk(1, n) for c in (2, 8) for n in numbers)
    assert measured("Fixed contexts: C N demonstrations") == pytest.approx(least, rel=1e-9)
    # |Pi| = 4, C = 1, N = 5 is the worst point of the grid: contexts at 1/5 and 4/5
    worst = 0.5 * (0.2 * 0.8**5 + 0.8 * 0.2**5) / (2 * math.log(2) / 5)
    assert measured("|Pi| = 2^l, l >= 2: risk") == pytest.approx(worst, rel=1e-9)
    # every line of the printed pictures is drawn for the law it names
    (panel,) = (p for p in run(0, settings=SMALL).panels if p.title.startswith("Risk against coverage"))
    offline, closed = panel.lines[0], panel.lines[1]
    exact = np.interp(np.log(offline.x), np.log(closed.x), np.log(closed.y))
    np.testing.assert_allclose(np.log(offline.y), exact, atol=0.25)


def test_panel_lines_are_the_closed_forms():
    points = [(4, 2.0, 200), (4, 8.0, 200)]
    line = bandit_panels.closed_line("", [2.0, 8.0], points, "g", is_online=True)
    assert list(line.y) == [bandits.family_online_risk(*point) for point in points]
    bound = bandit_panels.bound_line([2.0, 8.0], points)
    assert bound.y[1] == pytest.approx(8 * 4 * math.log(2) / 200 / (16 * math.log(2)), rel=1e-12)
    assert offline_bottleneck.fixed_law(SMALL).tolist() == pytest.approx([0.01, 0.01, 0.01, 0.97])


def test_two_coverages_suffice():
    outcome = run(
        0, settings=replace(SMALL, coverages=(1.0, 8.0), num_demos=2_000, demo_counts=(2_000, 4_000))
    )
    assert outcome.is_as_expected
