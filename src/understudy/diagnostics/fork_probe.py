"""Looking ahead from tokens of a student's own responses: which tokens, what both say from there, how far apart it is.

The statistics of what is found here: `diagnostics.forks`.

B places, I positions of the student's window, J of the expert's, T positions of a response, D width, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from understudy.diagnostics.forks import GROUPS, Group
from understudy.errors import ConfigError, DataError
from understudy.experts.expert import Expert
from understudy.experts.vectors import Costs, Embedding, language_model, window_costs
from understudy.objectives.divergences import EXPERT_PROB_FLOOR, against_expert, reverse_kl_from_logp
from understudy.objectives.forks import candidates
from understudy.objectives.transport import exact_plan, transport_distance
from understudy.randomness import uniforms
from understudy.records import Trajectory
from understudy.rollouts.hf import HFDecoder, evaluating
from understudy.rollouts.sampler import Limits, Response
from understudy.rollouts.windows import Spot, Who, write_windows
from understudy.trainer.collate import collate
from understudy.trainer.loss import Labels, position_values

TOKEN_LOSS = against_expert(reverse_kl_from_logp, floor_prob=EXPERT_PROB_FLOOR)
"""KL(student || expert) as `opd-r` trains on it: a token that the expert forbids costs much, not infinitely."""
DECIMALS = 9
"""Of a distance: its last digits hang on what stood beside it in a batch, and a quartile must not."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A student and the expert that it is to imitate."""

    student: nn.Module
    expert: Expert
    vocab_size: int
    limits: Limits
    """Those of the student's responses."""
    seed: int
    batch_size: int
    """Responses or windows side by side; it moves numbers by rounding alone."""

    @property
    def device(self) -> torch.device:
        return next(self.student.parameters()).device


@dataclass(frozen=True, kw_only=True)
class Looking:
    """How far ahead both look, and by which vectors their words are compared; as the options of `near-future`."""

    window_tokens: int = 50
    temperature: float = 0.0
    """Of both writers; 0 is greedy."""
    embedding: Embedding = "expert"


class Chosen(NamedTuple):
    """A token of a response, and what it costs the student."""

    spot: Spot
    loss_nats: float


class Ahead(NamedTuple):
    """What both say from before a token, and the transport distance between the two."""

    student: Response
    expert: Response
    distance: float


def check_embedding(expert: Expert, embedding: Embedding) -> None:
    """Refuse to compare words in vectors that nobody has.

    Raises:
        ConfigError: the expert is no language model, and its vectors were asked for.
    """
    if embedding != "student" and language_model(expert) is None:
        raise ConfigError(
            f"the expert ({expert.identity}) is no language model and has no embedding, got embedding = {embedding}. Compare "
            "words by the student's: --embedding student."
        )


def token_losses(pair: Pair, trajectories: Sequence[Trajectory]) -> list[list[float]]:
    """KL(student || expert) at every token of every response, over the whole vocabulary.

        loss[t] = sum_v p(v) (log p(v) - log max(q(v), floor)),    p student, q expert, both after response[:t]

    Args:
        trajectories: written by the student; every token is one it is trained on.
    Returns:
        nats, one list a trajectory, in their order; finite.
    """
    found: dict[int, list[float]] = {}
    order = sorted(range(len(trajectories)), key=lambda i: _length(trajectories[i]))
    with evaluating(pair.student):
        for start in range(0, len(order), pair.batch_size):
            rows = order[start : start + pair.batch_size]
            batch = collate([trajectories[i] for i in rows], pair.device)
            gate_BT = batch.is_response_BT
            labels = Labels(
                gate_BT=gate_BT, law=pair.expert.law(batch, gate_BT), token_N=None, uniform_N=None
            )
            values = position_values(pair.student, pair.vocab_size, batch, labels, {"loss": TOKEN_LOSS})
            lengths = [len(trajectories[i].response_ids) for i in rows]
            pieces = values["loss"].double().cpu().split(lengths)
            found.update((i, piece.tolist()) for i, piece in zip(rows, pieces, strict=True))
    return [found[i] for i in range(len(trajectories))]


def choose_tokens(
    trajectories: Sequence[Trajectory],
    losses: Sequence[Sequence[float]],
    *,
    per_group: int,
    quantile: float,
    spacing: int = 1,
    seed: int,
    groups: Sequence[Group] = GROUPS,
) -> dict[Group, list[Chosen]]:
    """The tokens to look ahead from; more of them begin with fewer.

        high:    `objectives.forks.candidates` of each response, by quantile, `spacing` positions apart
        low:     at or below the order statistic floor((1 - quantile) (n - 1)) of the response's n losses, and not high
        random:  any token, all equally likely

    High and low tokens are spread: one of every response before a second one of any, by chance within a response and among
    responses. The random ones are drawn from all tokens at once, without replacement, so a token may be in two groups.

    Args:
        losses: finite, nats, one list a trajectory.
        quantile: in [0, 1).
    Raises:
        DataError: a group has fewer tokens than asked for.
    """
    longest = max((len(row) for row in losses), default=0)
    loss_BT = torch.tensor([[*row, *(0.0,) * (longest - len(row))] for row in losses], dtype=torch.float64)
    length_B1 = torch.tensor([[len(row)] for row in losses])
    gate_BT = torch.arange(longest) < length_B1
    is_high_BT = candidates(loss_BT, gate_BT, max_forks=longest, quantile=quantile, min_spacing=spacing)
    members = {
        "high": is_high_BT,
        "random": gate_BT,
        "low": _lowest(loss_BT, gate_BT, quantile) & ~is_high_BT,
    }
    chosen: dict[Group, list[Chosen]] = {}
    for group in groups:
        names = [(seed, "forks", group, t.prompt.id, t.sample_index) for t in trajectories]
        number_BT = torch.from_numpy(uniforms(names, longest))
        places = _drawn(members[group], number_BT, is_spread=group != "random")[:per_group]
        if len(places) < per_group:
            raise DataError(
                f"{per_group} {group} tokens are wanted, and {len(trajectories)} responses have {len(places)}. Raise "
                "--prompts or --samples, or lower --per-group."
            )
        chosen[group] = [
            Chosen(Spot(trajectory=trajectories[b], position=t), losses[b][t]) for b, t in places
        ]
    return chosen


def look_ahead(pair: Pair, spots: Sequence[Spot], looking: Looking) -> tuple[list[Ahead], dict[str, float]]:
    """What both say from before every spot, all of them side by side, and the seconds that went into it.

    Raises:
        ConfigError: see `check_embedding`.
    """
    check_embedding(pair.expert, looking.embedding)
    clock = [time.perf_counter()]

    def lap() -> float:
        clock.append(time.perf_counter())
        return clock[-1] - clock[-2]

    student = windows_of(pair, "student", spots, looking)
    seconds = {"student windows": lap()}
    expert = windows_of(pair, "expert", spots, looking)
    seconds["expert windows"] = lap()
    distances = window_distances(pair, spots, student, expert, looking.embedding)
    seconds["transport"] = lap()
    return [Ahead(*row) for row in zip(student, expert, distances, strict=True)], seconds


def windows_of(pair: Pair, who: Who, spots: Sequence[Spot], looking: Looking) -> list[Response]:
    """The windows of one of the two, written now."""
    with evaluating(pair.student):
        return write_windows(
            spots,
            who=who,
            writer=(lambda: HFDecoder(pair.student, vocab_size=pair.vocab_size))
            if who == "student"
            else pair.expert.decoder,
            limits=pair.limits,
            window_tokens=looking.window_tokens,
            temperature=looking.temperature,
            seed=pair.seed,
            batch_size=pair.batch_size,
        )


def window_distances(
    pair: Pair,
    spots: Sequence[Spot],
    student: Sequence[Response],
    expert: Sequence[Response],
    embedding: Embedding,
) -> list[float]:
    """<gamma, C> of the exact plan of every pair of windows; 0 where they are the same."""
    costs = costs_of(pair, spots, student, expert, embedding)
    plan_BIJ = exact_plan(costs.cost_BIJ, costs.is_student_BI, costs.is_expert_BJ)
    return transport_distance(plan_BIJ, costs.cost_BIJ).cpu().round(decimals=DECIMALS).tolist()


def costs_of(
    pair: Pair,
    spots: Sequence[Spot],
    student: Sequence[Response],
    expert: Sequence[Response],
    embedding: Embedding,
) -> Costs:
    """What it costs to take a token of the student's window for one of the expert's (`experts.vectors`)."""
    model = pair.student if embedding == "student" else language_model(pair.expert)
    assert model is not None, "checked beforehand"
    return window_costs(
        model,
        spots,
        [w.token_ids for w in student],
        [w.token_ids for w in expert],
        by_hidden_states=embedding == "expert-hidden",
        batch_size=pair.batch_size,
    )


def _lowest(loss_BT: Tensor, gate_BT: Tensor, quantile: float) -> Tensor:
    is_low_BT = torch.zeros_like(gate_BT)
    for loss_T, gate_T, is_low_T in zip(loss_BT, gate_BT, is_low_BT, strict=True):
        sorted_n = loss_T[gate_T].sort().values
        # As many from below as `candidates` counts from above.
        cut = sorted_n[len(sorted_n) - 1 - math.ceil(quantile * (len(sorted_n) - 1) - 1e-9)]
        is_low_T |= gate_T & (loss_T <= cut)
    return is_low_BT


def _drawn(is_member_BT: Tensor, number_BT: Tensor, *, is_spread: bool) -> list[tuple[int, int]]:
    """(trajectory, position) of all members in the order of their numbers; spread: first those with the lowest of each
    trajectory, then those with the second lowest."""
    number_BT = number_BT.masked_fill(~is_member_BT, torch.inf)
    rank_BT = (
        number_BT.argsort(dim=1, stable=True).argsort(dim=1) if is_spread else torch.zeros_like(number_BT)
    )
    places = [(int(b), int(t)) for b, t in is_member_BT.nonzero().tolist()]
    return sorted(places, key=lambda at: (float(rank_BT[at]), float(number_BT[at])))


def _length(trajectory: Trajectory) -> int:
    return len(trajectory.prompt.token_ids) + len(trajectory.response_ids)
