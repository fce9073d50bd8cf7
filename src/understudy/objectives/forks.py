"""Where a look into the near future is worth its price, and what it changes in the loss.

B trajectories, T positions, N candidates of all of them. All choices are per position and by position; ties go to the
earlier one. Nothing here draws: where chance enters, uniform numbers are given.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from understudy.objectives.shapes import require_same_shape


@torch.no_grad()
def candidates(
    loss_BT: Tensor,
    gate_BT: Tensor,
    *,
    max_forks: int,
    quantile: float | None = None,
    threshold_nats: float | None = None,
    min_spacing: int = 1,
) -> Tensor:
    """The tokens of each trajectory with a loss high enough to look ahead from them.

        candidate: gated, loss >= cut and loss > 0; the highest losses first, at most max_forks of them,
                   none within less than min_spacing positions of a higher one
        cut      = threshold_nats, or the order statistic ceil(quantile (n - 1)) of the n gated losses, counted from 0

    The cut of a quantile is a loss that was seen, not one between two: a share of at least 1 - quantile lies at or above it,
    and inf needs no arithmetic. A loss of 0 is no candidate however common it is: student and expert agree there.

    Args:
        loss_BT: per-token loss in nats, inf allowed; anything outside the gate.
        gate_BT: bool, the tokens that are trained on.
        max_forks: budget of one trajectory, >= 0.
        quantile: in [0, 1), of the trajectory's own losses. threshold_nats: the same for all. One of the two.
        min_spacing: positions from one candidate to the next, >= 1; 1 allows neighbours.
    Returns:
        is_candidate_BT, bool.
    Raises:
        ValueError: both cuts or none, a setting out of its range, shapes that differ, a gated loss that is NaN.
    Source: arXiv:2606.00305 gives the number, 218 of 9,688 tokens (a quantile of 0.9775), but no rule; budget and spacing are
        ours.
    """
    require_same_shape(loss_BT=loss_BT, gate_BT=gate_BT)
    _require_one_cut(quantile, threshold_nats, "threshold_nats")
    if max_forks < 0 or min_spacing < 1:
        raise ValueError(f"max_forks >= 0 and min_spacing >= 1 expected, got {max_forks} and {min_spacing}.")
    if bool((loss_BT.isnan() & gate_BT).any()):
        raise ValueError(
            "loss_BT is NaN at a gated token: find out where it comes from before choosing forks."
        )
    is_candidate_BT = torch.zeros_like(gate_BT)
    for loss_T, gate_T, is_candidate_T in zip(loss_BT, gate_BT, is_candidate_BT, strict=True):
        is_high_T = gate_T & (loss_T > 0)
        if not bool(is_high_T.any()):
            continue
        is_high_T &= loss_T >= _cut(loss_T[gate_T], quantile, threshold_nats)
        position_n = is_high_T.nonzero()[:, 0]
        order_n = loss_T[position_n].argsort(descending=True, stable=True)
        chosen = _spaced(position_n[order_n].tolist(), max_forks, min_spacing)
        is_candidate_T[chosen] = True
    return is_candidate_BT


@torch.no_grad()
def real_forks(
    distance_N: Tensor, *, quantile: float | None = None, min_distance: float | None = None
) -> Tensor:
    """Which candidates lead elsewhere; the others are false alarms: a high loss, and the same near future.

        real: distance >= cut and distance > 0
        cut  = min_distance, or the order statistic ceil(quantile (N - 1)) of the N distances, counted from 0

    A quantile is one of the candidates given here: give those of a whole round at once, or what is real depends on how the
    round was split. Equal windows (distance 0) are never a fork.

    Args:
        distance_N: `transport.transport_distance` of the candidates' windows, >= 0.
        quantile: in [0, 1): the share of false alarms, up to ties. min_distance: in the unit of the cost. One of the two.
    Returns:
        is_real_N, bool.
    Raises:
        ValueError: both cuts or none, a quantile out of its range, or a distance that is not finite.
    Source: arXiv:2606.00305 requires loss and distance to be high and leaves the cut open; the bottom 30 % of its ablation
        is quantile = 0.3.
    """
    _require_one_cut(quantile, min_distance, "min_distance")
    if not bool(torch.isfinite(distance_N).all()):
        raise ValueError("distance_N must be finite at every candidate.")
    if len(distance_N) == 0:
        return torch.zeros_like(distance_N, dtype=torch.bool)
    return (distance_N > 0) & (distance_N >= _cut(distance_N, quantile, min_distance))


@torch.no_grad()
def suppression_weight(loss_BT: Tensor, gate_BT: Tensor, is_suppressed_BT: Tensor) -> Tensor:
    """A weight on the loss of every token that caps the suppressed ones at the median loss of their trajectory.

        w[b, t] = min(1, median_b / loss[b, t])  where suppressed and gated,    1 elsewhere in the gate,    0 outside
        median_b = of all gated losses of trajectory b, suppressed ones included; of two middle ones the mean; at least 0

    As a weight, so that the gradient shrinks by the same factor as the loss: w loss = min(loss, median). A clamp of the loss
    itself would have the same value and no gradient at all. A suppressed loss that is inf gets weight 0 and leaves the sum.
    The denominator of a mean is the caller's and should go on counting suppressed tokens.

    Args:
        loss_BT: per-token loss in nats, a constant here; anything outside the gate.
        gate_BT, is_suppressed_BT: bool.
    Returns:
        weight_BT in [0, 1], float32.
    Raises:
        ValueError: shapes that differ.
    Source: "Low-OT DW", an ablation of arXiv:2606.00305: "cap at the median token loss of that sample". Whether by weight or
        by clamp is not said.
    """
    require_same_shape(loss_BT=loss_BT, gate_BT=gate_BT, is_suppressed_BT=is_suppressed_BT)
    loss_BT = loss_BT.detach().double()
    median_B1 = torch.stack(
        [_median(loss_T[gate_T]) for loss_T, gate_T in zip(loss_BT, gate_BT, strict=True)]
    )
    median_B1 = median_B1.clamp_min(0)[:, None]
    is_above_BT = is_suppressed_BT & (loss_BT > median_B1)
    weight_BT = (median_B1 / loss_BT).where(is_above_BT, 1)
    return weight_BT.where(gate_BT, 0).to(torch.float32)


@torch.no_grad()
def matched_control(is_false_alarm_BT: Tensor, is_real_BT: Tensor, uniform_BT: Tensor) -> Tensor:
    """As many real forks as there are false alarms, chosen at random: what suppressing just any high loss would do.

    Each trajectory gives up as many as it has false alarms, those with the lowest uniform numbers. What it has too few of is
    taken from the others, lowest numbers first, so that the totals are equal unless there are fewer real forks in all;
    then all of them are chosen.

    Args:
        is_false_alarm_BT, is_real_BT: bool, never both at one position.
        uniform_BT: independent uniform numbers in [0, 1), from a stream of their own (`randomness.uniforms`).
    Returns:
        is_control_BT, bool; within is_real_BT. For `suppression_weight`.
    Raises:
        ValueError: shapes that differ, or a position that is both.
    Source: the matched "High-OT DW" of arXiv:2606.00305; matching within trajectories first is ours.
    """
    require_same_shape(is_false_alarm_BT=is_false_alarm_BT, is_real_BT=is_real_BT, uniform_BT=uniform_BT)
    if bool((is_false_alarm_BT & is_real_BT).any()):
        raise ValueError("a position is both a false alarm and a real fork.")
    wanted_B1 = is_false_alarm_BT.sum(dim=1, keepdim=True)
    is_control_BT = is_real_BT & (_rank(uniform_BT.masked_fill(~is_real_BT, math.inf)) < wanted_B1)
    missing = int(wanted_B1.sum() - is_control_BT.sum())
    is_left_BT = is_real_BT & ~is_control_BT
    rank_BT = _rank(uniform_BT.masked_fill(~is_left_BT, math.inf).flatten()).view_as(is_left_BT)
    return is_control_BT | (is_left_BT & (rank_BT < missing))


def _require_one_cut(quantile: float | None, absolute: float | None, name: str) -> None:
    if (quantile is None) == (absolute is None):
        raise ValueError(f"give either quantile or {name}, got {quantile} and {absolute}.")
    if quantile is not None and not 0 <= quantile < 1:
        raise ValueError(f"quantile must be in [0, 1), got {quantile}.")
    if absolute is not None and math.isnan(absolute):
        raise ValueError(f"{name} must be a number, got NaN.")


def _cut(value_n: Tensor, quantile: float | None, absolute: float | None) -> float:
    if quantile is None:
        assert absolute is not None
        return absolute
    # 0.07 * 100 is a little above 7 in floating point; the next order statistic is not meant.
    place = math.ceil(quantile * (len(value_n) - 1) - 1e-9)
    return float(value_n.sort().values[place])


def _spaced(position_n: list[int], max_forks: int, min_spacing: int) -> list[int]:
    """The first of the positions, in their order, that keep their distance from all before."""
    chosen: list[int] = []
    for position in position_n:
        if len(chosen) == max_forks:
            break
        if all(abs(position - other) >= min_spacing for other in chosen):
            chosen.append(position)
    return chosen


def _median(loss_n: Tensor) -> Tensor:
    """The middle value, or the mean of the two; 0 of nothing."""
    if len(loss_n) == 0:
        return loss_n.new_zeros(())
    sorted_n = loss_n.sort().values
    return (sorted_n[(len(sorted_n) - 1) // 2] + sorted_n[len(sorted_n) // 2]) / 2


def _rank(value: Tensor) -> Tensor:
    """The place of each entry among those of its last axis, counted from 0; ties by position."""
    return value.argsort(dim=-1, stable=True).argsort(dim=-1)
