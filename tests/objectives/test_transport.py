"""Costs, plans and distances against enumeration in plain Python and against POT."""

from __future__ import annotations

import itertools
import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.objectives.transport import (
    cosine_cost,
    entropic_plan,
    exact_plan,
    monotone_plan,
    token_cost,
    transport_distance,
)

EXACT = 1e-12


def random_cost(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prefix(length: int, total: int) -> torch.Tensor:
    return (torch.arange(total) < length)[None]


def uniform(n: int) -> np.ndarray:
    return np.full(n, 1 / n)


# Small numbers, many equal: ties and zeros are what a solver gets wrong.
tied_costs = st.integers(1, 5).flatmap(
    lambda n: st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=n, max_size=n), min_size=n, max_size=n
    )
)


# --- costs ------------------------------------------------------------------------------------------------------------


def cosine(s, e) -> float:
    return sum(a * b for a, b in zip(s, e, strict=True)) / (math.hypot(*s) * math.hypot(*e))


def test_cosine_cost_is_one_minus_the_cosine():
    generator = torch.Generator().manual_seed(1)
    student, expert = (torch.randn(2, k, 3, generator=generator, dtype=torch.float64) for k in (4, 5))
    cost = cosine_cost(student, expert)
    assert cost.shape == (2, 4, 5)
    for b, i, j in itertools.product(range(2), range(4), range(5)):
        expected = 1 - cosine(student[b, i].tolist(), expert[b, j].tolist())
        assert cost[b, i, j].item() == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equal_vectors_cost_nothing_and_opposite_ones_two(dtype):
    generator = torch.Generator().manual_seed(2)
    for width, count in itertools.product((1, 3, 64, 1001), (1, 7)):
        vector = torch.randn(2, count, width, generator=generator).to(dtype)
        expert = torch.cat([vector, -vector, 3 * vector[:, :1]], dim=1)
        cost = cosine_cost(vector, expert)
        assert cost.dtype == torch.promote_types(dtype, torch.float32)
        places = torch.arange(count)
        assert (cost[:, places, places] == 0).all()
        assert (cost[:, places, places + count] - 2).abs().max() < 1e-5
        assert cost.min() >= 0
        assert cost.max() <= 2


def test_vectors_without_direction_and_of_any_size():
    vectors = torch.tensor([[[0.0, 0.0], [1e-30, 0.0], [0.0, 1e30], [1e-30, 1e-30]]])
    root = 1 - math.sqrt(0.5)
    expected = [[0, 1, 1, 1], [1, 0, 1, root], [1, 1, 0, root], [1, root, root, 0]]
    torch.testing.assert_close(cosine_cost(vectors, vectors)[0], torch.tensor(expected), rtol=1e-6, atol=0)


def test_small_costs_keep_their_digits():
    """An angle of 1e-5 costs 5e-11; 1 - cos in float32 would be 0."""
    near = cosine_cost(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, 1e-5]]]))
    assert near.item() == pytest.approx(5e-11, rel=1e-4)


def test_token_cost_reads_the_embedding():
    embedding = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [math.nan, 0.0]])
    cost = token_cost(torch.tensor([[0, 3]]), torch.tensor([[0, 1, 2, 3]]), embedding)
    assert cost[0, 0, :3].tolist() == pytest.approx([0, 1, 2])
    assert cost[0, 1, 3] == 0  # the same token, whatever its row
    assert cost[0, 1, :3].isnan().all()
    with pytest.raises(ValueError, match=r"expert_token_BJ must be in 0\.\.3"):
        token_cost(torch.tensor([[0]]), torch.tensor([[4]]), embedding)


@pytest.mark.parametrize("shapes", [((2, 3, 4), (1, 3, 4)), ((2, 3, 4), (2, 3, 5)), ((3, 4), (3, 4))])
def test_vectors_that_do_not_fit(shapes):
    with pytest.raises(ValueError, match=r"student_BID .* expert_BJD"):
        cosine_cost(*(torch.zeros(shape) for shape in shapes))


# --- the exact plan ---------------------------------------------------------------------------------------------------


def cheapest_assignment(cost) -> float:
    """Over all permutations; windows of different lengths are copied until they have the same."""
    common = math.lcm(len(cost), len(cost[0]))
    rows = [row for row in cost for _ in range(common // len(cost))]
    full = [[x for x in row for _ in range(common // len(row))] for row in rows]
    best = min(math.fsum(full[i][j] for i, j in enumerate(p)) for p in itertools.permutations(range(common)))
    return best / common


def assert_marginals(plan: torch.Tensor, n: int, m: int, tolerance: float = EXACT) -> None:
    assert plan.dtype == torch.float64
    assert (plan >= 0).all()
    assert plan.sum(1).tolist() == pytest.approx([1 / n] * n, abs=tolerance)
    assert plan.sum(0).tolist() == pytest.approx([1 / m] * m, abs=tolerance)


@settings(deadline=None, max_examples=60)
@given(tied_costs)
def test_the_cheapest_of_all_permutations(cost):
    plan = exact_plan(torch.tensor([cost]))
    assert_marginals(plan[0], len(cost), len(cost))
    found = transport_distance(plan, torch.tensor([cost])).item()
    assert found == pytest.approx(cheapest_assignment(cost), abs=EXACT)


@pytest.mark.parametrize("shape", [(1, 1), (6, 6), (2, 3), (3, 2), (2, 4), (6, 3), (1, 5), (4, 1)])
def test_the_cheapest_by_enumeration(shape):
    cost = random_cost(1, *shape, seed=sum(shape))
    plan = exact_plan(cost)
    assert_marginals(plan[0], *shape)
    expected = cheapest_assignment(cost[0].tolist())
    assert transport_distance(plan, cost).item() == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("shape", [(50, 50), (50, 49), (17, 40), (50, 25), (50, 1), (9, 12)])
@pytest.mark.parametrize("kind", ["random", "ties", "zeros", "one row", "large unit", "small unit"])
def test_the_exact_plan_against_pot(shape, kind):
    cost = random_cost(1, *shape, seed=3)
    if kind == "ties":
        cost = cost.round()
    elif kind == "zeros":
        cost = torch.zeros_like(cost)
    elif kind == "one row":
        cost = cost[:, :1].expand(1, *shape).clone()
    elif kind == "large unit":
        cost = cost * 1e9
    elif kind == "small unit":
        cost = cost * 1e-9
    plan = exact_plan(cost)
    assert_marginals(plan[0], *shape)
    expected = ot.emd2(uniform(shape[0]), uniform(shape[1]), cost[0].numpy())
    scale = max(cost.abs().max().item(), 1e-300)
    assert transport_distance(plan, cost).item() / scale == pytest.approx(expected / scale, abs=1e-9)
    if kind == "random":
        peer = ot.emd(uniform(shape[0]), uniform(shape[1]), cost[0].numpy())
        torch.testing.assert_close(plan[0], torch.from_numpy(np.asarray(peer)), rtol=0, atol=1e-9)


def test_equal_windows_are_carried_onto_themselves():
    """Also in another order, and with a token that stands there twice: only equal tokens go together."""
    embedding = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    student, expert = (
        torch.tensor([[3, 1, 4, 1, 5], [3, 1, 4, 1, 5]]),
        torch.tensor([[3, 1, 4, 1, 5], [1, 5, 4, 3, 1]]),
    )
    cost = token_cost(student, expert, embedding)
    plan = exact_plan(cost)
    assert transport_distance(plan, cost).tolist() == [0, 0]
    is_same = student[:, :, None] == expert[:, None, :]
    assert (plan[~is_same] == 0).all()
    assert (plan > 0).sum().item() == 10


# --- what all plans have in common ------------------------------------------------------------------------------------

PLANS = {
    "exact": exact_plan,
    "entropic": lambda cost, i=None, j=None: (
        entropic_plan(cost, i, j, regularisation=0.2, tolerance=1e-12, max_iterations=5000).plan_BIJ
    ),
    "monotone": monotone_plan,
}


@pytest.mark.parametrize("name", list(PLANS))
def test_a_batch_is_its_pairs_one_by_one(name):
    """With padding between real tokens and NaN in it. Only the order of sums may differ."""
    cost = random_cost(6, 5, 7, seed=4)
    generator = torch.Generator().manual_seed(5)
    is_student, is_expert = (torch.rand(6, k, generator=generator) < 0.6 for k in (5, 7))
    is_student[:, 2] = is_expert[:, 4] = True
    is_student[0], is_expert[0] = True, True
    is_student[1], is_expert[1] = prefix(3, 5), prefix(3, 7)
    is_pair = is_student[:, :, None] & is_expert[:, None, :]
    lengths = {(int(i.sum()), int(j.sum())) for i, j in zip(is_student, is_expert, strict=True)}
    assert len(lengths) > 3
    padded = cost.masked_fill(~is_pair, math.nan)
    plan = PLANS[name](padded, is_student, is_expert)
    assert (plan[~is_pair] == 0).all()
    distance = transport_distance(plan, padded)
    for b in range(6):
        alone = cost[b][is_student[b]][:, is_expert[b]]
        found = PLANS[name](alone[None])
        torch.testing.assert_close(plan[b][is_student[b]][:, is_expert[b]], found[0], rtol=1e-10, atol=1e-14)
        assert distance[b].item() == pytest.approx((found[0] * alone).sum().item(), abs=EXACT)
    assert plan.sum(dim=(1, 2)).tolist() == pytest.approx([1] * 6, abs=EXACT)


@pytest.mark.parametrize("name", ["exact", "entropic"])
@pytest.mark.parametrize("shape", [(6, 6), (5, 7)])
def test_the_order_of_tokens_only_names_them(name, shape):
    cost = random_cost(1, *shape, seed=6)
    generator = torch.Generator().manual_seed(7)
    rows, columns = (torch.randperm(k, generator=generator) for k in shape)
    moved = PLANS[name](cost[:, rows][:, :, columns])
    torch.testing.assert_close(moved, PLANS[name](cost)[:, rows][:, :, columns], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", list(PLANS))
def test_no_gradient_passes_through_a_plan(name):
    cost = random_cost(1, 3, 3).requires_grad_()
    plan = PLANS[name](cost)
    assert not plan.requires_grad
    assert not transport_distance(plan, cost).requires_grad


@pytest.mark.parametrize("name", list(PLANS))
def test_what_no_plan_can_be_made_of(name):
    cost, real = torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    plan = PLANS[name]
    with pytest.raises(ValueError, match=r"cost_BIJ must be \[B, I, J\]"):
        plan(cost[0])
    with pytest.raises(ValueError, match=r"is_expert_BJ must be bool and fit .* got \(2, 3\)"):
        plan(cost, real, real)
    with pytest.raises(ValueError, match=r"is_student_BI must be bool .* torch.float32"):
        plan(cost, real.float())
    with pytest.raises(ValueError, match=r"is_student_BI has no real token in pair 1"):
        plan(cost, real & torch.tensor([[True], [False]]))
    broken = cost.clone()
    broken[1, 2, 0] = math.inf
    with pytest.raises(ValueError, match="cost_BIJ is not finite at real tokens of pair 1"):
        plan(broken)
    with pytest.raises(ValueError, match=r"is_expert_BJ has no real token in pair 0"):
        plan(cost[:, :, :0])
    assert plan(cost[:0]).shape == (0, 3, 4)


def test_distances_need_the_cost_of_their_plan():
    with pytest.raises(ValueError, match=r"plan_BIJ \(1, 2, 3\) and cost_BIJ \(1, 3, 2\)"):
        transport_distance(torch.zeros(1, 2, 3), torch.zeros(1, 3, 2))


# --- the entropic plan ------------------------------------------------------------------------------------------------


def sinkhorn_of_pot(cost: torch.Tensor, regularisation: float, num: int) -> torch.Tensor:
    sides = (uniform(size) for size in cost.shape)
    options = {"method": "sinkhorn_log", "numItermax": num, "stopThr": 0, "warn": False}
    return torch.from_numpy(ot.sinkhorn(*sides, cost.numpy(), regularisation, **options))


@pytest.mark.parametrize("shape", [(6, 6), (5, 8), (1, 4), (50, 50), (50, 13)])
@pytest.mark.parametrize("kind", ["random", "ties", "zeros"])
@pytest.mark.parametrize("regularisation", [0.02, 0.5])
def test_the_entropic_plan_against_pot(shape, kind, regularisation):
    """After as many updates as ours took, converged (0.5) or not yet."""
    cost = random_cost(1, *shape, seed=8)
    cost = {"random": cost, "ties": cost.round(), "zeros": 0 * cost}[kind]
    found = entropic_plan(cost, regularisation=regularisation, tolerance=1e-10, max_iterations=300)
    peer = sinkhorn_of_pot(cost[0], regularisation, int(found.num_iterations_B[0]))
    torch.testing.assert_close(found.plan_BIJ[0], peer, rtol=1e-8, atol=1e-14)
    assert found.is_converged_B[0] or regularisation < 0.5
    if found.is_converged_B[0]:
        assert_marginals(found.plan_BIJ[0], *shape, tolerance=1e-9)


def test_the_entropic_plan_becomes_the_exact_one():
    """Its cost is above the exact one by at most regularisation * log n, and falls with it.

    One assignment is planted well below the others: between near ties the iteration takes for ever.
    """
    cost = 0.5 + random_cost(4, 6, 6, seed=12) / 2
    for pair, k in zip(cost, range(4), strict=True):
        pair[torch.arange(6), (torch.arange(6) * 5 + k) % 6] *= 0.2
    exact = exact_plan(cost)
    least, before = transport_distance(exact, cost), torch.full((4,), math.inf, dtype=torch.float64)
    plan = exact
    for regularisation in (1.0, 0.3, 0.1, 0.03, 0.01):
        found = entropic_plan(cost, regularisation=regularisation, tolerance=1e-4, max_iterations=1000)
        plan = found.plan_BIJ
        assert found.is_converged_B.all()
        distance = transport_distance(plan, cost)
        assert (distance <= least + regularisation * math.log(6) + 2e-4).all()
        assert (distance >= least - 2e-4).all()
        assert (distance <= before).all()
        before = distance
    assert (plan - exact).abs().max() < 1e-6


def test_equal_costs_spread_over_everything():
    found = entropic_plan(torch.full((1, 4, 5), 0.7), regularisation=0.05)
    torch.testing.assert_close(found.plan_BIJ[0], torch.full((4, 5), 1 / 20, dtype=torch.float64))
    assert found.num_iterations_B.tolist() == [1]


def test_what_has_not_converged_says_so_and_still_gives_every_student_token_its_mass():
    """One pair is done at once, the other needs more than three updates. The error is the one that the plan has."""
    cost = torch.cat([torch.ones(1, 6, 6, dtype=torch.float64), random_cost(1, 6, 6, seed=10)])
    found = entropic_plan(cost, regularisation=0.02, tolerance=1e-6, max_iterations=3)
    assert found.is_converged_B.tolist() == [True, False]
    assert found.num_iterations_B.tolist() == [1, 3]
    assert found.plan_BIJ.sum(2).flatten().tolist() == pytest.approx([1 / 6] * 12, abs=EXACT)
    error = (found.plan_BIJ.sum(1) - 1 / 6).abs().sum(1)
    assert error[1] > 1e-3
    torch.testing.assert_close(found.error_B, error, rtol=1e-9, atol=1e-12)


def test_a_pair_stops_by_itself():
    cost = random_cost(5, 6, 4, seed=11)
    together = entropic_plan(cost, regularisation=0.2, tolerance=1e-4)
    assert together.is_converged_B.all()
    assert len(set(together.num_iterations_B.tolist())) > 2
    for b in range(5):
        alone = entropic_plan(cost[b : b + 1], regularisation=0.2, tolerance=1e-4)
        assert alone.num_iterations_B[0] == together.num_iterations_B[b]
        assert alone.error_B[0].item() <= 1e-4
        torch.testing.assert_close(alone.plan_BIJ[0], together.plan_BIJ[b], rtol=1e-12, atol=0)


def test_padding_is_no_error():
    """Three and two real tokens of five, converged after as many updates as without padding."""
    cost = random_cost(1, 5, 5, seed=13)
    padded = entropic_plan(cost, prefix(3, 5), prefix(2, 5), regularisation=0.3)
    alone = entropic_plan(cost[:, :3, :2], regularisation=0.3)
    assert padded.is_converged_B.all()
    assert padded.num_iterations_B == alone.num_iterations_B
    assert padded.error_B.item() == pytest.approx(alone.error_B.item(), rel=1e-6, abs=1e-12)


def test_float32_costs_and_a_tiny_regularisation_stay_finite():
    """2 / 1e-4 is an exponent of 20,000: lost outside of logarithms."""
    found = entropic_plan(random_cost(2, 8, 8).float(), regularisation=1e-4, max_iterations=50)
    assert torch.isfinite(found.plan_BIJ).all()
    assert found.plan_BIJ.sum(2).flatten().tolist() == pytest.approx([1 / 8] * 16, abs=1e-9)


@pytest.mark.parametrize(
    "bad", [{"regularisation": 0.0}, {"regularisation": math.inf}, {"tolerance": -1.0}, {"max_iterations": 0}]
)
def test_settings_of_the_iteration(bad):
    with pytest.raises(ValueError, match="regularisation > 0, tolerance >= 0"):
        entropic_plan(torch.zeros(1, 2, 2), **{"regularisation": 0.1, **bad})


# --- the monotone plan ------------------------------------------------------------------------------------------------


def paths(n: int, m: int):
    """All alignments of n and m tokens, each a list of cells."""
    if (n, m) == (1, 1):
        yield [(0, 0)]
        return
    for i, j in ((n - 1, m - 1), (n - 1, m), (n, m - 1)):
        if i > 0 and j > 0:
            for path in paths(i, j):
                yield [*path, (n - 1, m - 1)]


def shared_out(path, n: int, m: int) -> torch.Tensor:
    plan = torch.zeros(n, m, dtype=torch.float64)
    for i, j in path:
        plan[i, j] = 1 / (n * sum(1 for k, _ in path if k == i))
    return plan


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (5, 1), (4, 4), (3, 5), (5, 3)])
def test_the_cheapest_of_all_alignments(shape):
    for seed in range(5):
        cost = random_cost(1, *shape, seed=seed)
        best = min(paths(*shape), key=lambda path: math.fsum(cost[0, i, j].item() for i, j in path))
        torch.testing.assert_close(monotone_plan(cost)[0], shared_out(best, *shape), rtol=0, atol=1e-15)


def test_ties_of_alignments_by_hand():
    """All costs 0: from the end the diagonal while it lasts, then along the border."""
    wide = torch.zeros(3, 5, dtype=torch.float64)
    wide[0, :3] = 1 / 9
    wide[1, 3] = wide[2, 4] = 1 / 3
    torch.testing.assert_close(monotone_plan(torch.zeros(1, 3, 5))[0], wide)
    # (1, 1) costs as much by (0, 1) as by (1, 0), and more by (0, 0): the step of the student comes first.
    cost = torch.tensor([[[0.0, -1.0], [-1.0, 0.0]]])
    torch.testing.assert_close(
        monotone_plan(cost)[0], torch.tensor([[0.25, 0.25], [0.0, 0.5]], dtype=torch.float64)
    )


def test_alignments_keep_the_order_that_transport_ignores():
    tokens = torch.tensor([[0, 1, 2]])
    cost = token_cost(tokens, tokens.flip(1), torch.eye(3))
    assert transport_distance(exact_plan(cost), cost).item() == 0
    assert transport_distance(monotone_plan(cost), cost).item() > 0.5
    same = token_cost(tokens, tokens, torch.eye(3))
    torch.testing.assert_close(monotone_plan(same)[0], torch.eye(3, dtype=torch.float64) / 3)
