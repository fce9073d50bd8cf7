"""The worst cases of the inequalities between clean and noisy distances: random problems, local search, extremal chains.

An inequality is measured by its ratio left / right: above 1 it is false, near 1 it is tight.

N instances, H horizon, P search parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.optimize import minimize

from understudy.theory import noise_geometry as geometry
from understudy.theory.bounds import noise as bounds
from understudy.theory.noise_geometry import Instances
from understudy.theory.outcome import Progress, silent

Array = np.ndarray

Ratio = Callable[[Instances], Array]


def share(left: Array, right: Array, base: Array) -> Array:
    """left / right; 0 where the base of the bound is so small that rounding would decide, or the bound is infinite."""
    is_clear = (base > 1e-9) & (right > 0)
    return np.where(is_clear, left / np.where(is_clear, right, 1), 0)


def one_step_dominated(inst: Instances, factor: Callable[..., bounds.Number]) -> Array:
    noisy = geometry.noisy_distance(inst)
    right = np.asarray(factor(geometry.kappa_of(inst), inst.eta_N)) * noisy
    return share(geometry.clean_distance(inst), right, noisy)


def one_step_free(inst: Instances) -> Array:
    noisy = geometry.noisy_distance(inst)
    return share(geometry.clean_distance(inst), np.asarray(bounds.step_bound(noisy, inst.eta_N)), noisy)


def labels(inst: Instances) -> Array:
    """Not divided by the constant of Lemma 4."""
    label = geometry.label_distance(inst)
    return share(geometry.clean_distance(inst), label, label)


def offline_dominated(inst: Instances, bound: Callable[..., bounds.Number]) -> Array:
    noisy, horizon = geometry.noisy_distance(inst), inst.student_NHSA.shape[1]
    right = np.asarray(bound(noisy, geometry.kappa_of(inst), inst.eta_N, horizon))
    return share(geometry.clean_distance(inst), right, noisy)


def offline_free(inst: Instances) -> Array:
    noisy = geometry.noisy_distance(inst)
    right = np.asarray(bounds.offline_bound(noisy, inst.eta_N, inst.student_NHSA.shape[1]))
    return share(geometry.clean_distance(inst), right, noisy)


def online_dominated(inst: Instances) -> Array:
    noisy = geometry.noisy_label_distance(inst)
    right = np.asarray(bounds.online_bound_dominated(noisy, geometry.kappa_of(inst), inst.eta_N))
    return share(geometry.clean_distance(inst), right, noisy)


def online_free(inst: Instances) -> Array:
    noisy = geometry.noisy_label_distance(inst)
    right = np.asarray(bounds.online_bound(noisy, inst.eta_N, inst.student_NHSA.shape[1]))
    return share(geometry.clean_distance(inst), right, noisy)


def divergences(inst: Instances) -> Array:
    noisy = geometry.noisy_label_distance(inst)
    return share(noisy, np.asarray(bounds.divergence_bound(*geometry.noisy_label_divergences(inst))), noisy)


def noise_on_labels(inst: Instances) -> Array:
    label = geometry.label_distance(inst)
    return share(geometry.noisy_label_distance(inst), label, label)


def regret_root(inst: Instances) -> Array:
    """TV / D, of one step or of few: the constant before R sqrt(D^2)."""
    clean = geometry.clean_distance(inst)
    return share(geometry.total_variation(inst), np.sqrt(clean), clean)


ONE_STEP: dict[str, Ratio] = {
    "Lemma 2": partial(one_step_dominated, factor=bounds.step_factor),
    "Lemma 2, sharp": partial(one_step_dominated, factor=bounds.sharp_step_factor),
    "Lemma 3": one_step_free,
    "regret": regret_root,
}
MANY_STEPS: dict[str, Ratio] = {
    "Lemma 4": labels,
    "Thm 6, dominated": partial(offline_dominated, bound=bounds.offline_bound_dominated),
    "Thm 6, sharp": partial(offline_dominated, bound=bounds.offline_bound_sharp),
    "Thm 6": offline_free,
    "Thm 7, dominated": online_dominated,
    "Thm 7": online_free,
    "Cor 1": divergences,
    "noise on labels": noise_on_labels,
}


@dataclass(frozen=True, kw_only=True)
class Found:
    """The largest ratios of the search, by inequality and horizon, and how many problems were tried."""

    largest: dict[tuple[str, int], float]
    num: dict[str, int]

    def over_horizons(self, name: str) -> float:
        return max(value for (key, _), value in self.largest.items() if key == name)


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How hard to look for a worst case."""

    etas: Sequence[float]
    num_one_step: int
    """Random one-step problems for each number of actions 2, 3, 4."""
    num_random: int
    """Random problems for each of the sizes H 1 to `max_horizon`, S 2 to 4, A 2 to 4."""
    max_horizon: int
    num_climbers: int
    num_rounds: int
    """Steps of the local search from each of the climbers."""
    climb_horizons: Sequence[int]


def search(effort: Effort, generator: np.random.Generator, progress: Progress = silent) -> Found:
    """Random problems of every size, then local search from random ones and from the families."""
    largest: dict[tuple[str, int], float] = {}
    num: dict[str, int] = {}

    def note(name: str, horizon: int, ratio_N: Array, tried: int) -> None:
        largest[name, horizon] = max(largest.get((name, horizon), 0.0), float(ratio_N.max()))
        num[name] = num.get(name, 0) + tried

    for num_actions in (2, 3, 4):
        inst = geometry.random_instances(effort.num_one_step, 1, 1, num_actions, effort.etas, generator)
        for name, ratio in ONE_STEP.items():
            note(name, 1, ratio(inst), effort.num_one_step)
    for horizon in range(1, effort.max_horizon + 1):
        for num_states in (2, 3, 4):
            for num_actions in (2, 3, 4):
                inst = geometry.random_instances(
                    effort.num_random, horizon, num_states, num_actions, effort.etas, generator
                )
                for name, ratio in MANY_STEPS.items():
                    note(name, horizon, ratio(inst), effort.num_random)
        progress(0.4 * horizon / effort.max_horizon)
    etas, half = np.asarray(effort.etas, dtype=float), effort.num_climbers // 2
    for done, horizon in enumerate(effort.climb_horizons, start=1):
        single = geometry.random_instances(effort.num_climbers, 1, 1, 3, effort.etas, generator)
        begun = geometry.random_instances(effort.num_climbers, horizon, 2, 3, effort.etas, generator)
        several = geometry.joined(
            [begun, geometry.lock(horizon, etas), geometry.lock(horizon, etas, leak=1e-4)]
        )
        for name, ratio in (ONE_STEP | MANY_STEPS).items():
            start = single if name in ONE_STEP else several
            best_N, _ = climb(ratio, start, effort.num_rounds, generator, num_lifted=half)
            note(name, 1 if name in ONE_STEP else horizon, best_N, len(best_N) * (effort.num_rounds + 1))
        progress(0.4 + 0.5 * done / len(effort.climb_horizons))
    return Found(largest=largest, num=num)


def worst_leak_chain(
    horizon: int, warm_HX: Array | None = None, warm_odds: float = 1.5
) -> tuple[float, Array, float]:
    """The largest clean / label distance of `leak_chain` as the leak vanishes: (ratio, angles [H - 2, 2], odds).

    With o = sqrt(odds), w = (o - 1)^2 / 2 and chain distances c (clean), l (labels):  ratio = (w + o c) / (w + l).

    Args:
        warm_HX: angles of a shorter horizon to start from, stretched.
    Raises:
        ValueError: a horizon below 2.
    """
    if horizon < 2:
        raise ValueError(f"horizon must be at least 2, a leak and a step that differs, got {horizon}.")
    num = horizon - 2
    if warm_HX is None or not len(warm_HX):
        warm_HX = np.array([[0.62, 1.2]])
    places, wanted = np.linspace(0, 1, len(warm_HX)), np.linspace(0, 1, num)
    angles = np.stack([np.interp(wanted, places, warm_HX[:, k]) for k in (0, 1)], axis=-1)
    # More steps, each with less to do: the chance to leave the chain, cos^2, shrinks as the steps grow in number.
    angles = np.pi / 2 - (np.pi / 2 - angles) * np.sqrt(len(warm_HX) / max(num, 1))
    found = minimize(
        _leak_ratio,
        np.concatenate([[np.sqrt(warm_odds)], angles.ravel()]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, 10), *[(0, np.pi / 2)] * (2 * num)],
        options={"maxiter": 3000, "maxfun": 6000, "ftol": 1e-13, "gtol": 1e-8},
    )
    return -float(found.fun), found.x[1:].reshape(num, 2), float(found.x[0] ** 2)


def _leak_ratio(parameters: Array) -> tuple[float, Array]:
    """Minus the ratio of `worst_leak_chain`, and its gradient by reverse accumulation."""
    root, angles = parameters[0], parameters[1:].reshape(-1, 2)
    clean, label, tape = 1.0, 1.0, []
    for student, expert in angles[::-1]:
        tape.append((student, expert, clean, label))
        step = 2 * np.sin((student - expert) / 2) ** 2
        clean = step + np.sin(student) * np.sin(expert) * clean
        label = step + (1 - step) * np.sin(student) ** 2 * label
    start = 0.5 * (root - 1) ** 2
    top, bottom = start + root * clean, start + label
    gradient = np.empty_like(parameters)
    gradient[0] = ((root - 1 + clean) - top / bottom * (root - 1)) / bottom
    d_clean, d_label = root / bottom, -top / bottom**2
    for place, (student, expert, clean, label) in enumerate(reversed(tape)):
        step, slope = 2 * np.sin((student - expert) / 2) ** 2, np.sin(student - expert)
        stay = np.sin(student) ** 2
        d_step = d_clean + d_label * (1 - stay * label)
        gradient[1 + 2 * place] = (
            d_step * slope
            + d_clean * np.cos(student) * np.sin(expert) * clean
            + d_label * (1 - step) * np.sin(2 * student) * label
        )
        gradient[2 + 2 * place] = -d_step * slope + d_clean * np.sin(student) * np.cos(expert) * clean
        d_clean, d_label = d_clean * np.sin(student) * np.sin(expert), d_label * (1 - step) * stay
    return -top / bottom, -gradient


def parameters_of(inst: Instances, num_lifted: int = 0) -> Array:
    """Logits [N, P] of everything but the start and eta; -inf where there is no mass.

    In the first `num_lifted` instances probabilities below 1e-9 are lifted to it, so that their supports can grow. Not in
    all, for it brings noise into the supports that was outside, and kappa with it.
    """
    tables = (inst.student_NHSA, inst.expert_NHSA, inst.nu_NHSA, inst.transition_NHSAS)
    prob_NP = np.concatenate([table.reshape(len(table), -1) for table in tables], axis=1)
    prob_NP[:num_lifted] = np.maximum(prob_NP[:num_lifted], 1e-9)
    with np.errstate(divide="ignore"):
        return np.log(prob_NP)


def instances_of(theta_NP: Array, like: Instances) -> Instances:
    """The inverse of `parameters_of`, with the start and eta of `like`."""
    tables, begin = [], 0
    for table in (like.student_NHSA, like.expert_NHSA, like.nu_NHSA, like.transition_NHSAS):
        end = begin + table[0].size
        logits = theta_NP[:, begin:end].reshape(table.shape)
        weight = np.exp(logits - logits.max(-1, keepdims=True, initial=-np.inf))
        tables.append(weight / weight.sum(-1, keepdims=True))
        begin = end
    return Instances(
        start_NS=like.start_NS, student_NHSA=tables[0], expert_NHSA=tables[1], nu_NHSA=tables[2],
        transition_NHSAS=tables[3], eta_N=like.eta_N,
    )  # fmt: skip


def climb(
    ratio: Callable[[Instances], Array],
    inst: Instances,
    num_rounds: int,
    generator: np.random.Generator,
    num_lifted: int = 0,
) -> tuple[Array, Instances]:
    """Random local search, every instance by itself: (largest ratios [N], the instances that reach them).

    A round moves a random subset of the logits (few or all) by a normal step of a random size (0.01 to 5) and keeps
    what is better.
    """
    theta_NP = parameters_of(inst, num_lifted)
    best_N = ratio(instances_of(theta_NP, inst))
    num, num_parameters = theta_NP.shape
    for _ in range(num_rounds):
        share = generator.choice([1.5 / num_parameters, 5 / num_parameters, 0.2, 1], size=(num, 1))
        size = 10 ** generator.uniform(-2, 0.7, (num, 1))
        move = generator.standard_normal(theta_NP.shape) * size
        tried = theta_NP + np.where(generator.random(theta_NP.shape) < share, move, 0)
        value_N = ratio(instances_of(tried, inst))
        is_better = value_N > best_N
        theta_NP[is_better], best_N[is_better] = tried[is_better], value_N[is_better]
    return best_N, instances_of(theta_NP, inst)
