"""Optimal transport between a student's and an expert's window: how far apart they are, and which token goes with which.

B pairs of windows, I positions of the student's window, J of the expert's, D width of a vector, V vocabulary. A plan is
gamma[b, i, j] >= 0, student first; it sums to 1 over the real tokens of a pair and is exactly 0 at padding. Real tokens
are told by bool masks, by position: they may stand anywhere, windows may differ in length, and none is empty. What a
cost holds at padding, NaN included, is not looked at. Plans are float64 and constants: no gradient passes through them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linear_sum_assignment, linprog
from torch import Tensor

from understudy.objectives.shapes import require_tokens

Array = NDArray[np.float64]
Plan = Literal["exact", "entropic", "monotone"]

MOST_UNITS = 256
"""An assignment of more takes longer than a linear program of their windows."""
DUAL_TOLERANCE = 1e-10
"""Least that HiGHS accepts: a plan of windows of different lengths costs at most this much more than the best one."""


def cosine_cost(student_BID: Tensor, expert_BJD: Tensor) -> Tensor:
    """How different the vectors of two positions are, at every pair of positions.

        cost[b, i, j] = 1 - cos(s, e) = |s / |s| - e / |e||^2 / 2,    s = student[b, i], e = expert[b, j]

    By the difference, not by the product: equal vectors cost exactly 0, and small costs keep their digits. A vector of
    zeros has no direction: it costs 1 against any other vector, as one at a right angle does, and 0 against another zero.

    Args:
        student_BID, expert_BJD: embedding rows or hidden states, any float dtype; constants.
    Returns:
        cost_BIJ in [0, 2], dimensionless, at least float32. NaN where a vector holds inf or NaN.
    Raises:
        ValueError: different numbers of pairs, or different widths.
    Source: arXiv:2606.00305 leaves cost and embedding open; its distances, 0 for equal windows and below 0.9, fit this one.
    """
    if student_BID.shape[::2] != expert_BJD.shape[::2] or student_BID.dim() != 3 or expert_BJD.dim() != 3:
        raise ValueError(
            f"expected [B, I, D] and [B, J, D], got student_BID {tuple(student_BID.shape)} and "
            f"expert_BJD {tuple(expert_BJD.shape)}: the same pairs, vectors of the same model."
        )
    wide = torch.promote_types(student_BID.dtype, torch.float32)
    # As one tensor: the same vector then takes the same path through the sums, and stays the same to the last bit.
    both_BTD = torch.cat([student_BID.detach().to(wide), expert_BJD.detach().to(wide)], dim=1)
    both_BTD = both_BTD / _one_if_zero(both_BTD.abs().amax(dim=-1, keepdim=True))
    norm_BT1 = torch.linalg.vector_norm(both_BTD, dim=-1, keepdim=True)
    unit_BTD = both_BTD / _one_if_zero(norm_BT1)
    num_student = student_BID.shape[1]
    distance_BIJ = torch.cdist(
        unit_BTD[:, :num_student],
        unit_BTD[:, num_student:],
        compute_mode="donot_use_mm_for_euclid_dist",
    )
    is_zero_BT = norm_BT1[..., 0] == 0
    is_one_zero_BIJ = is_zero_BT[:, :num_student, None] != is_zero_BT[:, None, num_student:]
    return (distance_BIJ.square() / 2).clamp(0, 2).masked_fill(is_one_zero_BIJ, 1)


def token_cost(student_token_BI: Tensor, expert_token_BJ: Tensor, embedding_VD: Tensor) -> Tensor:
    """`cosine_cost` of the tokens' rows in an embedding; equal tokens cost 0 whatever the row.

    Args:
        student_token_BI, expert_token_BJ: ids in 0..V - 1, at padding too (any valid one does).
        embedding_VD: input embedding of either model.
    Raises:
        ValueError: ids outside the vocabulary, or different numbers of pairs.
    """
    require_tokens(len(embedding_VD), student_token_BI=student_token_BI, expert_token_BJ=expert_token_BJ)
    student_BID, expert_BJD = embedding_VD[student_token_BI.long()], embedding_VD[expert_token_BJ.long()]
    cost_BIJ = cosine_cost(student_BID, expert_BJD)
    return cost_BIJ.masked_fill(student_token_BI[:, :, None] == expert_token_BJ[:, None, :], 0)


@torch.no_grad()
def exact_plan(
    cost_BIJ: Tensor, is_student_BI: Tensor | None = None, is_expert_BJ: Tensor | None = None
) -> Tensor:
    """The cheapest way to carry the student's window onto the expert's, every token of a window weighing the same.

        gamma = argmin <gamma, C>  over gamma >= 0,  sum_j gamma[i, j] = 1 / n,  sum_i gamma[i, j] = 1 / m

    n and m are the numbers of real tokens. n = m: an assignment, every row has one entry 1 / n. Else an assignment of units
    of 1 / lcm(n, m), or where those are many a corner of the transport polytope, by the simplex method in units of 1 / (n m):
    marginals hold exactly. Where several plans are cheapest, one of them, always the same one for the same cost.

    Runs on the CPU, pair after pair: 50 x 50 takes 0.1 ms, 24 x 20 takes 0.5 ms, 50 x 49 takes 10 ms.

    Args:
        cost_BIJ: finite at real tokens, any unit.
        is_student_BI, is_expert_BJ: bool, True at real tokens; None: all are.
    Returns:
        plan_BIJ, float64, on the device of the cost.
    Raises:
        ValueError: shapes that do not fit, masks that are not bool, an empty window, or a cost that is not finite.
    Source: arXiv:2606.00305 says optimal transport and leaves marginals and solver open; uniform marginals are ours.
    """
    return _pair_by_pair(_cheapest, cost_BIJ, is_student_BI, is_expert_BJ)


class Entropic(NamedTuple):
    """A plan with entropy, and whether it is one yet."""

    plan_BIJ: Tensor
    """float64; each student token has its mass exactly (up to rounding), converged or not."""
    error_B: Tensor
    """float64: sum over expert tokens of |mass - 1 / m|, in [0, 2]."""
    is_converged_B: Tensor
    """bool: the error is within the tolerance."""
    num_iterations_B: Tensor
    """int64: updates of both sides, at least 1."""


@torch.no_grad()
def entropic_plan(
    cost_BIJ: Tensor,
    is_student_BI: Tensor | None = None,
    is_expert_BJ: Tensor | None = None,
    *,
    regularisation: float,
    tolerance: float = 1e-3,
    max_iterations: int = 1000,
) -> Entropic:
    """The cheapest plan where spreading out is worth something, by Sinkhorn's iteration on logarithms.

        gamma = argmin <gamma, C> + regularisation * sum gamma log gamma,    marginals as in `exact_plan`
        gamma[i, j] = exp(f[i] + g[j] - C[i, j] / regularisation)
        g[j] = -log m - logsumexp_i(f[i] - C[i, j] / regularisation),    f[i] = -log n - logsumexp_j(...),   f last

    Regularisation is absolute, in the unit of the cost: one that scaled with the pair's costs would sharpen near pairs
    and blur far ones, and has no meaning where all costs are 0. The plan costs at most regularisation * log(min(n, m))
    more than the exact one once converged. The smaller it is the more iterations it takes; what has not converged after
    `max_iterations` is returned as it is and says so.

    The student's side is updated last, so its marginal holds even then, and `windows.soft_targets` are distributions.
    In float64 whatever the dtype of the cost. Each pair stops by itself: its plan does not depend on the rest of the batch.

    Args:
        cost_BIJ: finite at real tokens.
        is_student_BI, is_expert_BJ: bool, True at real tokens; None: all are.
        regularisation: > 0; 0.05 on a cosine cost gives soft matches over a few tokens.
        tolerance: of the error on the expert's marginal, >= 0. The tail converges slowly: on 50 random tokens at 0.05, 1e-3
            takes 100 iterations and leaves the distance within 2e-4, 1e-6 takes thousands.
        max_iterations: >= 1.
    Raises:
        ValueError: as in `exact_plan`, or a setting out of its range.
    Source: Cuturi, arXiv:1306.0895, in the log domain as in Peyre and Cuturi, arXiv:1803.00567, section 4.4.
    """
    if not (0 < regularisation < math.inf and tolerance >= 0 and max_iterations >= 1):
        raise ValueError(
            "regularisation > 0, tolerance >= 0 and max_iterations >= 1 expected, got "
            f"{regularisation}, {tolerance} and {max_iterations}. For regularisation = 0 use exact_plan."
        )
    is_student_BI, is_expert_BJ = _real(cost_BIJ, is_student_BI, is_expert_BJ)
    is_pair_BIJ = is_student_BI[:, :, None] & is_expert_BJ[:, None, :]
    kernel_BIJ = (-cost_BIJ.detach().double() / regularisation).masked_fill(~is_pair_BIJ, -math.inf)
    log_a_B1 = -is_student_BI.sum(dim=1, keepdim=True).double().log()
    log_b_B1 = -is_expert_BJ.sum(dim=1, keepdim=True).double().log()
    plan_BIJ = torch.empty_like(kernel_BIJ)
    error_B = torch.empty_like(log_a_B1[:, 0])
    num_iterations_B = torch.empty_like(error_B, dtype=torch.int64)
    # Only the pairs still at work: what a finished one has must not depend on how long the others take.
    at = torch.arange(len(kernel_BIJ), device=kernel_BIJ.device)
    state = (at, kernel_BIJ, is_student_BI, is_expert_BJ, log_a_B1, log_b_B1, kernel_BIJ.logsumexp(dim=1))
    for num in range(1, max_iterations + 1):
        at, kernel, is_i, is_j, log_a, log_b, reach_J = state
        if len(at) == 0:
            break
        g_J = (log_b - reach_J).where(is_j, 0)
        f_I = (log_a - (kernel + g_J[:, None, :]).logsumexp(dim=2)).where(is_i, 0)
        reach_J = (kernel + f_I[:, :, None]).logsumexp(dim=1)
        error = ((g_J + reach_J).exp() - log_b.exp()).abs().where(is_j, 0).sum(dim=1)
        ends = (error <= tolerance) | (num == max_iterations)
        plan_BIJ[at[ends]] = (kernel + f_I[:, :, None] + g_J[:, None, :])[ends].exp()
        error_B[at[ends]], num_iterations_B[at[ends]] = error[ends], num
        state = (at, kernel, is_i, is_j, log_a, log_b, reach_J)
        if bool(ends.any()):
            state = tuple(x[~ends] for x in state)
    return Entropic(plan_BIJ, error_B, error_B <= tolerance, num_iterations_B)


@torch.no_grad()
def monotone_plan(
    cost_BIJ: Tensor, is_student_BI: Tensor | None = None, is_expert_BJ: Tensor | None = None
) -> Tensor:
    """The cheapest alignment that never goes back: dynamic time warping, each student token then sharing out its mass.

        path  = argmin sum over its cells of C[i, j]:  from the first tokens of both windows to the last ones, each step
                (1, 1), (1, 0) or (0, 1); where several are equally cheap, (1, 1) before (1, 0) before (0, 1), from the end
        gamma[i, j] = [(i, j) on the path] / (n * cells of the path in row i)

    Order counts here, which `exact_plan` ignores. Every student token has mass 1 / n; expert tokens have what falls to
    them, at least something. So it is no transport plan, and its distance - the mean over student tokens of the mean
    cost of their partners - may be below that of `exact_plan`: do not compare the two.

    Args:
        cost_BIJ: finite at real tokens; padding between real tokens is stepped over.
        is_student_BI, is_expert_BJ: bool, True at real tokens; None: all are.
    Returns:
        plan_BIJ, float64, on the device of the cost.
    Raises:
        ValueError: as in `exact_plan`.
    Source: Sakoe and Chiba, IEEE Trans. ASSP 26 (1978), without slope constraint or step weights. An ablation of ours:
        arXiv:2606.00305 matches without regard to order.
    """
    return _pair_by_pair(_warped, cost_BIJ, is_student_BI, is_expert_BJ)


def plan_named(
    name: Plan, cost_BIJ: Tensor, is_student_BI: Tensor, is_expert_BJ: Tensor, *, regularisation: float
) -> Tensor:
    """`exact_plan`, `entropic_plan` or `monotone_plan` by its name; `regularisation` is the entropic one's."""
    if name == "entropic":
        return entropic_plan(cost_BIJ, is_student_BI, is_expert_BJ, regularisation=regularisation).plan_BIJ
    return (exact_plan if name == "exact" else monotone_plan)(cost_BIJ, is_student_BI, is_expert_BJ)


def transport_distance(plan_BIJ: Tensor, cost_BIJ: Tensor) -> Tensor:
    """<gamma, C> of every pair: the mean cost of what goes together.

        distance[b] = sum over i, j with gamma[b, i, j] > 0 of  gamma[b, i, j] C[b, i, j]

    Returns:
        distance_B, float64, in the unit of the cost; in [0, 2] for `cosine_cost`.
    Raises:
        ValueError: the shapes differ.
    """
    if plan_BIJ.shape != cost_BIJ.shape:
        raise ValueError(
            f"expected equal shapes, got plan_BIJ {tuple(plan_BIJ.shape)} and cost_BIJ {tuple(cost_BIJ.shape)}."
        )
    return (plan_BIJ.double() * cost_BIJ.detach().double().where(plan_BIJ > 0, 0)).sum(dim=(1, 2))


def _cheapest(cost_IJ: Array) -> Array:
    num_student, num_expert = cost_IJ.shape
    units = math.lcm(num_student, num_expert)
    if units <= max(num_student, num_expert, MOST_UNITS):
        return _assigned(cost_IJ, units)
    # In units of 1 / (n m) every corner of the polytope is whole: rounding takes off what the solver may have left.
    # Costs of order 1, whatever their unit: the solver's tolerances are absolute.
    scale = np.abs(cost_IJ).max() or 1.0
    found: Any = linprog(
        cost_IJ.ravel() / scale,
        A_eq=_marginals(num_student, num_expert),
        b_eq=np.repeat([num_expert, num_student], [num_student, num_expert]),
        method="highs-ds",
        # Every row and column is needed: looking for what could be left out takes longer than solving a small pair.
        options={"dual_feasibility_tolerance": DUAL_TOLERANCE, "presolve": False},
    )
    assert found.status == 0, found.message
    units_IJ = found.x.reshape(cost_IJ.shape).round()
    assert (units_IJ.sum(1) == num_expert).all() and (units_IJ.sum(0) == num_student).all()
    return units_IJ / (num_student * num_expert)


def _assigned(cost_IJ: Array, units: int) -> Array:
    """The assignment of equal units of mass: each token cut into as many as make both windows `units` long."""
    num_student, num_expert = cost_IJ.shape
    by_student, by_expert = units // num_student, units // num_expert
    row, column = linear_sum_assignment(cost_IJ.repeat(by_student, axis=0).repeat(by_expert, axis=1))
    units_IJ = np.zeros_like(cost_IJ)
    np.add.at(units_IJ, (row // by_student, column // by_expert), 1)
    return units_IJ / units


@lru_cache(maxsize=256)
def _marginals(num_student: int, num_expert: int) -> Any:
    """[I + J, I J]: sums of a flat plan over the columns of each row, and over the rows of each column."""
    rows = sparse.kron(sparse.eye(num_student), np.ones((1, num_expert)))
    columns = sparse.kron(np.ones((1, num_student)), sparse.eye(num_expert))
    return sparse.vstack([rows, columns]).tocsc()


def _warped(cost_IJ: Array) -> Array:
    num_student, num_expert = cost_IJ.shape
    # total[i][j]: the cheapest path to the i-th and j-th token, counted from 1.
    total = [[math.inf] * (num_expert + 1) for _ in range(num_student + 1)]
    total[0][0] = 0.0
    for i, row in enumerate(cost_IJ.tolist(), start=1):
        above, mine = total[i - 1], total[i]
        for j, cost in enumerate(row, start=1):
            mine[j] = cost + min(above[j - 1], above[j], mine[j - 1])
    path_IJ = np.zeros_like(cost_IJ)
    i, j = num_student, num_expert
    while i > 0 and j > 0:
        path_IJ[i - 1, j - 1] = 1
        # `min` keeps the first of equals.
        i, j = min(((i - 1, j - 1), (i - 1, j), (i, j - 1)), key=lambda cell: total[cell[0]][cell[1]])
    return path_IJ / (num_student * path_IJ.sum(1, keepdims=True))


def _pair_by_pair(
    solve: Callable[[Array], Array],
    cost_BIJ: Tensor,
    is_student_BI: Tensor | None,
    is_expert_BJ: Tensor | None,
) -> Tensor:
    is_student_BI, is_expert_BJ = _real(cost_BIJ, is_student_BI, is_expert_BJ)
    cost = cost_BIJ.detach().double().cpu().numpy()
    plan = np.zeros_like(cost)
    masks = (is_student_BI.cpu().numpy(), is_expert_BJ.cpu().numpy())
    for plan_IJ, cost_IJ, is_student_I, is_expert_J in zip(plan, cost, *masks, strict=True):
        cells = np.ix_(is_student_I, is_expert_J)
        plan_IJ[cells] = solve(cost_IJ[cells])
    return torch.from_numpy(plan).to(cost_BIJ.device)


def _real(
    cost_BIJ: Tensor, is_student_BI: Tensor | None, is_expert_BJ: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Both masks, made where they were not given. ValueError for what no plan can be made of."""
    if cost_BIJ.dim() != 3:
        raise ValueError(f"cost_BIJ must be [B, I, J], got {tuple(cost_BIJ.shape)}.")
    made = []
    given = (
        ("is_student_BI", is_student_BI, cost_BIJ.shape[:2]),
        ("is_expert_BJ", is_expert_BJ, cost_BIJ.shape[::2]),
    )
    for name, mask, shape in given:
        if mask is None:
            mask = torch.ones(shape, dtype=torch.bool, device=cost_BIJ.device)
        if mask.shape != shape or mask.dtype != torch.bool:
            raise ValueError(
                f"{name} must be bool and fit cost_BIJ {tuple(cost_BIJ.shape)}, got {tuple(mask.shape)} of {mask.dtype}."
            )
        is_empty_B = ~mask.any(dim=1)
        if bool(is_empty_B.any()):
            raise ValueError(
                f"{name} has no real token in pair {int(is_empty_B.nonzero()[0])}: leave a pair with an empty window out."
            )
        made.append(mask)
    is_pair_BIJ = made[0][:, :, None] & made[1][:, None, :]
    is_bad_B = (~torch.isfinite(cost_BIJ) & is_pair_BIJ).flatten(1).any(dim=1)
    if bool(is_bad_B.any()):
        raise ValueError(f"cost_BIJ is not finite at real tokens of pair {int(is_bad_B.nonzero()[0])}.")
    return made[0], made[1]


def _one_if_zero(tensor: Tensor) -> Tensor:
    return tensor.where(tensor != 0, 1)
