"""Which tokens are looked ahead from, which of them are real forks, and the weights of the suppressed ones: by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.objectives.forks import candidates, matched_control, real_forks, suppression_weight
from understudy.objectives.reduce import weighted_sum

INF, NAN = math.inf, math.nan


def at(is_chosen: torch.Tensor) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in is_chosen]


def everywhere(value: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(value, dtype=torch.bool)


# --- candidates -------------------------------------------------------------------------------------------------------


def test_candidates_by_hand():
    loss = torch.tensor([[0.1, 5.0, 0.2, 3.0, 4.0, 0.0], [9.0, 1.0, NAN, 2.0, 1.5, 8.0]])
    gate = torch.tensor([[True] * 6, [False, True, False, True, True, False]])
    assert at(candidates(loss, gate, max_forks=9, threshold_nats=2.0)) == [[1, 3, 4], [3]]
    assert at(candidates(loss, gate, max_forks=2, threshold_nats=2.0)) == [[1, 4], [3]]
    assert at(candidates(loss, gate, max_forks=0, threshold_nats=2.0)) == [[], []]
    # Each trajectory by its own losses: the order statistics 3 of 6 and ceil(1.2) = 2 of 3.
    assert at(candidates(loss, gate, max_forks=9, quantile=0.6)) == [[1, 3, 4], [3]]
    assert at(candidates(loss, gate, max_forks=9, quantile=0.5)) == [[1, 3, 4], [3, 4]]
    # In the second, 1.0 at 1 and 1.5 at 4 are too near to 2.0 at 3; the first has 4 exactly three after 1.
    assert at(candidates(loss, gate, max_forks=9, threshold_nats=0.1, min_spacing=3)) == [[1, 4], [3]]
    assert at(candidates(loss, gate, max_forks=9, threshold_nats=0.1, min_spacing=4)) == [[1], [3]]


def test_spacing_comes_before_the_budget():
    """What a higher loss crowds out does not use up the budget."""
    loss = torch.tensor([[9.0, 8.0, 7.0, 1.0, 2.0]])
    found = candidates(loss, everywhere(loss), max_forks=2, threshold_nats=0.0, min_spacing=2)
    assert at(found) == [[0, 2]]


def test_ties_go_to_the_earlier_token():
    loss = torch.tensor([[1.0, 2.0, 2.0, 2.0, 1.0] * 20])
    found = candidates(loss, everywhere(loss), max_forks=4, quantile=0.5)
    assert at(found) == [[1, 2, 3, 6]]


def test_where_all_agree_nothing_is_a_candidate():
    loss = torch.tensor([[0.0, 0.0, -1e-9], [0.0, 0.0, 3.0]])
    assert at(candidates(loss, everywhere(loss), max_forks=5, quantile=0.1)) == [[], [2]]
    assert at(candidates(loss, everywhere(loss), max_forks=5, threshold_nats=-1.0)) == [[], [2]]
    assert at(candidates(loss, ~everywhere(loss), max_forks=5, quantile=0.1)) == [[], []]


def test_infinite_losses_come_first():
    loss = torch.tensor([[1.0, INF, 2.0, INF]])
    assert at(candidates(loss, everywhere(loss), max_forks=2, quantile=0.5)) == [[1, 3]]
    assert at(candidates(loss, everywhere(loss), max_forks=3, quantile=0.2)) == [[1, 2, 3]]


def test_the_papers_share():
    """0.9775 of 9,688 different losses leaves 218."""
    loss = torch.rand(1, 9688, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert candidates(loss, everywhere(loss), max_forks=10**6, quantile=0.9775).sum() == 218


def test_a_quantile_is_not_moved_by_rounding():
    """0.07 * 100 is 7.000000000000001: the cut is the order statistic 7, and 94 of 101 tokens are at or above it."""
    loss = 1 + torch.arange(101.0)[None]
    assert candidates(loss, everywhere(loss), max_forks=101, quantile=0.07).sum() == 94


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]), min_size=1, max_size=12),
    st.integers(0, 5),
    st.integers(1, 4),
    st.floats(0, 0.99),
)
def test_candidates_of_any_trajectory(losses, max_forks, spacing, quantile):
    """Within the budget, spaced, high enough; and whatever was left out is too low, too near, or beyond the budget."""
    loss = torch.tensor([losses])
    (found,) = at(
        candidates(loss, everywhere(loss), max_forks=max_forks, quantile=quantile, min_spacing=spacing)
    )
    assert len(found) <= max_forks
    assert all(b - a >= spacing for a, b in itertools.pairwise(found))
    cut = sorted(losses)[math.ceil(round(quantile * (len(losses) - 1), 6))]
    high = [t for t, x in enumerate(losses) if x >= cut and x > 0]
    assert set(found) <= set(high)
    for t in set(high) - set(found):
        better = [c for c in found if (losses[c], -c) > (losses[t], -t)]
        assert len(better) == max_forks or any(abs(c - t) < spacing for c in better)


def test_settings_of_candidates():
    loss = torch.zeros(1, 3)
    gate = everywhere(loss)
    for bad, message in (
        ({}, "give either quantile or threshold_nats, got None and None"),
        ({"quantile": 0.5, "threshold_nats": 1.0}, "got 0.5 and 1.0"),
        ({"quantile": 1.0}, r"quantile must be in \[0, 1\)"),
        ({"threshold_nats": NAN}, "threshold_nats must be a number"),
        ({"quantile": 0.5, "max_forks": -1}, "max_forks >= 0"),
        ({"quantile": 0.5, "min_spacing": 0}, "min_spacing >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            candidates(loss, gate, **{"max_forks": 1, **bad})
    with pytest.raises(ValueError, match=r"loss_BT \(1, 3\), gate_BT \(1, 2\)"):
        candidates(loss, gate[:, :2], max_forks=1, quantile=0.5)
    with pytest.raises(ValueError, match="NaN at a gated token"):
        candidates(loss * NAN, gate, max_forks=1, quantile=0.5)


# --- real forks -------------------------------------------------------------------------------------------------------


def test_real_forks_by_hand():
    distance = torch.tensor([0.5, 0.0, 0.3, 0.3, 0.9])
    assert real_forks(distance, min_distance=0.3).tolist() == [True, False, True, True, True]
    assert real_forks(distance, min_distance=0.0).tolist() == [True, False, True, True, True]
    # Order statistics ceil(0.5 * 4) = 2 and ceil(0.6 * 4) = 3.
    assert real_forks(distance, quantile=0.5).tolist() == [True, False, True, True, True]
    assert real_forks(distance, quantile=0.6).tolist() == [True, False, False, False, True]
    assert real_forks(torch.zeros(3), quantile=0.0).tolist() == [False] * 3
    assert real_forks(torch.zeros(0), quantile=0.3).tolist() == []


def test_thirty_percent_are_false_alarms():
    distance = torch.rand(100, generator=torch.Generator().manual_seed(1))
    assert (~real_forks(distance, quantile=0.3)).sum() == 30


def test_settings_of_real_forks():
    with pytest.raises(ValueError, match="give either quantile or min_distance"):
        real_forks(torch.zeros(1))
    with pytest.raises(ValueError, match="must be finite"):
        real_forks(torch.tensor([NAN]), quantile=0.1)


# --- suppression ------------------------------------------------------------------------------------------------------


def test_weights_by_hand():
    """Medians 2, (1 + 4) / 2 = 2.5 over the gate, and 0; a loss below its median is left alone."""
    loss = torch.tensor([[8.0, 1.0, 2.0, 4.0, 0.5], [10.0, 1.0, 4.0, 0.0, NAN], [0.0, 3.0, 0.0, 0.0, 0.0]])
    gate = torch.tensor([[True] * 5, [True, True, True, True, False], [True] * 5])
    chosen = torch.tensor(
        [
            [True, True, False, True, False],
            [True, False, False, False, True],
            [True, True, False, False, False],
        ]
    )
    expected = [[0.25, 1, 1, 0.5, 1], [0.25, 1, 1, 1, 0], [1, 0, 1, 1, 1]]
    weight = suppression_weight(loss, gate, chosen)
    assert weight.dtype == torch.float32
    assert weight.tolist() == expected


def test_the_gradient_shrinks_with_the_loss():
    """w loss = min(loss, median), and the gradient is w times what it was; a clamp would give 0."""
    x = torch.tensor([[3.0, 1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    loss = x.square()
    weight = suppression_weight(loss, everywhere(loss), torch.tensor([[True, False, False]]))
    total = weighted_sum(loss[0], weight[0])
    assert total.item() == pytest.approx(4 + 1 + 4, rel=1e-6)
    total.backward()
    assert x.grad is not None
    assert x.grad[0].tolist() == pytest.approx([6 * 4 / 9, 2, 4], rel=1e-6)


def test_infinite_losses_leave_the_sum_and_negative_ones_do_not_turn_its_sign():
    loss = torch.tensor([[INF, 1.0, 2.0], [1.0, -2.0, -1.0]])
    chosen = torch.tensor([[True, False, False], [True, True, False]])
    weight = suppression_weight(loss, everywhere(loss), chosen)
    assert weight.tolist() == [[0, 1, 1], [0, 1, 1]]
    assert weighted_sum(loss[0], weight[0]).item() == 3
    nothing = suppression_weight(loss, ~everywhere(loss), chosen)
    assert nothing.tolist() == [[0] * 3] * 2
    with pytest.raises(ValueError, match="is_suppressed_BT"):
        suppression_weight(loss, everywhere(loss), chosen[:1])


# --- the control ------------------------------------------------------------------------------------------------------

_ = False
X = True


def test_each_trajectory_gives_up_as_many_as_it_has_false_alarms():
    alarm = torch.tensor([[X, X, _, _, _, _], [_, _, _, X, _, _], [_, _, _, _, _, _]])
    real = torch.tensor([[_, _, X, X, X, _], [X, X, _, _, _, _], [X, _, X, _, _, _]])
    uniform = torch.tensor(
        [[0.0, 0.0, 0.5, 0.1, 0.4, 0.0], [0.9, 0.8, 0.0, 0.0, 0.0, 0.0], [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]]
    )
    assert at(matched_control(alarm, real, uniform)) == [[3, 4], [1], []]


def test_what_one_has_too_few_of_is_taken_from_the_others():
    alarm = torch.tensor([[X, X, X, _, _], [_, _, _, _, X]])
    real = torch.tensor([[_, _, _, X, _], [X, X, X, X, _]])
    uniform = torch.tensor([[0.0, 0.0, 0.0, 0.9, 0.0], [0.5, 0.1, 0.6, 0.4, 0.0]])
    # Its own one of the first, 1 of the second for itself, then 3 and 0 for what is missing.
    assert at(matched_control(alarm, real, uniform)) == [[3], [0, 1, 3]]
    few = torch.tensor([[_, _, _, X, _], [_, X, _, _, _]])
    assert at(matched_control(alarm, few, uniform)) == [[3], [1]]


def test_the_control_is_random():
    """Two of four, 300 times: each of the six pairs is drawn. One is missed with probability 6 (5/6)^300 = 1e-23."""
    alarm = torch.tensor([[X, X, _, _, _, _]]).expand(300, 6)
    real = torch.tensor([[_, _, X, X, X, X]]).expand(300, 6)
    uniform = torch.rand(300, 6, generator=torch.Generator().manual_seed(3))
    assert len({tuple(row) for row in at(matched_control(alarm, real, uniform))}) == 6


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.sampled_from([0, 1, 2]), min_size=4, max_size=4), min_size=1, max_size=4))
def test_the_totals_match(kinds):
    kind = torch.tensor(kinds)
    uniform = torch.rand(kind.shape, generator=torch.Generator().manual_seed(4))
    alarm, real = kind == 1, kind == 2
    found = matched_control(alarm, real, uniform)
    assert not (found & ~real).any()
    assert found.sum() == min(alarm.sum(), real.sum())
    assert (found.sum(1) >= torch.minimum(alarm.sum(1), real.sum(1))).all()


def test_no_token_is_both():
    both = torch.tensor([[True]])
    with pytest.raises(ValueError, match="both a false alarm and a real fork"):
        matched_control(both, both, torch.zeros(1, 1))
    with pytest.raises(ValueError, match="uniform_BT"):
        matched_control(both, ~both, torch.zeros(1, 2))
