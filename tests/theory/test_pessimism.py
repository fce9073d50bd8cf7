"""The pessimistic learner against loops over single samples and full enumeration, and its bounds against mutated ones."""

import json
import math
from itertools import product

import numpy as np
import pytest

from understudy.theory import pessimism, pessimism_checks
from understudy.theory.alignment import random_students
from understudy.theory.bounds.pessimism import explicit_bound, printed_bound, scaled_bound, theory_beta
from understudy.theory.experiments import pessimism as experiment

SMALL = experiment.Settings(
    nums=(1000, 3000, 10_000),
    coverages=(16.0, 32.0, 64.0),
    rare_nums=(1000, 3_000_000),
    num_reps=400,
    betas=(0.0, 0.03, 3.0),
    num_worlds=10,
    rival_nums=(300,),
)


def random_world(seed: int, num_contexts: int = 2, num_responses: int = 3) -> pessimism.LoggedBandit:
    generator = np.random.default_rng(seed)
    return pessimism.LoggedBandit(
        generator.dirichlet(np.ones(num_contexts)),
        generator.dirichlet(np.full(num_responses, 2.0), num_contexts),
        generator.uniform(-2, 1, (num_contexts, num_responses)),
        random_students(4, num_contexts, num_responses, generator),
    )


def counts_of(log: list[tuple[int, int]], shape: tuple[int, int]) -> np.ndarray:
    counts_RXY = np.zeros((1, *shape))
    for x, y in log:
        counts_RXY[0, x, y] += 1
    return counts_RXY


def by_sample(world, log, power: int) -> tuple[list[float], list[float]]:
    """(J_ipw, penalty) of every student, sample by sample as the formulas stand."""
    ipw, penalty = [], []
    for student in world.student_KXY.tolist():
        base, score = world.base_XY.tolist(), world.score_XY.tolist()
        ipw.append(sum(student[x][y] / base[x][y] * score[x][y] for x, y in log) / len(log))
        one = [sum(p**power / b for p, b in zip(student[x], base[x], strict=True)) for x, _ in log]
        penalty.append(sum(one) / len(log))
    return ipw, penalty


@pytest.mark.parametrize(("kind", "power"), [("printed", 1), ("second moment", 2)])
def test_estimates_and_choice_are_the_formulas(kind, power):
    log = [(0, 1), (1, 2), (0, 1), (1, 0), (0, 0), (0, 1)]
    picks = set()
    for seed in range(12):
        world = random_world(seed)
        counts_RXY = counts_of(log, (2, 3))
        ipw, penalty = by_sample(world, log, power)
        assert pessimism.ipw_estimate(world, counts_RXY)[0] == pytest.approx(ipw, abs=1e-12)
        assert pessimism.penalty_estimate(world, counts_RXY, kind)[0] == pytest.approx(penalty, abs=1e-12)
        for beta in (0.0, 0.05, 2.0):
            objective = [j - beta * p for j, p in zip(ipw, penalty, strict=True)]
            # Deterministic students that agree on what was seen tie.
            best = [k for k in range(4) if objective[k] > max(objective) - 1e-10]
            expected = [float(k in best) / len(best) for k in range(4)]
            assert pessimism.pessimistic_choice(world, counts_RXY, beta, kind)[0].tolist() == expected
            picks.add((seed, *best))
    assert len(picks) > 12  # beta changes the choice somewhere


def test_estimates_are_unbiased_over_all_logs():
    world = random_world(3)
    cells = list(product(range(2), range(3)))
    ipw_mean, penalty_mean, total = np.zeros(4), np.zeros(4), 0.0
    for log in product(cells, repeat=3):
        prob = math.prod(float(world.context_X[x] * world.base_XY[x, y]) for x, y in log)
        ipw, penalty = by_sample(world, list(log), 1)
        ipw_mean, penalty_mean, total = (
            ipw_mean + prob * np.array(ipw),
            penalty_mean + prob * np.array(penalty),
            total + prob,
        )
    assert total == pytest.approx(1.0, abs=1e-12)
    assert world.online_K == pytest.approx(ipw_mean, abs=1e-12)
    assert world.penalty_KX("printed") @ world.context_X == pytest.approx(penalty_mean, abs=1e-12)
    counts_RXY, prob_R = pessimism.every_log(world.context_X, world.base_XY, 3)
    assert prob_R.sum() == pytest.approx(1.0, abs=1e-12)
    assert prob_R @ pessimism.ipw_estimate(world, counts_RXY) == pytest.approx(ipw_mean, abs=1e-12)


def test_penalties_by_hand():
    """Base (1/2, 1/4, 1/4). The base model itself: sum of ratios 3, second moment 1. Always the second: 4 and 4."""
    base_XY = np.array([[0.5, 0.25, 0.25]])
    students = np.stack([base_XY, np.eye(3)[1:2]])
    world = pessimism.LoggedBandit(np.ones(1), base_XY, np.ones((1, 3)), students)
    assert world.penalty_KX("printed")[:, 0].tolist() == [3.0, 4.0]
    assert world.penalty_KX("second moment")[:, 0].tolist() == [1.0, 4.0]
    assert world.coverage_K.tolist() == [1.0, 4.0]


def test_second_moment_never_exceeds_the_coverage_and_the_printed_one_does():
    exceeded = False
    for seed in range(30):
        world = random_world(seed)
        assert (world.penalty_KX("second moment").max(1) <= world.coverage_K + 1e-12).all()
        exceeded |= bool((world.penalty_KX("printed").max(1) > 1.1 * world.coverage_K).any())
    assert exceeded


def test_ties_are_shared_evenly():
    choice_RK = pessimism.even_argmax(np.array([[1.0, 1.0, 0.0], [2.0, 3.0, 3.0 + 1e-14]]))
    assert choice_RK.tolist() == [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]


def test_imitation_is_the_floored_likelihood():
    student_KXY = np.array([[[0.5, 0.5, 0.0]], [[0.9, 0.0, 0.1]], [[0.2, 0.2, 0.6]]])
    counts_RXY = np.array([[[3, 1, 0]], [[9, 0, 0]], [[0, 0, 2]], [[0, 1, 1]]])
    expected = []
    for counts in counts_RXY[:, 0]:
        scores = [
            sum(c * math.log(max(p, 1e-6)) for c, p in zip(counts, s[0], strict=True)) for s in student_KXY
        ]
        expected.append(max(range(3), key=scores.__getitem__))
    assert expected == [0, 1, 2, 2]
    assert pessimism.imitation_choice(student_KXY, counts_RXY).argmax(1).tolist() == expected


def test_drawn_counts_follow_the_joint_law():
    world = random_world(1)
    counts_RXY = pessimism.draw_counts(world.context_X, world.base_XY, 50, 2000, np.random.default_rng(0))
    assert (counts_RXY.sum(axis=(1, 2)) == 50).all()
    joint_XY = world.context_X[:, None] * world.base_XY
    deviation_XY = np.abs(counts_RXY.sum(0) / 1e5 - joint_XY) / np.sqrt(joint_XY * (1 - joint_XY) / 1e5)
    # Six z scores below 5: fails by chance with probability < 4e-6.
    assert deviation_XY.max() < 5


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.37, 2.0])
@pytest.mark.parametrize("v_max", [1.0, 3.0])
def test_two_student_miss_is_the_learner_enumerated(beta, v_max):
    for coverage, gap in ((2.0, 0.4), (3.0, 0.5), (5.0, 0.9)):
        base_XY = np.array([[1 / coverage, 1 - 1 / coverage]])
        score_XY = v_max * np.array([[(1 + gap) / 2, (1 - gap) / 2]])
        world = pessimism.LoggedBandit(np.ones(1), base_XY, score_XY, np.eye(2)[:, None, :])
        counts_RXY, prob_R = pessimism.every_log(np.ones(1), base_XY, 6)
        loss = prob_R @ pessimism.shortfall(world, pessimism.pessimistic_choice(world, counts_RXY, beta))
        miss = pessimism.two_student_miss(coverage, np.array([gap]), 6, beta, v_max)[0]
        assert v_max * gap * miss == pytest.approx(loss, abs=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.05, 0.3])
def test_rare_context_miss_is_the_learner_enumerated(beta):
    """Two rare contexts and one where all students agree, four students, four samples: 1296 logs."""
    coverage, prob = 3.0, 0.3
    context_X = np.array([prob, prob, 1 - 2 * prob])
    base_XY = np.tile([1 / coverage, 1 - 1 / coverage], (3, 1))
    score_XY = np.tile([0.5, 1.0], (3, 1))
    students = np.eye(2)[np.array([[i, j, 1] for i, j in product(range(2), repeat=2)])]
    world = pessimism.LoggedBandit(context_X, base_XY, score_XY, students)
    counts_RXY, prob_R = pessimism.every_log(context_X, base_XY, 4)
    loss = prob_R @ pessimism.shortfall(world, pessimism.pessimistic_choice(world, counts_RXY, beta))
    miss = pessimism.rare_context_miss(coverage, prob, 4, beta)
    assert 2 * prob / 2 * miss == pytest.approx(loss, abs=1e-12)


@pytest.mark.parametrize("coverage", [4.0, 8.0])
def test_rare_limit_by_sum_and_by_large_n(coverage):
    def poisson(k: int, mean: float) -> float:
        return math.exp(k * math.log(mean) - mean - math.lgamma(k + 1))

    total = 0.5 * poisson(0, coverage - 1) * poisson(0, 1.0)
    for bad in range(60):
        for good in range(90):
            if coverage / 2 * bad > coverage / (coverage - 1) * good + 1e-9:
                total += poisson(bad, 1.0) * poisson(good, coverage - 1)
    assert pessimism.rare_limit(coverage) == pytest.approx(total, abs=1e-12)
    num = 10**8
    assert pessimism.rare_context_miss(coverage, coverage / num, num, 1e-7) == pytest.approx(total, rel=1e-6)


def test_normal_limit_is_approached():
    """The error falls as N^-1/2 (Berry-Esseen); at N = 250,000 it is below 0.01, at 2,500 it is not below 0.002."""
    coverage, errors = 8.0, []
    for num in (2500, 250_000):
        beta = theory_beta(coverage, 1.0, 2, num, 0.05)
        gap_G = np.linspace(0.5, 1.5, 5) * beta * coverage
        exact_G = pessimism.two_student_miss(coverage, gap_G, num, beta)
        errors.append(np.abs(exact_G - pessimism.normal_miss(coverage, gap_G, num, beta)).max())
    assert errors[1] < 0.01
    assert errors[1] < errors[0] / 4


@pytest.mark.parametrize("kind", ["printed", "second moment"])
@pytest.mark.parametrize("beta", [0.0, 0.2, 0.5, 2.0])
def test_tail_loss_is_the_learner_enumerated(kind, beta):
    world = pessimism.tail_world(3)
    counts_RXY, prob_R = pessimism.every_log(world.context_X, world.base_XY, 4)
    loss = prob_R @ pessimism.shortfall(world, pessimism.pessimistic_choice(world, counts_RXY, beta, kind))
    assert pessimism.tail_loss(3, 4, beta, kind) == pytest.approx(loss, abs=1e-12)


def test_printed_penalty_fails_for_students_that_are_not_deterministic():
    """|Y| = 10,001, N = 3000: the loss is 1/2, fifteen times the printed bound and far above the explicit one."""
    beta = theory_beta(1.0, 1.0, 2, 3000, 0.05)
    assert pessimism.tail_loss(10_000, 3000, beta, "printed") == pytest.approx(0.5, abs=1e-12)
    assert printed_bound(2.0, 1.0, 1.0, 2, 3000) < 0.5 / 15
    assert pessimism.tail_loss(10_000, 3000, beta, "second moment") < 1e-12
    # With the penalty that the student really has, the explicit bound is vacuous, as it must be.
    assert explicit_bound(beta, 10_001, 2.0, 1.0, 2, 3000, 0.05, is_one_context=True) > 0.5


@pytest.mark.parametrize(("expert_coverage", "base_coverage"), [(8.0, 3.0), (1.0, 6.0)])
def test_rivals_risks_are_the_learners_enumerated(expert_coverage, base_coverage):
    world = pessimism.rivals(2, 0.3, expert_coverage, base_coverage)
    logged = world.logged
    counts_RXY, prob_R = pessimism.every_log(logged.context_X, logged.base_XY, 4)
    for beta in (0.0, 0.3):
        loss = prob_R @ world.value_loss(pessimism.pessimistic_choice(logged, counts_RXY, beta))
        expected = sum(0.5 * d * (1 - d / base_coverage) ** 4 for d in (0.3, 0.7))
        assert loss == pytest.approx(expected, abs=1e-12)
        assert pessimism.unseen_risk(logged.context_X, base_coverage, 4) == pytest.approx(expected, abs=1e-12)
    demos_RXY, prob_R = pessimism.every_log(logged.context_X, world.expert_XY, 4)
    loss = prob_R @ world.value_loss(pessimism.imitation_choice(logged.student_KXY, demos_RXY))
    assert loss == pytest.approx(sum(0.5 * d * (1 - d / expert_coverage) ** 4 for d in (0.3, 0.7)), abs=1e-12)


def test_a_negative_score_makes_the_unseen_look_perfect():
    """Safe sampled twice, good once, rare never: scored by a negative f, beta = 0 takes the rare ones; by f + 6, good."""
    counts_RXY = np.array([[[2, 2, 0, 0]]])
    negative = pessimism.lucky_world(2, 0.01, (-0.5, -1.0, -6.0))
    shifted = pessimism.lucky_world(2, 0.01, (5.5, 5.0, 0.0))
    assert pessimism.pessimistic_choice(negative, counts_RXY, 0.0)[0].tolist() == [0.0, 0.0, 0.5, 0.5]
    assert pessimism.pessimistic_choice(shifted, counts_RXY, 0.0)[0].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert pessimism.pessimistic_choice(negative, counts_RXY, 0.1)[0, 2:].sum() == 0.0


def test_a_lucky_response_and_its_penalty():
    """Base (0.38, 0.6, 0.01, 0.01); one rare sample of ten is worth 0.1 * 100 / 10 = 1 > 0.6 * 4/3.8 = 0.63."""
    world = pessimism.lucky_world(2, 0.01, (0.6, 0.4, 0.1))
    counts_RXY = np.array([[[4, 5, 1, 0]]])
    assert pessimism.ipw_estimate(world, counts_RXY)[0, :3] == pytest.approx(
        [2.4 / 3.8, 2 / 6, 1.0], abs=1e-12
    )
    assert pessimism.pessimistic_choice(world, counts_RXY, 0.0)[0].argmax() == 2
    assert pessimism.pessimistic_choice(world, counts_RXY, 0.1)[0].argmax() == 0
    assert pessimism.pessimistic_choice(world, counts_RXY, 10.0)[0].argmax() == 1  # least penalty, 1/0.6


def test_bounds_by_hand():
    share = math.log(8) / 100
    assert printed_bound(5.0, 2.0, 3.0, 8, 100, 2.0) == pytest.approx(
        2 * (15 * share + math.sqrt(6 * share)), rel=1e-12
    )
    assert scaled_bound(5.0, 2.0, 3.0, 8, 100) == pytest.approx(
        3 * (5 * share + math.sqrt(2 * share)), rel=1e-12
    )
    log_term = math.log(4 * 8 / 0.1)
    assert theory_beta(2.0, 3.0, 8, 100, 0.1) == pytest.approx(3 * math.sqrt(log_term / 400), rel=1e-12)
    one = 2 * 0.2 * 1.5 + 9 * log_term / (0.2 * 100) + 2 * 6 * 3 * log_term / 300
    assert explicit_bound(0.2, 1.5, 5.0, 3.0, 8, 100, 0.1, is_one_context=True) == pytest.approx(
        one, rel=1e-12
    )
    context = 2 * 3 * math.sqrt(2 * math.log(2 * 8 / 0.1) / 100)
    assert explicit_bound(0.2, 1.5, 5.0, 3.0, 8, 100, 0.1) == pytest.approx(one + context, rel=1e-12)


def test_the_theorys_beta_is_the_best_for_the_explicit_bound():
    best = theory_beta(7.0, 2.0, 5, 300, 0.05)

    def at(beta: float) -> float:
        return explicit_bound(beta, 7.0, 9.0, 2.0, 5, 300, 0.05, is_one_context=True)

    assert at(best) < min(at(0.99 * best), at(1.01 * best))
    linear = 2 * 10 * 2.0 * math.log(4 * 5 / 0.05) / 900
    root = 2 * math.sqrt(2) * 2.0 * math.sqrt(7 * math.log(4 * 5 / 0.05) / 300)
    assert at(best) == pytest.approx(root + linear, rel=1e-12)


def test_explicit_bound_holds_and_its_mutations_do_not():
    """Exact probability that the loss exceeds the bound: at most 5 %, but not of a fifth of it, nor without C or sqrt(N)."""
    failure = 0.05
    exceeded = {"explicit": 0.0, "a fifth": 0.0, "no coverage": 0.0, "one over N": 0.0}
    for coverage in (4.0, 64.0, 256.0):
        for num in (3000, 30_000):
            beta = theory_beta(coverage, 1.0, 2, num, failure)
            gap_G = np.minimum(np.geomspace(0.01, 8, 60) * beta * coverage, 1)
            miss_G = pessimism.two_student_miss(coverage, gap_G, num, beta)
            bound = explicit_bound(beta, coverage, coverage, 1.0, 2, num, failure, is_one_context=True)
            for name, mutated in (
                ("explicit", bound),
                ("a fifth", bound / 5),
                ("no coverage", bound / math.sqrt(coverage)),
                ("one over N", bound / math.sqrt(num)),
            ):
                exceeded[name] = max(exceeded[name], float(np.where(gap_G > mutated, miss_G, 0).max()))
    assert exceeded.pop("explicit") <= failure
    assert min(exceeded.values()) > 0.5


def test_printed_root_does_not_scale():
    """The loss over V_max does not depend on V_max; the printed bound over V_max vanishes, the scaled one does not."""
    num, coverage = 10_000, 16.0
    beta = theory_beta(coverage, 1.0, 2, num, 0.05)
    gap_G = np.linspace(0.5, 1.5, 9) * beta * coverage
    small_G = pessimism.two_student_miss(coverage, gap_G, num, beta)
    large_G = pessimism.two_student_miss(coverage, gap_G, num, 1e4 * beta, 1e4)
    assert large_G == pytest.approx(small_G, abs=1e-12)
    loss = float((gap_G * small_G).max())
    assert loss > 5 * printed_bound(coverage, coverage, 1e4, 2, num) / 1e4
    assert loss < 2 * scaled_bound(coverage, coverage, 1e4, 2, num) / 1e4
    assert theory_beta(coverage, 1e4, 2, num, 0.05) == pytest.approx(1e4 * beta, rel=1e-12)


CAUGHT = ("P(loss > derived", "Largest expected loss", "Constant that two students")


@pytest.mark.parametrize("always_missed", [False, True])
def test_rows_on_the_explicit_bound_can_fail(monkeypatch, always_missed):
    """A learner that always takes the worse student: its gaps reach beyond 4 beta C and what the bound adds."""
    if always_missed:
        monkeypatch.setattr(
            pessimism, "_miss", lambda good, bad: np.ones(np.broadcast_shapes(good.shape, bad.shape))
        )
    rows = experiment.run(seed=1, settings=SMALL).rows
    found = {start: row.holds for start in CAUGHT for row in rows if row.claim.startswith(start)}
    assert found == dict.fromkeys(CAUGHT, "no" if always_missed else "yes")


def test_the_row_on_random_classes_can_fail(monkeypatch):
    """The least promising student instead of the best, and the same bound with a learner that is right."""
    make = lambda: pessimism_checks.random_row(np.random.default_rng(0), 10, 20, 0.05)  # noqa: E731
    assert make().holds == "yes"
    argmax = pessimism.even_argmax
    monkeypatch.setattr(pessimism, "even_argmax", lambda objective_RK: argmax(-objective_RK))
    assert make().holds == "no"


def test_cells_that_can_break_the_bound_are_counted():
    """8 beta C is above the bound where its linear term is below 4 beta C and the gap still is at most 1."""
    coverages, nums = (4.0, 64.0), (300, 30_000)
    expected = 0
    for coverage, num in product(coverages, nums):
        log_term = math.log(8 / 0.05)
        root = math.sqrt(coverage * log_term / (2 * num))  # beta C
        expected += min(8 * root, 1) > 4 * root + 2 * (coverage + 1) * log_term / (3 * num)
    assert pessimism.families(coverages, nums, 0.05).num_breakable == expected == 3


def test_the_contest_does_not_depend_on_beta_because_penalties_are_equal(monkeypatch):
    even = pessimism.rivals(3, 0.1, 4.0, 6.0)
    contest = pessimism_checks.contest(np.random.default_rng(0), even, (20, 60), 300, 0.05)
    assert contest.beta_effect == 0.0
    base_XY = np.tile([0.2, 0.3, 0.5], (3, 1))
    logged = pessimism.LoggedBandit(
        even.logged.context_X, base_XY, even.logged.score_XY, even.logged.student_KXY
    )
    uneven = pessimism.Rivals(logged, even.expert_XY, even.reward_XY)
    # The learner's beta against 0 and 10: at 10 only the first, at 0 only the second can make a difference.
    for beta in (10.0, 0.0):
        monkeypatch.setattr(pessimism_checks, "theory_beta", lambda *_, beta=beta: beta)
        found = pessimism_checks.contest(np.random.default_rng(0), uneven, (20, 60), 300, 0.05)
        assert found.beta_effect > 0.1


def test_families_take_the_worst_gap():
    families = pessimism.families((16.0,), (1000,), 0.05)
    beta = theory_beta(16.0, 1.0, 2, 1000, 0.05)
    gap_G = np.linspace(0.01, 1, 3000)
    fine = (gap_G * pessimism.two_student_miss(16.0, gap_G, 1000, beta)).max()
    # The grid steps by 0.05 beta C, about 2 % of the worst gap on either side.
    assert families.worst_CN[0, 0] <= fine + 1e-6
    assert families.worst_CN[0, 0] > 0.96 * fine
    loose = theory_beta(1.0, 1.0, 2, 1000, 0.05)
    fine = (gap_G * pessimism.two_student_miss(16.0, gap_G, 1000, loose)).max()
    assert 0.96 * fine < families.agnostic_CN[0, 0] <= fine + 1e-6
    assert families.explicit_CN[0, 0] == explicit_bound(
        beta, 16.0, 16.0, 1.0, 2, 1000, 0.05, is_one_context=True
    )
    assert families.printed_CN[0, 0] == printed_bound(16.0, 16.0, 1.0, 2, 1000)


def test_errors_say_what_was_expected():
    base_XY = np.array([[1.0, 0.0]])
    with pytest.raises(ValueError, match="never gives"):
        pessimism.LoggedBandit(np.ones(1), base_XY, np.zeros((1, 2)), np.eye(2)[:, None, :])
    with pytest.raises(ValueError, match="student_KXY"):
        pessimism.LoggedBandit(np.ones(1), base_XY, np.zeros((1, 3)), np.eye(2)[:1, None, :])
    world = random_world(0)
    counts_RXY = np.ones((1, 2, 3))
    for call, match in (
        (lambda: pessimism.pessimistic_choice(world, counts_RXY, -1.0), "beta"),
        (lambda: world.penalty_KX("third"), "third"),  # pyright: ignore[reportArgumentType]
        (lambda: pessimism.two_student_miss(1.0, np.array([0.5]), 5, 0.1), "coverage"),
        (lambda: pessimism.rare_context_miss(2.0, 0.1, 5, 0.1), "coverage"),
        (lambda: pessimism.rivals(3, 0.6, 2.0, 3.0), "context_prob"),
        (lambda: printed_bound(1.0, 2.0, 1.0, 2, 10), "class_coverage"),
        (lambda: explicit_bound(0.0, 1.0, 1.0, 1.0, 2, 10, 0.05), "beta > 0"),
        (lambda: theory_beta(0.5, 1.0, 2, 10, 0.05), "coverage >= 1"),
        (lambda: experiment.run(settings=experiment.Settings(rival_shown=7)), "rival_shown"),
    ):
        with pytest.raises(ValueError, match=match):
            call()


def test_the_experiment_is_as_expected_and_repeats():
    shares = []
    outcome = experiment.run(seed=1, progress=shares.append, settings=SMALL)
    assert [row.claim for row in outcome.rows if not row.is_as_expected] == []
    assert sum(row.is_refuted for row in outcome.rows) == 2
    assert [row.claim for row in outcome.rows if row.holds == "cannot tell"] == []
    assert max(len(row.claim) for row in outcome.rows) < 80
    assert shares[-1] == 1.0
    assert shares == sorted(shares)
    record = json.dumps(outcome.as_record())
    assert json.loads(record)["settings"]["num_reps"] == 400
    assert json.dumps(experiment.run(seed=1, settings=SMALL).as_record()) == record
    assert json.dumps(experiment.run(seed=2, settings=SMALL).as_record()) != record
