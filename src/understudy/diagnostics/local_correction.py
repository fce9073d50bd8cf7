"""Does a correction at one place bring the student's near future to the expert's? A few steps on one prefix, then look again.

Every prefix and every way of correcting begins with the student's own weights and a fresh optimiser; afterwards they are
the student's own again, to the last bit.

I positions of the student's window, J of the expert's, N positions that are trained.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from understudy.diagnostics.fork_probe import (
    TOKEN_LOSS,
    Looking,
    Pair,
    check_embedding,
    costs_of,
    window_distances,
    windows_of,
)
from understudy.errors import TrainingError
from understudy.evaluation.statistics import Estimate, Verdict, mean_interval, ratio_interval
from understudy.models import head_of, hidden_states
from understudy.objectives.chunked import loss_from_hidden
from understudy.objectives.transport import Plan, plan_named
from understudy.objectives.windows import Targets, given_targets, heaviest, soft_target_kl, soft_targets
from understudy.records import TrainBatch
from understudy.rollouts.hf import evaluating
from understudy.rollouts.sampler import Response
from understudy.rollouts.windows import Spot, padded
from understudy.trainer.collate import collate

ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way of correcting: which tokens are trained, and towards what. Every term is a mean over the tokens of its window."""

    name: str
    summary: str
    along: Literal["student", "expert"]
    """Whose window the contexts are of. The student's is written anew before every step."""
    has_token_loss: bool
    """KL(student || expert) there."""
    targets: Literal["transport", "own tokens"] | None
    """KL(target || student) there: what the transport plan puts at the place, or the window's own token (cross-entropy)."""


ARMS = (
    Arm(
        name="opd",
        summary="reverse KL along the student's own window",
        along="student",
        has_token_loss=True,
        targets=None,
    ),
    Arm(
        name="near-future",
        summary="the same, and the window loss to the transported targets",
        along="student",
        has_token_loss=True,
        targets="transport",
    ),
    Arm(
        name="window-only",
        summary="the window loss alone",
        along="student",
        has_token_loss=False,
        targets="transport",
    ),
    Arm(
        name="sft",
        summary="cross-entropy on the expert's window",
        along="expert",
        has_token_loss=False,
        targets="own tokens",
    ),
    Arm(
        name="opd-expert-window",
        summary="reverse KL along the expert's window",
        along="expert",
        has_token_loss=True,
        targets=None,
    ),
)
"""arXiv:2606.00305 corrects on a "50-token window from the teacher continuation": the distance is to that window in every arm;
whether token-level distillation also reads along it is not said, so there are both readings."""


@dataclass(frozen=True, kw_only=True)
class Correcting:
    """How a prefix is corrected: AdamW, and the options of `near-future` that are about windows. No other text is trained."""

    steps: int = 5
    looking: Looking = field(default_factory=Looking)
    window_weight: float = 1.0
    """Of the window loss where it stands beside the token loss."""
    plan: Plan = "exact"
    """What targets are made of. Distances are those of the exact plan whatever is chosen here."""
    regularisation: float = 0.05
    """Of the entropic plan."""
    targets: Literal["plan", "heaviest"] = "plan"
    """plan: all that it puts at a place. heaviest: the one token with most of it."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip_norm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """One prefix: the distance of the student's window to the expert's, before and after each way of correcting."""

    before: float
    student_ids: tuple[int, ...]
    """The student's window before."""
    expert_ids: tuple[int, ...]
    """The expert's, which stays what it is."""
    after: dict[str, float]
    after_ids: dict[str, tuple[int, ...]]
    """The student's window after."""
    seconds: dict[str, float]


def correct(
    pair: Pair, spot: Spot, *, rate: float, correcting: Correcting, arms: Sequence[Arm] = ARMS
) -> Corrected:
    """Take a few steps on one prefix, each arm for itself, and see what the student says there then.

        for every arm: the student's own weights; `steps` times {write the student's window; AdamW on the arm's loss there}
        after = transport distance of the window that the student then writes to the expert's, which was written once

    Windows are written as `correcting.looking` says (greedily by default), each time with the same random numbers. The student
    is in evaluation mode throughout: no dropout.

    Args:
        rate: AdamW's learning rate, constant; the optimiser is fresh for every arm.
    Raises:
        ConfigError: see `check_embedding`. TrainingError: a loss or a gradient that is not finite.
    Source: arXiv:2606.00305, its local correction: 5 steps, 50 tokens, "tokens outside masked". It says neither optimiser nor
        rate, nor whether windows are written anew between steps; here they are, so that `opd` is on-policy at every step.
    """
    check_embedding(pair.expert, correcting.looking.embedding)
    trained = [p for p in pair.student.parameters() if p.requires_grad]
    own = [p.detach().clone() for p in trained]
    (expert,) = windows_of(pair, "expert", [spot], correcting.looking)
    (first,) = windows_of(pair, "student", [spot], correcting.looking)
    after: dict[str, Response] = {}
    seconds: dict[str, float] = {}
    with evaluating(pair.student):
        for arm in arms:
            started = time.perf_counter()
            try:
                after[arm.name] = _after(pair, spot, first, expert, arm, rate, correcting, trained)
            finally:
                _restore(trained, own)
            seconds[arm.name] = time.perf_counter() - started
    students = [first, *after.values()]
    before, *distances = window_distances(
        pair, [spot] * len(students), students, [expert] * len(students), correcting.looking.embedding
    )
    return Corrected(
        before=before,
        student_ids=first.token_ids,
        expert_ids=expert.token_ids,
        after=dict(zip(after, distances, strict=True)),
        after_ids={name: window.token_ids for name, window in after.items()},
        seconds=seconds,
    )


def _after(
    pair: Pair,
    spot: Spot,
    first: Response,
    expert: Response,
    arm: Arm,
    rate: float,
    correcting: Correcting,
    trained: Sequence[Tensor],
) -> Response:
    """The student's window after an arm's steps; its weights are then what the steps have made of them."""
    optimizer = torch.optim.AdamW(
        trained, lr=rate, betas=correcting.betas, weight_decay=correcting.weight_decay, fused=True
    )
    student = first
    for step in range(correcting.steps):
        if step > 0 and arm.along == "student":
            (student,) = windows_of(pair, "student", [spot], correcting.looking)
        loss = window_loss(pair, spot, student, expert, arm, correcting)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, correcting.clip_norm)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise TrainingError(
                f"{arm.name}, step {step + 1} on {spot.trajectory.id} before token {spot.position}: the loss is {loss:.4g} and "
                f"its gradient's norm {norm:.4g}. Lower the rate ({rate:g})."
            )
        optimizer.step()
    (last,) = windows_of(pair, "student", [spot], correcting.looking)
    return last


def _restore(trained: Sequence[Tensor], own: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, kept in zip(trained, own, strict=True):
            parameter.copy_(kept)
            parameter.grad = None


def window_loss(
    pair: Pair, spot: Spot, student: Response, expert: Response, arm: Arm, correcting: Correcting
) -> Tensor:
    """The loss of an arm at the windows as they are, with a graph to the student.

        mean over the window of KL(p || q)  +  weight * mean over the window of KL(target || p)

    over the tokens of the student's window or of the expert's, whichever the arm goes along; of the two terms those that
    it has. The weight is 1 where a term stands alone.
    """
    window = student if arm.along == "student" else expert
    batch, gate_BT = _behind(pair, spot, window)
    hidden_ND = hidden_states(pair.student, batch.token_BT)[:, :-1][gate_BT[:, 1:]]
    head = head_of(pair.student, pair.vocab_size)
    count = len(window.token_ids)
    wide = torch.promote_types(hidden_ND.dtype, torch.float32)
    weight_N = torch.full((count,), 1 / count, dtype=wide, device=pair.device)
    terms: list[Tensor] = []
    if arm.has_token_loss:
        law = pair.expert.law(batch, gate_BT)
        terms.append(loss_from_hidden(TOKEN_LOSS, hidden_ND, head, weight_N=weight_N, law=law)[0])
    if arm.targets is not None:
        targets = (
            _transported(pair, spot, student, expert, correcting)
            if arm.targets == "transport"
            else given_targets(*padded([window.token_ids], pair.device))
        )
        real_BI = torch.ones(1, count, dtype=torch.bool, device=pair.device)
        value, _ = loss_from_hidden(
            soft_target_kl, hidden_ND, head, weight_N=weight_N, law=None, given_N=targets.given(real_BI)
        )
        terms.append(value * (correcting.window_weight if arm.has_token_loss else 1.0))
    return torch.stack(terms).sum()


def _behind(pair: Pair, spot: Spot, window: Response) -> tuple[TrainBatch, Tensor]:
    """The prefix with a window behind it, as one response; the gate holds the window alone."""
    said = spot.said_ids
    count = len(said) + len(window.token_ids)
    row = replace(
        spot.trajectory,
        response_ids=said + window.token_ids,
        is_student=(True,) * count,
        logp=(math.nan,) * count,
    )
    batch = collate([row], pair.device)
    gate_BT = torch.zeros_like(batch.is_response_BT)
    gate_BT[:, len(spot.prefix_ids) :] = True
    return batch, gate_BT


def _transported(
    pair: Pair, spot: Spot, student: Response, expert: Response, correcting: Correcting
) -> Targets:
    costs = costs_of(pair, [spot], [student], [expert], correcting.looking.embedding)
    given = costs.cost_BIJ, costs.is_student_BI, costs.is_expert_BJ
    plan_BIJ = plan_named(correcting.plan, *given, regularisation=correcting.regularisation)
    targets = soft_targets(plan_BIJ, costs.expert_token_BJ)
    return heaviest(targets) if correcting.targets == "heaviest" else targets


# --- what came out ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One prefix of one seed at one rate, as far as the summary needs it."""

    seed: int
    prompt: str
    before: float
    after: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """Distances after one way of correcting. `n` of an estimate counts prompts, but of `over_seeds` seeds."""

    name: str
    after: Estimate
    quartiles: tuple[float, float, float]
    change: Estimate
    """After - before."""
    verdict: Verdict
    """Of the change."""
    against_opd: Estimate
    """After - after `opd`."""
    verdict_against_opd: Verdict
    by_seed: dict[int, float]
    """Seed -> mean after."""
    over_seeds: Estimate
    """Mean change: Student's t over the seeds' means; no interval for one seed."""

    def as_record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        record = {name: v.to_json() for name, v in vars(self).items() if isinstance(v, Estimate)}
        return {
            "arm": self.name,
            **record,
            "quartiles": list(self.quartiles),
            "verdict": self.verdict,
            "verdict_against_opd": self.verdict_against_opd,
            "by_seed": {str(seed): value for seed, value in self.by_seed.items()},
        }


@dataclass(frozen=True, kw_only=True)
class RateSummary:
    """All arms at one learning rate, on the same prefixes."""

    num_prefixes: int
    num_prompts: int
    before: Estimate
    quartiles: tuple[float, float, float]
    before_by_seed: dict[int, float]
    arms: tuple[ArmSummary, ...]

    def as_record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "num_prefixes": self.num_prefixes,
            "num_prompts": self.num_prompts,
            "before": self.before.to_json(),
            "quartiles": list(self.quartiles),
            "before_by_seed": {str(seed): value for seed, value in self.before_by_seed.items()},
            "arms": [arm.as_record() for arm in self.arms],
        }


def summarise(outcomes: Sequence[Outcome], confidence: float = 0.95) -> RateSummary:
    """Means of distances and of their differences, prefix by prefix.

        mean_i x_i over the prefixes i of all seeds;   x = before, after, after - before, after - after opd

    The interval takes the prompt as the independent unit (`ratio_interval`): prefixes of one response are not independent, nor
    are responses to one prompt, whatever their seeds. It is about other prompts; `over_seeds` is about other seeds.

    Args:
        outcomes: with the same arms, `opd` among them; as many of every seed as of any other.
    Raises:
        ValueError: no outcomes.
    """
    if not outcomes:
        raise ValueError("a summary needs outcomes, got none.")
    before = [o.before for o in outcomes]
    opd = [o.after["opd"] for o in outcomes]
    arms: list[ArmSummary] = []
    for name in outcomes[0].after:
        after = [o.after[name] for o in outcomes]
        change = [a - b for a, b in zip(after, before, strict=True)]
        mean_change = _mean(outcomes, change, confidence)
        against = _mean(outcomes, [a - b for a, b in zip(after, opd, strict=True)], confidence)
        changes = list(_by_seed(outcomes, change).values())
        over_seeds = mean_interval(changes, confidence)
        if np.ptp(changes) < ROUNDING:
            over_seeds = Estimate(over_seeds.value, None, None, len(changes))
        arms.append(
            ArmSummary(
                name=name,
                after=_mean(outcomes, after, confidence),
                quartiles=_quartiles(after),
                change=mean_change,
                verdict=_verdict(mean_change),
                against_opd=against,
                verdict_against_opd=_verdict(against),
                by_seed=_by_seed(outcomes, after),
                over_seeds=over_seeds,
            )
        )
    return RateSummary(
        num_prefixes=len(outcomes),
        num_prompts=len({o.prompt for o in outcomes}),
        before=_mean(outcomes, before, confidence),
        quartiles=_quartiles(before),
        before_by_seed=_by_seed(outcomes, before),
        arms=tuple(arms),
    )


def _verdict(difference: Estimate) -> Verdict:
    """Whether an interval leaves 0 out, and on which side."""
    low, high = difference.low, difference.high
    if low is None or high is None or low <= 0 <= high:
        return "cannot tell"
    return "higher" if low > 0 else "lower"


def _mean(outcomes: Sequence[Outcome], values: Sequence[float], confidence: float) -> Estimate:
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for outcome, value in zip(outcomes, values, strict=True):
        sums[outcome.prompt] = sums.get(outcome.prompt, 0.0) + value
        counts[outcome.prompt] = counts.get(outcome.prompt, 0) + 1
    found = ratio_interval(list(sums.values()), list(counts.values()), confidence)
    # Equal values are no certainty.
    return Estimate(found.value, None, None, found.n) if np.ptp(values) < ROUNDING else found


def _by_seed(outcomes: Sequence[Outcome], values: Sequence[float]) -> dict[int, float]:
    rows: dict[int, list[float]] = {}
    for outcome, value in zip(outcomes, values, strict=True):
        rows.setdefault(outcome.seed, []).append(value)
    return {seed: math.fsum(row) / len(row) for seed, row in rows.items()}


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    lower, median, upper = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return lower, median, upper
