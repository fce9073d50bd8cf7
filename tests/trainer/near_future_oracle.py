"""The loss of `near-future` written out: dense laws, windows token by token, matches by trying them all; shares no code.

One trajectory after another, one position after another. Autograd differentiates the sum as it stands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from understudy.randomness import generator
from understudy.records import Trajectory


@dataclass
class Answer:
    """The two means, the sum that is differentiated, and what was found on the way."""

    rollout_nats: float
    window_nats: float
    total: Tensor
    candidates: list[tuple[str, int]]
    distances: list[float]
    real: list[tuple[str, int]]
    suppressed: list[tuple[str, int]]
    written: int = 0
    by_expert: int = 0


@dataclass
class World:
    student: nn.Module
    expert: nn.Module
    eos_ids: frozenset[int]
    max_new_tokens: int
    seed: int
    stops: tuple[str, ...] = ()
    spell: Any = None
    options: dict[str, Any] = field(default_factory=dict)

    def law(self, model: nn.Module, ids: Sequence[int]) -> Tensor:
        """log p(next | ids), [V], with a graph."""
        return model(torch.tensor([list(ids)])).logits[0, -1].double().log_softmax(-1)

    def window(self, who: str, t: Trajectory, k: int) -> list[int]:
        o = self.options
        if who == "student" and o["student_window"] == "rollout":
            return list(t.response_ids[k : k + o["window_tokens"]])
        model = self.student if who == "student" else self.expert
        stream = generator(self.seed, "window", who, t.round, t.prompt.id, t.sample_index, k)
        numbers = stream.random(o["window_tokens"])
        said = list(t.response_ids[:k])
        for u in numbers:
            with torch.no_grad():
                logp = self.law(model, (*t.prompt.token_ids, *said))
            if o["window_temperature"] == 0:
                said.append(int(logp.argmax()))
            else:
                mass = (logp / o["window_temperature"]).softmax(-1).cumsum(-1)
                said.append(int((mass <= u).sum()))
            stopped = self.spell is not None and any(self.spell(said).endswith(s) for s in self.stops)
            if said[-1] in self.eos_ids or stopped or len(said) == self.max_new_tokens:
                break
        return said[k:]

    def vectors(self, t: Trajectory, k: int, window: Sequence[int]) -> np.ndarray:
        kind = self.options["embedding"]
        with torch.no_grad():
            if kind == "expert-hidden":
                ids = (*t.prompt.token_ids, *t.response_ids[:k], *window)
                states = self.expert(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
                return states[len(ids) - len(window) :].double().numpy()
            model: Any = self.student if kind == "student" else self.expert
            return model.get_input_embeddings().weight[list(window)].double().numpy()


def costs_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([[1 - x @ y / math.sqrt((x @ x) * (y @ y)) for y in b] for x in a]).clip(0)


def transported(cost: np.ndarray) -> list[np.ndarray]:
    """The cheapest plans with equal masses: all of them, or (windows of different lengths) what small nudges find."""
    n, m = cost.shape
    plans = []
    if n == m:
        totals = {order: sum(cost[i, j] for i, j in enumerate(order)) for order in permutations(range(n))}
        for order, total in totals.items():
            if total <= min(totals.values()) + 1e-9:
                plans.append(np.eye(n)[list(order)] / n)
        return plans
    for trial in range(4):
        noise = 1e-9 * np.random.default_rng(trial).random((n, m))
        # Every token of the one window m times, of the other n times: then it is an assignment.
        spread = np.repeat(np.repeat(cost + noise, m, axis=0), n, axis=1)
        plan = np.zeros((n, m))
        for i, j in zip(*linear_sum_assignment(spread), strict=True):
            plan[i // m, j // n] += 1 / (n * m)
        plans.append(plan)
    return plans


def blurred(cost: np.ndarray, regularisation: float) -> np.ndarray:
    n, m = cost.shape
    kernel, u, v = np.exp(-cost / regularisation), np.ones(n), np.ones(m)
    for _ in range(1000):
        v = (1 / m) / (kernel.T @ u)
        u = (1 / n) / (kernel @ v)
        if np.abs(v * (kernel.T @ u) - 1 / m).sum() <= 1e-3:
            break
    return u[:, None] * kernel * v


def in_order(cost: np.ndarray) -> np.ndarray:
    """All alignments, by recursion from their ends."""
    n, m = cost.shape

    def best(i: int, j: int) -> tuple[float, list[tuple[int, int]]]:
        if i == 0 and j == 0:
            return cost[0, 0], [(0, 0)]
        before = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        total, path = min((best(a, b) for a, b in before if a >= 0 and b >= 0), key=lambda found: found[0])
        return total + cost[i, j], [*path, (i, j)]

    plan = np.zeros((n, m))
    for i, j in best(n - 1, m - 1)[1]:
        plan[i, j] = 1
    return plan / plan.sum(1, keepdims=True) / n


def cut(values: Sequence[float], quantile: float) -> float:
    return sorted(values)[math.ceil(quantile * (len(values) - 1) - 1e-9)]


def answer(w: World, trajectories: Sequence[Trajectory]) -> Answer:
    o, losses = w.options, []
    for t in trajectories:
        row = []
        for k in range(len(t.response_ids)):
            prefix = (*t.prompt.token_ids, *t.response_ids[:k])
            p, q = w.law(w.student, prefix), w.law(w.expert, prefix).detach()
            row.append((p.exp() * (p - q.clamp_min(math.log(1e-10)))).sum())
        losses.append(row)
    places = [(b, k) for b, row in enumerate(losses) for k in candidates_of([x.item() for x in row], o)]
    pairs = [[w.window(who, trajectories[b], k) for who in ("student", "expert")] for b, k in places]
    costs = []
    for (b, k), (mine, theirs) in zip(places, pairs, strict=True):
        t = trajectories[b]
        costs.append(costs_between(w.vectors(t, k, mine), w.vectors(t, k, theirs)))
    distances = [
        0.0 if mine == theirs else float((transported(c)[0] * c).sum())
        for (mine, theirs), c in zip(pairs, costs, strict=True)
    ]
    least = o["min_distance"]
    if least is None:
        least = cut(distances, o["real_quantile"]) if distances else 0.0
    is_real = [d > 1e-9 and d >= least - 1e-9 for d in distances]
    suppressed = suppressed_of(w, trajectories, places, is_real)
    total, count = torch.zeros((), dtype=torch.float64), sum(map(len, losses))
    for b, row in enumerate(losses):
        values = sorted(x.item() for x in row)
        median = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
        for k, x in enumerate(row):
            total = total + (min(1.0, median / x.item()) if (b, k) in suppressed else 1.0) * x
    rollout, windows, num_window = total / count, torch.zeros((), dtype=torch.float64), 0
    for (b, k), (mine, theirs), c, real in zip(places, pairs, costs, is_real, strict=True):
        if real:
            value, size = window_loss(w, trajectories[b], k, mine, theirs, c)
            windows, num_window = windows + value, num_window + size
    window = windows / max(num_window, 1)

    def names(chosen):
        return [(trajectories[b].id, k) for b, k in chosen]

    by_expert = sum(len(theirs) for _, theirs in pairs)
    by_student = sum(len(mine) for mine, _ in pairs) if o["student_window"] == "written" else 0
    return Answer(
        rollout_nats=rollout.item(),
        window_nats=window.item(),
        total=rollout + o["window_weight"] * window,
        candidates=names(places),
        distances=distances,
        real=names([at for at, real in zip(places, is_real, strict=True) if real]),
        suppressed=names(suppressed),
        written=by_student + by_expert,
        by_expert=by_expert,
    )


def candidates_of(row: list[float], o: dict[str, Any]) -> list[int]:
    least = o["candidate_nats"] if o["candidate_nats"] is not None else cut(row, o["candidate_quantile"])
    chosen: list[int] = []
    for k in sorted(range(len(row)), key=lambda k: (-row[k], k)):
        is_free = all(abs(k - other) >= o["candidate_spacing"] for other in chosen)
        if row[k] > 0 and row[k] >= least and is_free and len(chosen) < o["max_forks_per_trajectory"]:
            chosen.append(k)
    return sorted(chosen)


def suppressed_of(w: World, trajectories, places, is_real) -> list[tuple[int, int]]:
    false = [at for at, real in zip(places, is_real, strict=True) if not real]
    real = [at for at, real in zip(places, is_real, strict=True) if real]
    if w.options["suppress"] == "none":
        return []
    if w.options["suppress"] == "false-alarms":
        return false

    def number(at):
        t = trajectories[at[0]]
        return generator(w.seed, "control", t.round, t.prompt.id, t.sample_index, at[1]).random()

    chosen = []
    for b in range(len(trajectories)):
        own = sorted((at for at in real if at[0] == b), key=number)
        chosen += own[: sum(at[0] == b for at in false)]
    rest = sorted((at for at in real if at not in chosen), key=number)
    return chosen + rest[: len(false) - len(chosen)]


def window_loss(w: World, t: Trajectory, k: int, mine, theirs, cost) -> tuple[Tensor, int]:
    """Sum over the window of KL(y_i || p(. | prefix, window up to i)), and how many tokens that is."""
    if w.options["targets"] == "expert-window":
        along, laws = theirs, [{v: 1.0} for v in theirs]
    else:
        along = mine
        kind, regularisation = w.options["plan"], w.options["regularisation"]
        plans = transported(cost) if kind == "exact" else []
        plans += [in_order(cost)] if kind == "monotone" else []
        plans += [blurred(cost, regularisation)] if kind == "entropic" else []
        laws, *others = (laws_of(gamma, theirs, w.options["targets"]) for gamma in plans)
        assert all(are_same(laws, other) for other in others), "equally cheap plans want different things"
    value = torch.zeros((), dtype=torch.float64)
    for i, law in enumerate(laws):
        p = w.law(w.student, (*t.prompt.token_ids, *t.response_ids[:k], *along[:i]))
        value = value + sum(y * (math.log(y) - p[v]) for v, y in law.items())
    return value, len(along)


def laws_of(gamma: np.ndarray, theirs: Sequence[int], targets: str) -> list[dict[int, float]]:
    laws = []
    for row in gamma:
        law: dict[int, float] = {}
        for mass, v in zip(row, theirs, strict=True):
            if mass > 0:
                law[v] = law.get(v, 0.0) + mass / row.sum()
        if targets == "heaviest":
            law = {next(v for v in theirs if law.get(v, 0) >= max(law.values()) - 1e-9): 1.0}
        laws.append(law)
    return laws


def are_same(laws: list[dict[int, float]], others: list[dict[int, float]]) -> bool:
    return all(
        a.keys() == b.keys() and all(abs(a[v] - b[v]) < 1e-9 for v in a)
        for a, b in zip(laws, others, strict=True)
    )
