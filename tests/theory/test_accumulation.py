"""Accumulation of errors: dynamic programs, closed forms and learners against enumeration in plain Python."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from understudy.theory import accumulation as acc
from understudy.theory import accumulation_rivals as rivals
from understudy.theory import accumulation_shared as shared
from understudy.theory.bounds import accumulation as bounds
from understudy.theory.intervals import bounded_mean_interval, mean_interval
from understudy.theory.mdp import MDP, noised, trajectory_hellinger_sq


def close(value):
    return pytest.approx(value, rel=1e-9, abs=1e-12)


def episodes(world, policy):
    """(probability, states, actions, total reward) of every possible episode, by plain recursion."""
    mdp = world.mdp

    def extend(h, prob, states, actions, total):
        for a in range(mdp.num_actions):
            chance = prob * policy[h, states[-1], a]
            if chance == 0:
                continue
            gain = total + world.reward_HSA[h, states[-1], a]
            if h == mdp.horizon - 1:
                yield chance, states, (*actions, a), gain
                continue
            for nxt in range(mdp.num_states):
                step = mdp.transition_HSAS[h, states[-1], a, nxt]
                if step > 0:
                    yield from extend(h + 1, chance * step, (*states, nxt), (*actions, a), gain)

    for start in range(mdp.num_states):
        if mdp.start_S[start] > 0:
            yield from extend(0, mdp.start_S[start], (start,), (), 0.0)


def small_worlds(num, seed=0):
    generator = np.random.default_rng(seed)
    found = []
    while len(found) < num:
        world, student = acc.random_world(generator)
        if world.mdp.horizon <= 3:
            found.append((world, student))
    return found


@pytest.mark.parametrize(("world", "student"), small_worlds(4))
def test_world_quantities_by_enumeration(world, student):
    expert, horizon = world.expert_HSA, world.mdp.horizon
    value = {
        name: sum(p * total for p, _, _, total in episodes(world, pi))
        for name, pi in (("e", expert), ("s", student))
    }
    assert acc.regret(world, student) == close(value["e"] - value["s"])
    for roll_in in (expert, student):
        rates = [0.0] * horizon
        for p, states, _, _ in episodes(world, roll_in):
            for h in range(horizon):
                rates[h] += p * (1 - student[h, states[h], expert[h, states[h]].argmax()])
        assert acc.error_rates(world, roll_in, student) == close(rates)
    uniform = np.full(student.shape, 1 / student.shape[-1])
    assert acc.reward_range(world) == close(max(t for *_, t in episodes(world, uniform)))
    affinity = sum(
        p * math.sqrt(math.prod(student[h, s[h], a[h]] for h in range(horizon)))
        for p, s, a, _ in episodes(world, expert)
    )
    assert trajectory_hellinger_sq(world.mdp, expert, student) == close(1 - affinity)
    # Q by definition: play one action at (h, s), then the expert; read off episodes that start there.
    q = acc.expert_values(world)
    for state, action in itertools.product(range(world.mdp.num_states), range(world.mdp.num_actions)):
        first = expert.copy()
        first[0, state] = np.eye(world.mdp.num_actions)[action]
        there = replace(world, mdp=replace(world.mdp, start_S=np.eye(world.mdp.num_states)[state]))
        assert q[0, state, action] == close(sum(p * t for p, _, _, t in episodes(there, first)))
    _, by_lemma = acc.price_of_errors(world, student)
    assert by_lemma == close(value["e"] - value["s"])


def test_roads_by_hand():
    # Cliff, H = 3, eps = 1/2: expected rewards 1/2 + 1/4 + 1/8 of 3.
    assert acc.regret(acc.cliff_world(3), acc.road_student(acc.cliff_world(3), 0.5, 0)) == pytest.approx(
        3 - 0.875
    )
    # Ditch of depth 1, eps = 1/2 everywhere: 1/2 at once, then on the road half the time: 1/4 a step.
    ditch = acc.ditch_world(3, 1)
    assert acc.regret(ditch, acc.road_student(ditch, 0.5, 0.5)) == pytest.approx(3 - 1.0)
    # Depth 2, a slip for sure at step 1 only, then climbing: steps 1, 2, 3 are lost and the rest is not.
    deep = acc.ditch_world(6, 2)
    assert acc.regret(deep, acc.road_student(deep, np.eye(6)[0], 0)) == pytest.approx(3.0)
    assert acc.regret(deep, acc.road_student(deep, np.eye(6)[0], 1)) == pytest.approx(6.0)
    assert acc.regret(deep, acc.road_student(deep, np.eye(6)[5], 0)) == pytest.approx(1.0)
    # Slip, climb once, go on by mistake (which stays), climb again: steps 1 to 4 are lost.
    hesitant = acc.road_student(deep, np.eye(6)[0], 0)
    hesitant[2, 1] = [1, 0]
    assert acc.regret(deep, hesitant) == pytest.approx(4.0)


@pytest.mark.parametrize("horizon", [1, 2, 5, 17])
@pytest.mark.parametrize("error", [1e-6, 0.03, 0.5, 1.0])
def test_closed_forms_of_regret(horizon, error):
    cliff, ditch = acc.cliff_world(horizon), acc.ditch_world(horizon, 1)
    lasting = sum(1 - (1 - error) ** h for h in range(1, horizon + 1))
    assert acc.lasting_regret(error, horizon) == close(lasting)
    assert acc.regret(cliff, acc.road_student(cliff, error, 0)) == close(lasting)
    assert acc.regret(ditch, acc.road_student(ditch, error, 1)) == close(lasting)
    recovering = acc.regret(ditch, acc.road_student(ditch, error, error))
    assert acc.recovering_regret(error, horizon) == close(recovering)


@pytest.mark.parametrize("depth", [0, 1, 3, 9])
def test_gap_is_the_price_of_one_mistake(depth):
    world = acc.ditch_world(6, depth)
    assert acc.price_of_errors(world, acc.road_student(world, 0.1, 0.1))[0] == pytest.approx(
        min(6, depth + 1)
    )


def test_gap_ignores_states_never_visited():
    # Climbing is worth 100: at the last step a student in the ditch can lose 100, one on the road 1.
    world = acc.ditch_world(6, 1)
    reward_HSA = world.reward_HSA.copy()
    reward_HSA[:, 1, 1] = 100
    world = replace(world, reward_HSA=reward_HSA)
    assert acc.price_of_errors(world, acc.road_student(world, 0.0, 0.5))[0] == pytest.approx(1)
    assert acc.price_of_errors(world, acc.road_student(world, 0.1, 0.5))[0] == pytest.approx(100)


# ---- every bound holds on random worlds, and a smaller one fails on a constructed instance -------------------------------


def test_bounds_on_random_worlds():
    generator = np.random.default_rng(3)
    for _ in range(200):
        world, student = acc.random_world(generator)
        found, horizon, total = acc.regret(world, student), world.mdp.horizon, acc.reward_range(world)
        demo_H, own_H = (acc.error_rates(world, pi, student) for pi in (world.expert_HSA, student))
        distance = max(0.0, trajectory_hellinger_sq(world.mdp, world.expert_HSA, student))
        by_step = bounds.cloning_bound_by_step(demo_H)
        assert found <= by_step + 1e-12
        assert by_step <= bounds.cloning_bound(horizon, demo_H.mean()) + 1e-12
        gap, _ = acc.price_of_errors(world, student)
        assert found <= bounds.interaction_bound(gap, horizon, own_H.mean()) + 1e-12
        sharp = bounds.log_loss_bound_sharp(total, distance)
        assert found <= sharp + 1e-12
        assert bounds.log_loss_bound_printed(total, distance) == close(2 * sharp)


@pytest.mark.parametrize("horizon", [2, 7, 30])
def test_cloning_bound_is_sharp(horizon):
    cliff = acc.cliff_world(horizon)
    at_once = acc.road_student(cliff, 0.2 * np.eye(horizon)[0], 0)
    found, error = acc.regret(cliff, at_once), 0.2 / horizon
    assert found == close(bounds.cloning_bound(horizon, error))
    assert found > 0.99 * bounds.cloning_bound(horizon, error)  # a smaller constant fails
    assert found > bounds.cloning_bound(horizon, error) / horizon**0.1  # a smaller exponent fails
    rate_H = np.full(horizon, 1e-7)
    even = acc.regret(cliff, acc.road_student(cliff, rate_H, 0))
    assert bounds.cloning_bound_by_step(rate_H) == close(1e-7 * horizon * (horizon + 1) / 2)
    assert 0.9999 * bounds.cloning_bound_by_step(rate_H) < even <= bounds.cloning_bound_by_step(rate_H)
    assert bounds.cloning_bound_by_step(np.array([0.7, 0.7, 0.0])) == pytest.approx(0.7 + 1 + 1)


def test_interaction_bound_is_sharp_and_needs_own_states():
    flat = acc.ditch_world(9, 0)
    found = acc.regret(flat, acc.road_student(flat, 0.3, 0))
    assert found == close(bounds.interaction_bound(1, 9, 0.3))
    assert found > 0.99 * bounds.interaction_bound(1, 9, 0.3)
    # Depth 3, slips only where all climbing still fits: every error costs mu = 4 rewards, so mu - 0.01 fails too.
    deep = acc.ditch_world(9, 3)
    student = acc.road_student(deep, 0.1 * np.eye(9)[2], 0)
    own = acc.error_rates(deep, student, student).mean()
    assert acc.regret(deep, student) == close(bounds.interaction_bound(4, 9, own))
    # With eps measured on the expert's states the same statement is false: the clone that stays in the ditch.
    long = acc.ditch_world(40, 1)
    lost = acc.road_student(long, 0.01, 1)
    demo = acc.error_rates(long, long.expert_HSA, lost).mean()
    assert demo == pytest.approx(0.01)
    assert acc.regret(long, lost) > 5 * bounds.interaction_bound(2, 40, demo)


def test_log_loss_bounds_are_sharp():
    horizon, error = 6, 1e-5
    cliff = acc.cliff_world(horizon)
    last = replace(cliff, reward_HSA=cliff.reward_HSA * np.eye(horizon)[-1][:, None, None])
    student = acc.road_student(last, error, 0)
    distance = trajectory_hellinger_sq(last.mdp, last.expert_HSA, student)
    found = acc.regret(last, student)
    assert distance == pytest.approx(1 - (1 - error) ** (horizon / 2), rel=1e-6)
    assert (
        0.999 * bounds.log_loss_bound_sharp(1, distance) < found <= bounds.log_loss_bound_sharp(1, distance)
    )
    assert found > bounds.log_loss_bound_printed(1, distance) * 0.49
    # Two laws (.55, .45) and (.45, .55): total variation 0.1 = sqrt(D (2 - D)), and far above 4 D.
    far = 1 - 2 * math.sqrt(0.55 * 0.45)
    assert bounds.stochastic_expert_bound(3, far) == close(0.3)
    assert bounds.log_loss_bound_printed(3, far) < 0.3


def likelihood_oracle(laws, num):
    """Every ordered sample: P(law k at least as likely as law 0), and (probability, D of the worst best law)."""
    distance = [1 - sum(math.sqrt(p * q) for p, q in zip(laws[0], law, strict=True)) for law in laws]
    preferred, outcomes = [0.0] * len(laws), []
    for sample in itertools.product(range(len(laws[0])), repeat=num):
        likelihood = [math.prod(law[i] for i in sample) for law in laws]
        for k, value in enumerate(likelihood):
            preferred[k] += likelihood[0] * (value >= likelihood[0] * (1 - 1e-9))
        best = max(likelihood)
        worst = max(d for d, value in zip(distance, likelihood, strict=True) if value >= best * (1 - 1e-9))
        outcomes.append((likelihood[0], worst))
    return preferred, outcomes


@pytest.mark.parametrize("num", [1, 2, 4])
def test_likelihood_by_enumeration(num):
    generator = np.random.default_rng(num)
    laws = generator.dirichlet(np.ones(3), size=4)
    laws[2] = [0.5, 0.5, 0.0]
    laws[3] = laws[0]
    prob, worst, preferred = acc.mle_distances(laws, num)
    expected, outcomes = likelihood_oracle(laws.tolist(), num)
    assert prob.sum() == close(1)
    assert preferred == close(expected)
    assert prob @ worst == close(sum(p * d for p, d in outcomes))
    for k in (1, 2):
        distance = 1 - np.sqrt(laws[0] * laws[k]).sum()
        assert preferred[k] <= bounds.mle_preference_bound(distance, num)
    for failure in (0.9, 0.3, 0.01):
        assert prob @ (worst > bounds.mle_bound(4, num, failure)) <= failure
    assert prob @ worst <= bounds.mle_mean_bound(4, num)


def test_likelihood_bounds_are_sharp():
    # A deterministic alternative: it differs from the expert on an outcome of probability p, so D = p.
    def class_of_two(p):
        return np.array([[p, 0.0, 1 - p], [0.0, p, 1 - p]])

    prob, worst, preferred = acc.mle_distances(class_of_two(0.2), 5)
    assert preferred[1] == close(0.8**5)
    assert preferred[1] == close(bounds.mle_preference_bound(0.2, 5))  # so exponent n + 1 fails
    # P(D > x) <= delta at x = log(K / delta) / n; at 0.4 x it is violated.
    prob, worst, _ = acc.mle_distances(class_of_two(0.6 / 20), 20)
    limit = bounds.mle_bound(2, 20, 0.5)
    assert limit == close(math.log(4) / 20)
    assert prob @ (worst > 0.4 * limit) > 0.5
    assert prob @ (worst > limit) <= 0.5
    # The mean of D is p (1 - p)^n, here 0.36 / n; a fifth of the bound 1.69 / n is violated.
    prob, worst, _ = acc.mle_distances(class_of_two(1 / 21), 20)
    assert prob @ worst == close((1 / 21) * (20 / 21) ** 20)
    assert 0.2 * bounds.mle_mean_bound(2, 20) < prob @ worst <= bounds.mle_mean_bound(2, 20)
    # The bound integrates min(1, K exp(-n x)) over x, here numerically.
    x = np.linspace(0, 2, 400_001)
    integral = float(np.minimum(1, 3 * np.exp(-20 * x)).sum() * (x[1] - x[0]))
    assert bounds.mle_mean_bound(3, 20) == pytest.approx(integral, abs=1e-5)


# ---- learners ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("horizon", [1, 5])
def test_context_world(horizon):
    world, codes, regret_K = acc.context_world(horizon, 3, 0.125)
    assert codes.shape == (8, horizon, 4, 2)
    for code, found in zip(codes, regret_K, strict=True):
        num_wrong = int(code[0, :, 1].sum())
        assert found == close(0.125 * num_wrong)
        assert trajectory_hellinger_sq(world.mdp, world.expert_HSA, code) == close(found)
        assert acc.price_of_errors(world, code)[0] == pytest.approx(1 / horizon)


def test_expected_regret_of_cloning_by_enumeration():
    # Outcomes: (rare context, expert's action), (rare context, other), common. The laws of the 2^2 codes.
    rate, num = 1 / 6, 5
    laws = [
        [*itertools.chain.from_iterable((rate * (1 - wrong), rate * wrong) for wrong in code), 1 - 2 * rate]
        for code in itertools.product((0, 1), repeat=2)
    ]
    _, outcomes = likelihood_oracle(laws, num)
    assert acc.hardest_missing_rate(2, num) == close(sum(p * d for p, d in outcomes))
    values = [2 * z * (1 - z) ** num for z in np.linspace(0.001, 0.499, 2000)]
    assert max(values) <= acc.hardest_missing_rate(2, num) <= max(values) + 1e-4
    assert acc.hardest_missing_rate(9, 1) == pytest.approx(9 * (1 / 9) * (8 / 9))  # capped: nine must fit
    prob, worst, _ = acc.mle_distances(np.array(laws), num)
    assert prob @ worst == close(acc.hardest_missing_rate(2, num))


def test_worst_of_best_takes_the_worst_of_equals():
    _, codes, regret_K = acc.context_world(2, 2, 0.25)
    nothing_1K = np.zeros((1, 4))
    context_0 = np.zeros((1, 2), int)
    right_1K = acc.log_likelihoods(codes, context_0, np.zeros((1, 2), int))
    wrong_1K = acc.log_likelihoods(codes, context_0, np.ones((1, 2), int))
    # Nothing known: both rare contexts wrong. Context 0 right, 1 unknown; context 0 wrong.
    every_RK = np.concatenate([nothing_1K, right_1K, wrong_1K])
    assert acc.worst_of_best(every_RK, regret_K).tolist() == [3, 1, 3]
    # Two steps of probabilities 0.9 and 0.2: a log-likelihood is the sum of both logs.
    laws = np.array([[[[0.9, 0.1]], [[0.8, 0.2]]]])
    found = acc.log_likelihoods(laws, np.zeros((1, 2), int), np.array([[0, 1]]))
    assert found.tolist() == [[close(math.log(0.9 * 0.2))]]


@pytest.mark.parametrize("learner", [acc.clone_offline, acc.clone_online])
def test_learners_have_the_expected_regret(learner):
    # Fails by chance with probability at most 1e-3 (seed fixed); one demonstration more or fewer moves the value by
    # 25 %, outside the interval.
    world, codes, regret_K = acc.context_world(3, 2, 0.25)
    found = regret_K[learner(world, codes, regret_K, 3, 4000, np.random.default_rng(5))]
    _, low, high = bounded_mean_interval(found, 0, 0.5)
    assert low <= 2 * 0.25 * 0.75**3 <= high
    assert not low <= 2 * 0.25 * 0.75**4 <= high
    assert not low <= 2 * 0.25 * 0.75**2 <= high


def test_online_learner_follows_its_own_states():
    # Ditch of depth 1, two candidates that differ in the ditch only: offline cannot see it, online can after a slip.
    world = acc.ditch_world(4, 1)
    slips = acc.road_student(world, np.eye(4)[0], 1)
    good = acc.road_student(world, 0, 0)
    mixed = np.stack([0.5 * good + 0.5 * acc.road_student(world, np.eye(4)[0], 0), 0.5 * good + 0.5 * slips])
    regret_K = np.array([acc.regret(world, pi) for pi in mixed])
    generator = np.random.default_rng(1)
    assert set(acc.clone_offline(world, mixed, regret_K, 30, 20, generator).tolist()) == {1}
    # Probability that 30 own episodes never slip at step 1: below 2^-29 for each of the 20.
    assert set(acc.clone_online(world, mixed, regret_K, 30, 20, generator).tolist()) == {0}


# ---- a ditch whose labels are shared by the steps ------------------------------------------------------------------------


def shared_ditch(horizon, rare, rate):
    """The same ditch as an MDP: state 0 a common observation, 1..I the rare ones, I + 1 the ditch; 2^(I + 1) codes."""
    seen = np.array([1 - rare * rate, *[rate] * rare, 0.0])
    ditch = rare + 1
    step = np.zeros((rare + 2, 2, rare + 2))
    step[:ditch, 0], step[:ditch, 1] = seen, np.eye(rare + 2)[ditch]
    step[ditch, 0], step[ditch, 1] = np.eye(rare + 2)[ditch], seen
    reward = np.zeros((horizon, rare + 2, 2))
    reward[:, :ditch, 0] = 1
    codes = []
    for wrong in itertools.product((0, 1), repeat=rare + 1):
        action = np.array([0, *wrong[:rare], 1 - wrong[rare]])
        codes.append(np.broadcast_to(np.eye(2)[action], (horizon, rare + 2, 2)))
    mdp = MDP(seen, np.broadcast_to(step, (horizon - 1, *step.shape)))
    world = acc.World(mdp, reward, codes[0])
    return world, np.array(codes), np.array([acc.regret(world, code) for code in codes])


@pytest.mark.parametrize("is_online", [False, True])
@pytest.mark.parametrize(("horizon", "rare", "num"), [(3, 2, 4), (6, 2, 3), (4, 3, 2)])
def test_shared_labels_are_the_general_learners(horizon, rare, num, is_online):
    """The same MDP, class and learners in general form, simulated; each fails by chance with probability at most 1e-3.

    One episode more or fewer does not fit, nor does the other learner.
    """
    rate = min(1 / (num * horizon + 1), 1 / rare)
    world, codes, regret_K = shared_ditch(horizon, rare, rate)
    # Of several candidates that fit, the learners return the one with the largest regret: what is unlabelled is wrong.
    learner = acc.clone_online if is_online else acc.clone_offline
    found = regret_K[learner(world, codes, regret_K, num, 20_000, np.random.default_rng(8))] / horizon
    _, low, high = mean_interval(found)
    assert low <= shared.share_lost(horizon, rare, num, is_online) <= high
    assert not low <= shared.share_lost(horizon, rare, num, not is_online) <= high
    table_K2 = shared.regret_table(horizon, rare, rate)
    for other in (num - 1, num + 1):
        law_K2 = np.stack([shared.cloned_law(horizon, rare, rate, other), np.zeros(rare + 1)], -1)
        law_K2 = shared.dagger_law(horizon, rare, rate, other) if is_online else law_K2
        assert not low <= (law_K2 * table_K2).sum() / horizon <= high


def test_shared_labels_by_hand():
    # One rare observation at rate z, H = 2, one episode: it is labelled unless both steps, or the first and the ditch, miss it.
    z = 0.3
    assert shared.cloned_law(2, 1, z, 1) == close(np.array([1 - (1 - z) ** 2, (1 - z) ** 2]))
    # First step slips (z): the ditch is labelled. Else the second step slips (label, but the ditch is not seen) or does not.
    after = shared.dagger_law(2, 1, z, 1)
    assert after == close(np.array([[(1 - z) * z, z], [(1 - z) ** 2, 0.0]]))
    for law_K2 in (after, shared.dagger_law(7, 3, 0.1, 5)):
        assert law_K2.sum() == close(1)
    world, codes, regret_K = shared_ditch(5, 1, z)
    # Codes (rare wrong, ditch wrong) in order 00, 01, 10, 11.
    assert shared.regret_table(5, 1, z) == close(np.array([[0.0, 0.0], [regret_K[3], regret_K[2]]]))
    assert len(codes) == 4
    assert world.mdp.horizon == 5


def test_shared_labels_lose_a_fixed_share_offline_and_a_falling_one_online():
    offline, online = (
        [shared.share_lost(horizon, 8, 50, is_online) for horizon in (8, 64)] for is_online in (False, True)
    )
    # I / (2 e n) and 2 I / (e n H) for rare errors, up to terms of order 1/n and 1/H.
    assert offline[1] == pytest.approx(8 / (2 * math.e * 50), rel=0.02)
    assert online == pytest.approx([16 / (math.e * 50 * 8), 16 / (math.e * 50 * 64)], rel=0.06)
    assert offline[0] > offline[1]
    with pytest.raises(ValueError, match=r"rate \* num_rare <= 1"):
        shared.cloned_law(2, 3, 0.5, 1)


def dagger_oracle(horizon, rare, rate, num_episodes, num_runs, generator):
    """The same learner, one run and one step at a time, on the same random numbers."""
    known = [[set() for _ in range(horizon)] for _ in range(num_runs)]
    climbs = [[False] * horizon for _ in range(num_runs)]
    for _ in range(num_episodes):
        draws = generator.random((horizon, num_runs))
        for run in range(num_runs):
            on_road = True
            for h in range(horizon):
                if not on_road:
                    on_road, climbs[run][h] = climbs[run][h], True
                    continue
                item = int(draws[h, run] // rate)
                if item < rare:
                    on_road = item in known[run][h]
                    known[run][h].add(item)
    return [[rate * (rare - len(seen)) for seen in row] for row in known], climbs


def test_dagger_tables_step_by_step():
    arguments = (5, 3, 0.1, 6, 20)
    error_RH, climbs_RH = acc.dagger_tables(*arguments, np.random.default_rng(2))
    expected_error, expected_climbs = dagger_oracle(*arguments, np.random.default_rng(2))
    assert error_RH == close(np.array(expected_error))
    assert climbs_RH.tolist() == expected_climbs
    assert 0 < climbs_RH.mean() < 1
    regret_R, own_R = acc.table_regret(error_RH, climbs_RH)
    world = acc.ditch_world(5, 1)
    for error_H, climbs_H, found, own in zip(error_RH, climbs_RH, regret_R, own_R, strict=True):
        student = acc.road_student(world, error_H, 0)
        student[~climbs_H, 1] = [1, 0]
        assert found == close(acc.regret(world, student))
        assert own == close(acc.error_rates(world, student, student).mean())
        assert found <= bounds.interaction_bound(2, 5, own) + 1e-12


@pytest.mark.parametrize(("horizon", "num"), [(2, 1), (2, 3), (3, 2)])
def test_lock_failure_by_enumeration(horizon, num):
    eta = 0.3
    world, codes, noise = rivals.lock_world(horizon)
    laws = [noised(code, eta, noise) for code in codes]
    demos = [
        (p, math.prod(laws[1][h, s[h], a[h]] / laws[0][h, s[h], a[h]] for h in range(horizon)))
        for p, s, a, _ in episodes(world, laws[0])
    ]
    expected = 0.0
    for sample in itertools.product(demos, repeat=num):
        ratio = math.prod(r for _, r in sample)
        wrong = 0.5 if abs(ratio - 1) < 1e-9 else float(ratio > 1)
        expected += wrong * math.prod(p for p, _ in sample)
    assert rivals.lock_failure(horizon, eta, num) == close(expected)
    assert rivals.lock_failure(horizon, eta, num) > 0.5 * (1 - 0.7 ** (horizon - 1)) ** num


@pytest.mark.parametrize(
    "call",
    [
        lambda: bounds.cloning_bound(0, 0.1),
        lambda: bounds.cloning_bound(3, 1.1),
        lambda: bounds.cloning_bound_by_step(np.array([])),
        lambda: bounds.cloning_bound_by_step(np.array([0.1, -0.1])),
        lambda: bounds.interaction_bound(-1, 3, 0.1),
        lambda: bounds.log_loss_bound_printed(1, 1.5),
        lambda: bounds.log_loss_bound_sharp(-1, 0.5),
        lambda: bounds.stochastic_expert_bound(1, -0.1),
        lambda: bounds.mle_preference_bound(0.1, -1),
        lambda: bounds.mle_bound(0, 1, 0.1),
        lambda: bounds.mle_bound(2, 1, 0.0),
        lambda: acc.ditch_world(3, -1),
        lambda: acc.cliff_world(0),
        lambda: acc.road_student(acc.cliff_world(2), 1.2, 0),
        lambda: acc.context_world(2, 4, 0.3),
        lambda: rivals.uncovered_risk(np.array([1.0]), 0.5, 3),
        lambda: rivals.lock_world(1),
    ],
)
def test_bad_arguments_say_what_was_found(call):
    with pytest.raises(ValueError, match=r"(expected|must be).*got"):
        call()
