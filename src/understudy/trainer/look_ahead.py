"""A look into the near future of a step's rollouts: where student and expert part, and what is to be trained there.

    candidates    tokens of high loss (`objectives.forks`); at each, student and expert write a window from before the token
    distance      of optimal transport between the two windows (`objectives.transport`)
    real forks    candidates that lead elsewhere, judged among all candidates of the step, over all processes
    windows       for every real fork what the plan would have said at each token of the student's window
                  (`objectives.windows`): as a trajectory, the prefix its prompt and the window its response; where the window
                  is a part of the rollout, at the rollout's own tokens, which then costs no pass of its own
    weights       of rollout tokens, where losses are to be suppressed

B candidates, I positions of the student's window, J of the expert's, C candidates of one trajectory, T positions of a batch, N
its gated tokens, E tokens of all windows laid over them, P windows over one token at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from understudy.experts.vectors import Costs, window_costs
from understudy.objectives import forks
from understudy.objectives.rows import Given
from understudy.objectives.transport import exact_plan, plan_named, transport_distance
from understudy.objectives.windows import Targets, given_targets, heaviest, soft_targets
from understudy.randomness import uniforms
from understudy.records import TrainBatch, Trajectory
from understudy.rollouts.sampler import Decoder, Limits, Response
from understudy.rollouts.windows import Spot, Who, rollout_windows, write_windows

DECIMALS = 9
"""Of a distance. Sums differ in their last digits by what stands beside them in a batch; equal windows must not part by that."""


@dataclass(frozen=True, eq=False)
class TokenLosses:
    """What the gated tokens of a batch cost the student, in nats."""

    batch: TrainBatch
    gate_BT: Tensor
    value_N: Tensor

    def by_position(self) -> Tensor:
        """loss_BT, 0 outside the gate."""
        loss_BT = self.value_N.new_zeros(self.gate_BT.shape)
        loss_BT[self.gate_BT] = self.value_N
        return loss_BT


@dataclass(frozen=True, kw_only=True, eq=False)
class Beside:
    """What tokens of a batch should have been, besides what the rollouts' own loss says of them."""

    gate_BT: Tensor
    given_N: Given
    """Of the gated tokens, under the names that `objectives.windows.soft_target_kl` asks for: the targets of all windows that
    a token lies in, one behind the other, which makes its value the sum over these windows."""
    num_tokens: int
    """Of the windows: a token that lies in two of them counts twice."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What a look has found. Numbers are of all processes, windows, what is beside and weights of this one."""

    windows: list[Trajectory]
    """Empty where windows are parts of the rollouts."""
    beside: list[Beside]
    """Of each batch that was given; nothing in it where windows are trajectories of their own."""
    weights: list[Tensor]
    """Of the gated tokens of each batch that was given, [N]; all 1 where nothing is suppressed."""
    num_candidates: int
    num_real: int
    distance_mean: float | None
    """Over candidates; None: there was none."""
    written_tokens: int
    """Of both writers."""
    expert_tokens: int

    def record(self) -> dict[str, float | None]:
        """For the log of the step."""
        return {
            "forks_candidates": self.num_candidates,
            "forks_real": self.num_real,
            "forks_distance_mean": self.distance_mean,
            "window_tokens": self.written_tokens,
        }


@dataclass(frozen=True, kw_only=True)
class LookAhead:
    """How a method looks ahead; `options` are those of its row. Every process calls it once a step, models in evaluation mode."""

    options: Mapping[str, Any]
    seed: int
    limits: Limits
    writers: Mapping[Who, Callable[[], Decoder]]
    compared: nn.Module
    """The model whose vectors tell how far two tokens lie apart."""
    batch_size: int | None
    gather: Callable[[list[Any]], list[Any]]
    """One entry of every process, in the order of processes."""
    process: int
    has_dropout: bool = False
    """Whether the student drops at random while it is trained."""

    @property
    def trains_windows(self) -> bool:
        return self.options["window_weight"] > 0

    @property
    def is_beside(self) -> bool:
        """Whether the windows that are trained lie in the rollouts."""
        return (
            self.trains_windows and self.options["targets"] != "expert-window" and self._is_rollout("student")
        )

    @property
    def comes_first(self) -> bool:
        """Whether the look comes before the gradient of the rollouts: to weigh their tokens, to say what else is to be trained
        there, or as the losses of that pass are those of a student with holes in it."""
        return self.options["suppress"] != "none" or self.is_beside or self.has_dropout

    @torch.no_grad()
    def __call__(self, losses: Sequence[TokenLosses]) -> Seen:
        """Look ahead from the costly tokens of this process's share of the step."""
        found = [(piece, self._candidates(piece)) for piece in losses]
        counts = [int(is_candidate_BT.sum()) for _, is_candidate_BT in found]
        spots = [spot for piece, is_candidate_BT in found for spot in _spots(piece, is_candidate_BT)]
        pairs = self._pairs(spots) if spots else None
        shares: list[_Share] = self.gather([self._share(spots, pairs)])
        distance_n = torch.tensor([x for share in shares for x in share.distances], dtype=torch.float64)
        is_real_n = forks.real_forks(
            distance_n, quantile=self.options["real_quantile"], min_distance=self.options["min_distance"]
        )
        first = sum(len(share.distances) for share in shares[: self.process])
        own = slice(first, first + len(spots))
        suppressed = self._suppressed(shares, is_real_n)[own].split(counts)
        windows, beside = [], []
        if pairs is not None and self.is_beside:
            beside = self._beside(pairs, is_real_n[own], found, counts)
        elif pairs is not None and self.trains_windows:
            windows = self._windows(pairs, is_real_n[own])
        return Seen(
            windows=windows,
            beside=beside or [_nothing(piece) for piece in losses],
            weights=[
                _weight(piece, is_candidate_BT, is_suppressed_n)
                for (piece, is_candidate_BT), is_suppressed_n in zip(found, suppressed, strict=True)
            ],
            num_candidates=len(distance_n),
            num_real=int(is_real_n.sum()),
            distance_mean=float(distance_n.mean()) if len(distance_n) else None,
            written_tokens=sum(share.written_tokens for share in shares),
            expert_tokens=sum(share.expert_tokens for share in shares),
        )

    def _candidates(self, piece: TokenLosses) -> Tensor:
        return forks.candidates(
            piece.by_position(),
            piece.gate_BT,
            max_forks=self.options["max_forks_per_trajectory"],
            quantile=self.options["candidate_quantile"],
            threshold_nats=self.options["candidate_nats"],
            min_spacing=self.options["candidate_spacing"],
        )

    def _pairs(self, spots: Sequence[Spot]) -> _Pairs:
        """Both windows at every spot, and how far they lie apart by the exact plan: what is a fork is the same for all plans."""
        student, expert = self._written("student", spots), self._written("expert", spots)
        costs = window_costs(
            self.compared,
            spots,
            [w.token_ids for w in student],
            [w.token_ids for w in expert],
            by_hidden_states=self.options["embedding"] == "expert-hidden",
            batch_size=self.batch_size,
        )
        plan_BIJ = exact_plan(costs.cost_BIJ, costs.is_student_BI, costs.is_expert_BJ)
        distance_B = transport_distance(plan_BIJ, costs.cost_BIJ).cpu().round(decimals=DECIMALS)
        return _Pairs(spots, student, expert, costs, plan_BIJ, distance_B)

    def _written(self, who: Who, spots: Sequence[Spot]) -> list[Response]:
        if self._is_rollout(who):
            return rollout_windows(spots, self.options["window_tokens"])
        return write_windows(
            spots,
            who=who,
            writer=self.writers[who],
            limits=self.limits,
            window_tokens=self.options["window_tokens"],
            temperature=self.options["window_temperature"],
            seed=self.seed,
            batch_size=self.batch_size,
        )

    def _is_rollout(self, who: Who) -> bool:
        return who == "student" and self.options["student_window"] == "rollout"

    def _share(self, spots: Sequence[Spot], pairs: _Pairs | None) -> _Share:
        if pairs is None:
            return _Share([], [], [], 0, 0)
        by_student = 0 if self._is_rollout("student") else sum(len(w.token_ids) for w in pairs.student)
        by_expert = sum(len(w.token_ids) for w in pairs.expert)
        return _Share(
            ids=[spot.trajectory.id for spot in spots],
            numbers=uniforms([spot.name(self.seed, "control") for spot in spots], 1)[:, 0].tolist(),
            distances=pairs.distance_B.tolist(),
            written_tokens=by_student + by_expert,
            expert_tokens=by_expert,
        )

    def _suppressed(self, shares: Sequence[_Share], is_real_n: Tensor) -> Tensor:
        """Which of all candidates count less, [n] bool."""
        if self.options["suppress"] == "none":
            return torch.zeros_like(is_real_n)
        if self.options["suppress"] == "false-alarms":
            return ~is_real_n
        ids = [name for share in shares for name in share.ids]
        numbers = [number for share in shares for number in share.numbers]
        return _matched(ids, numbers, is_real_n)

    def _windows(self, pairs: _Pairs, is_real_B: Tensor) -> list[Trajectory]:
        """A trajectory for every real fork, with its targets."""
        who: Who = "expert" if self.options["targets"] == "expert-window" else "student"
        real_b, targets = self._targets(pairs, is_real_B)
        written = pairs.student if who == "student" else pairs.expert
        made = zip(real_b.tolist(), targets.token_BIK.tolist(), targets.weight_BIK.tolist(), strict=True)
        return [self._trajectory(pairs.spots[b], who, written[b], token, weight) for b, token, weight in made]

    def _beside(
        self,
        pairs: _Pairs,
        is_real_B: Tensor,
        found: Sequence[tuple[TokenLosses, Tensor]],
        counts: Sequence[int],
    ) -> list[Beside]:
        """The targets of every real fork, at the tokens of the batches; found[k] with its counts[k] candidates."""
        real_b, targets = self._targets(pairs, is_real_B)
        is_token_bI = pairs.costs.is_student_BI[real_b]
        sizes = [int(part.sum()) for part in is_real_B.split(list(counts))]
        parts = zip(
            found,
            is_real_B.split(list(counts)),
            is_token_bI.split(sizes),
            targets.token_BIK.split(sizes),
            targets.weight_BIK.split(sizes),
            strict=True,
        )
        return [
            _at_tokens(
                piece.gate_BT, is_candidate_BT.nonzero()[is_real_n], is_token_nI, Targets(token, weight)
            )
            for (piece, is_candidate_BT), is_real_n, is_token_nI, token, weight in parts
        ]

    def _targets(self, pairs: _Pairs, is_real_B: Tensor) -> tuple[Tensor, Targets]:
        """(the real forks, what their windows should say)."""
        costs, real_b = pairs.costs, is_real_B.nonzero()[:, 0].to(pairs.plan_BIJ.device)
        if self.options["targets"] == "expert-window":
            return real_b, given_targets(costs.expert_token_BJ[real_b], costs.is_expert_BJ[real_b])
        targets = soft_targets(self._plan(pairs, real_b), costs.expert_token_BJ[real_b])
        return real_b, heaviest(targets) if self.options["targets"] == "heaviest" else targets

    def _plan(self, pairs: _Pairs, real_b: Tensor) -> Tensor:
        if self.options["plan"] == "exact":
            return pairs.plan_BIJ[real_b]  # found before, for the distance
        costs = pairs.costs
        given = costs.cost_BIJ[real_b], costs.is_student_BI[real_b], costs.is_expert_BJ[real_b]
        return plan_named(self.options["plan"], *given, regularisation=self.options["regularisation"])

    def _trajectory(
        self, spot: Spot, who: Who, window: Response, token_IK: list[list[int]], weight_IK: list[list[float]]
    ) -> Trajectory:
        t = spot.trajectory
        laws = [
            {v: y for v, y in zip(token_K, weight_K, strict=True) if y > 0}
            for token_K, weight_K in zip(token_IK, weight_IK, strict=True)
        ]
        return replace(
            t,
            prompt=replace(t.prompt, token_ids=spot.prefix_ids),
            response_ids=window.token_ids,
            is_student=window.is_student,
            logp=window.logp,
            temperature=self.options["window_temperature"],
            finish=window.finish,
            targets=tuple(laws[: len(window.token_ids)]),
        )


class _Pairs(NamedTuple):
    """Candidates with both windows; the plan and the distance are those of optimal transport."""

    spots: Sequence[Spot]
    student: list[Response]
    expert: list[Response]
    costs: Costs
    plan_BIJ: Tensor
    distance_B: Tensor


class _Share(NamedTuple):
    """What a process tells the others: of each of its candidates the trajectory, a random number and the distance; what was
    written for them."""

    ids: list[str]
    numbers: list[float]
    distances: list[float]
    written_tokens: int
    expert_tokens: int


def _spots(piece: TokenLosses, is_candidate_BT: Tensor) -> list[Spot]:
    """In row-major order, as a mask selects them."""
    trajectories = piece.batch.trajectories
    return [
        Spot(trajectory=trajectories[b], position=at - len(trajectories[b].prompt.token_ids))
        for b, at in is_candidate_BT.nonzero().tolist()
    ]


def _at_tokens(gate_BT: Tensor, start_n2: Tensor, is_token_nI: Tensor, targets: Targets) -> Beside:
    """Windows that begin at `start_n2` (row, position) of a batch, laid over its tokens; `is_token_nI`: where they are real."""
    offset_I = torch.arange(is_token_nI.shape[1], device=gate_BT.device)
    cell_nI = start_n2[:, :1] * gate_BT.shape[1] + start_n2[:, 1:] + offset_I
    cell_N, at_E = cell_nI[is_token_nI].unique(return_inverse=True)
    given = _compact(targets).given(is_token_nI)
    # The windows that a token lies in, side by side: each entry e takes the next free of its token's places.
    order_e = at_E.argsort(stable=True)
    count_N = at_E.bincount(minlength=len(cell_N))
    place_e = torch.arange(len(at_E), device=gate_BT.device) - (count_N.cumsum(0) - count_N)[at_E[order_e]]
    most = int(count_N.max()) if len(count_N) else 1
    is_in_BT = torch.zeros_like(gate_BT)
    is_in_BT.view(-1)[cell_N] = True
    laid = {}
    for name, value_EK in given.items():
        value_NPK = value_EK.new_zeros(len(cell_N), most, value_EK.shape[1])
        value_NPK[at_E[order_e], place_e] = value_EK[order_e]
        laid[name] = value_NPK.flatten(1)
    return Beside(gate_BT=is_in_BT, given_N=laid, num_tokens=len(at_E))


def _compact(targets: Targets) -> Targets:
    """The same laws with as few entries as the one over most tokens needs: an assignment has one a token."""
    size = int((targets.weight_BIK > 0).sum(dim=2).max()) if targets.weight_BIK.numel() else 1
    weight_BIK, at_BIK = targets.weight_BIK.sort(dim=2, descending=True, stable=True)
    return Targets(targets.token_BIK.gather(2, at_BIK)[..., :size], weight_BIK[..., :size])


def _nothing(piece: TokenLosses) -> Beside:
    token = torch.zeros(0, 1, dtype=torch.long, device=piece.gate_BT.device)
    given = {"target_token_nK": token, "target_weight_nK": token.double()}
    return Beside(gate_BT=torch.zeros_like(piece.gate_BT), given_N=given, num_tokens=0)


def _weight(piece: TokenLosses, is_candidate_BT: Tensor, is_suppressed_n: Tensor) -> Tensor:
    is_suppressed_BT = torch.zeros_like(is_candidate_BT)
    is_suppressed_BT[is_candidate_BT] = is_suppressed_n.to(is_candidate_BT.device)
    return forks.suppression_weight(piece.by_position(), piece.gate_BT, is_suppressed_BT)[piece.gate_BT]


def _matched(ids: Sequence[str], numbers: Sequence[float], is_real_n: Tensor) -> Tensor:
    """`forks.matched_control` of candidates in any order, one row a trajectory."""
    row_of = {name: row for row, name in enumerate(dict.fromkeys(ids))}
    row_n = torch.tensor([row_of[name] for name in ids], dtype=torch.long)
    column_n = torch.tensor([ids[:i].count(name) for i, name in enumerate(ids)], dtype=torch.long)
    shape = (len(row_of), int(column_n.max()) + 1 if len(ids) else 0)
    is_real_BC, is_false_BC = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    number_BC = torch.zeros(shape, dtype=torch.float64)
    is_real_BC[row_n, column_n], is_false_BC[row_n, column_n] = is_real_n, ~is_real_n
    number_BC[row_n, column_n] = torch.tensor(numbers, dtype=torch.float64)
    return forks.matched_control(is_false_BC, is_real_BC, number_BC)[row_n, column_n]
