"""The maps of `mean_field` against curves measured in a finished `modular-addition` comparison: nothing is fitted.

T positions, K actions. K, T, eta and the kind of error are read from the run; the maps follow from them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from understudy.theory import mean_field as maps
from understudy.theory.intervals import proportion_interval
from understudy.theory.outcome import Line, Panel, Row

Array = np.ndarray

PREFIXES = {
    "opd-f": "student's",
    "opd-r": "student's",
    "nail-f": "greedy",
    "nail-r": "greedy",
    "sft": "expert's",
    "kd": "expert's",
}
"""Whose prefixes a method learns on: what its map depends on."""

OWN_MAP = {"opd-f": "opd-f", "opd-r": "opd-r", "nail-f": "nail", "nail-r": "nail", "sft": "bc", "kd": "bc"}


def predicted(curves: dict[str, Any]) -> dict[str, maps.Path]:
    """The four maps in the run's setting: bc, nail, opd-f, opd-r."""
    num_actions, length = curves["num_actions"], curves["length"]
    right = expert_right(curves)
    return {
        "bc": maps.offline_walk(right, length, num_actions),
        "nail": maps.forward_walk(right, length, num_actions, temperature=0),
        "opd-f": maps.forward_walk(right, length, num_actions),
        "opd-r": maps.reverse_walk(maps.log_ratio(right, num_actions), length, num_actions),
    }


def expert_right(curves: dict[str, Any]) -> float:
    return maps.right_rate(curves["eta"], curves["num_actions"], curves["error"])


def measured_right(evaluation: dict[str, Any]) -> Array:
    """exp(-validation loss) by seed and position: the geometric mean over prompts of p_t(right) on clean prefixes.

    At most the arithmetic mean, which the maps are about; equal to it where the student treats all prompts alike.
    """
    return np.exp(-np.array(evaluation["validation_loss_nats"]["by_seed"]))


def rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def gaps(curves: dict[str, Any], method: str) -> dict[str, float]:
    """Root mean square over positions of p_t(right), mean over seeds, minus each map's."""
    right_T = measured_right(curves["end"][method]).mean(axis=0)
    return {name: rms(right_T - path.right_T) for name, path in predicted(curves).items()}


def nearest_prefixes(curves: dict[str, Any]) -> tuple[int, int]:
    """Of all (method, seed): how many have a p_t curve nearest to the map of their own kind of prefix, and how many are."""
    paths, kinds = (
        predicted(curves),
        {"bc": "expert's", "nail": "greedy", "opd-f": "student's", "opd-r": "student's"},
    )
    num_near = num = 0
    for method, evaluation in curves["end"].items():
        for right_T in measured_right(evaluation):
            nearest = min(paths, key=lambda name, found=right_T: rms(found - paths[name].right_T))
            num_near += kinds[nearest] == PREFIXES[method]
            num += 1
    return num_near, num


def rows(curves: dict[str, Any], long: dict[str, Any]) -> list[Row]:
    """What the run says about the maps. `long`: the same setting trained longer."""
    num_near, num = nearest_prefixes(curves)
    gap = gaps(curves, "opd-f")
    single = [rms(p_T - predicted(curves)["opd-f"].right_T) for p_T in measured_right(curves["end"]["opd-f"])]
    found = [
        Row(
            claim=f"p_t of each of {num} demo runs is nearest to the map of its own prefixes",
            source="DERIVED, demo run",
            relation="=",
            bound=num,
            measured=num_near,
            num=num,
            note=f"after {curves['steps']} steps; a run: method and seed; maps: expert's, greedy, student's prefixes",
        ),
        Row(
            claim="demo, opd-f: gap to its map (RMS) is below that to the map of fixed prefixes",
            source="DERIVED, demo run",
            relation="<=",
            bound=gap["bc"],
            measured=gap["opd-f"],
            num=len(curves["seeds"]),
            note=f"mean curve of the seeds after {curves['steps']} steps; single seeds {_list(single)}; "
            f"opd-r {gaps(curves, 'opd-r')['opd-r']:.3f}; a stage on the way, see the next row",
        ),
    ]
    return [*found, *_long_rows(long), *_greedy_prefix_rows(curves), _greedy_row(curves)]


def best_delay(curves: dict[str, Any], method: str) -> tuple[int, float]:
    """The delay of the map, in positions, that is nearest to the mean curve of the seeds, and the RMS gap it leaves."""
    path, right_T = predicted(curves)[method], measured_right(curves["end"][method]).mean(axis=0)
    distance = {delay: rms(right_T - maps.delayed(path, delay)) for delay in range(len(right_T))}
    delay = min(distance, key=distance.__getitem__)
    return delay, distance[delay]


def _long_rows(long: dict[str, Any]) -> list[Row]:
    """Where the maps are wrong about a student that trains on."""
    num_actions, right = long["num_actions"], expert_right(long)
    gap, ratios = gaps(long, "opd-f"), []
    for method in ("opd-f", "opd-r"):
        first_S = measured_right(long["end"][method])[:, 0]
        kl_S = np.array(long["end"][method]["expert_kl_nats"]["by_seed"])[:, 1]
        ratios += [
            float(kl / maps.blind_kl_floor(c, right, num_actions))
            for kl, c in zip(kl_S, first_S, strict=True)
        ]
    (delay_f, rest_f), (delay_r, rest_r) = best_delay(long, "opd-f"), best_delay(long, "opd-r")
    steps = long["steps"]
    return [
        Row(
            claim=f"demo, opd-f, {steps} steps: gap to its map is below that to the fixed prefixes' map",
            source="DERIVED; longer demo run",
            relation="<=",
            bound=gap["bc"],
            measured=gap["opd-f"],
            num=len(long["seeds"]),
            is_refuted=True,
            note=f"it rises above its map; the map delayed by {delay_f} positions is {rest_f:.3f} off (opd-r: {delay_r}, "
            f"{rest_r:.3f}); the delay is fitted",
        ),
        Row(
            claim="a trained student cannot tell poisoned prefixes apart (KL over a blind one's)",
            source="DERIVED, assumption; longer demo run",
            relation=">=",
            bound=1.0,
            measured=max(ratios),
            num=len(ratios),
            is_refuted=True,
            note=f"second position, {steps} steps; opd-f and opd-r by seed: {_list(ratios, 2)}; below 1 it does tell",
        ),
    ]


def _greedy_prefix_rows(curves: dict[str, Any]) -> list[Row]:
    """What follows for nail-f: samples at T = 1 err as the noisy law does, and the errors walk on."""
    num_actions, length = curves["num_actions"], curves["length"]
    evaluation = curves["end"]["nail-f"]
    right_T = measured_right(evaluation).mean(axis=0)
    sampled_T = np.array(evaluation["accuracy_sampled"]["mean"])
    chains, num_chains = curves["chains_right"]["nail-f"], curves["num_chains"]["nail-f"]
    low, high = proportion_interval(chains, num_chains)
    return [
        Row(
            claim=f"nail-f sampled at T = 1 writes a right chain of {length} with probability a^{length}",
            source="DERIVED, demo run",
            relation="=",
            bound=expert_right(curves) ** length,
            measured=chains / num_chains,
            low=low,
            high=high,
            num=num_chains,
        ),
        Row(
            claim="nail-f at T = 1: token accuracy follows a walk on offsets more closely than p_t",
            source="DERIVED, demo run",
            relation="<=",
            bound=rms(sampled_T - right_T),
            measured=rms(sampled_T - maps.marginal_right(right_T, num_actions)),
            num=num_chains,
            note="RMS over positions; the walk: the student adds to its own last token, right or wrong",
        ),
    ]


def _greedy_row(curves: dict[str, Any]) -> Row:
    """The optimum of opd-f is right greedily everywhere; its student is not."""
    greedy = curves["end"]["opd-f"]["accuracy_greedy"]["mean"][-1]
    return Row(
        claim="demo, opd-f: greedy decoding is right at the last position, as at its optimum",
        source="DERIVED, demo run",
        relation=">=",
        bound=1.0,
        measured=greedy,
        num=curves["prompts"] * len(curves["seeds"]),
        is_refuted=True,
        note=f"1/K is {1 / curves['num_actions']:.2f}; the margin of the optimum there, {margin_at_end(curves):.1e}, is "
        "too small to be learnt",
    )


def margin_at_end(curves: dict[str, Any]) -> float:
    """Signal of opd-f's optimum at the last position."""
    path = predicted(curves)["opd-f"]
    return float(maps.signal(path, expert_right(curves), curves["num_actions"])[-1])


def panel(curves: dict[str, Any]) -> Panel:
    """p_t(right) by position: measured, and by the maps."""
    position = list(range(1, curves["length"] + 1))
    paths = predicted(curves)
    lines = []
    shown = [name for name in ("nail-f", "kd", "opd-f", "opd-r") if name in curves["end"]]
    for method in shown:
        right_ST = measured_right(curves["end"][method])
        lines.append(
            Line(
                label=f"{method}, {len(right_ST)} seeds",
                x=position,
                y=right_ST.mean(axis=0).tolist(),
                low=right_ST.min(axis=0).tolist(),
                high=right_ST.max(axis=0).tolist(),
                group=method,
            )
        )
        lines.append(
            Line(
                label=f"map of {method}",
                x=position,
                y=paths[OWN_MAP[method]].right_T.tolist(),
                role="predicted",
                group=method,
            )
        )
    title = f"Demo, K = {curves['num_actions']}, eta = {curves['eta']:g}: after {curves['steps']} steps"
    return Panel(
        title=title,
        x_label="position",
        y_label="p_t(right) on clean prefixes",
        lines=lines,
        y_limits=(0.0, 1.0),
    )


def reading(curves: dict[str, Any]) -> str:
    """One sentence on the run."""
    paths = predicted(curves)

    def loss(method: str) -> float:
        return float(np.mean(curves["end"][method]["validation_loss_nats"]["mean"]))

    parts = [
        f"{method} {loss(method):.3f} (map {paths[OWN_MAP[method]].loss_nats:.3f})"
        for method in ("opd-f", "opd-r", "nail-f", "kd")
        if method in curves["end"]
    ]
    start = math.fsum(curves["start"]["validation_loss_nats"]["mean"]) / curves["length"]
    return (
        f"Nothing fitted, the demo's validation losses in nats after {curves['steps']} steps are {', '.join(parts)}, from "
        f"{start:.3f} at the start."
    )


def reading_long(long: dict[str, Any]) -> str:
    """One sentence on what the longer run shows."""
    delay, rest = best_delay(long, "opd-f")
    loss = float(np.mean(long["end"]["opd-f"]["validation_loss_nats"]["mean"]))
    return (
        f"That match is a stage: after {long['steps']} steps opd-f stands at {loss:.3f}, better than its map, since the "
        f"student has learnt to tell poisoned prefixes apart at the first positions (the map delayed by {delay} positions "
        f"is within {rest:.3f} of its curve)."
    )


def _list(values: list[float], digits: int = 3) -> str:
    return "/".join(f"{value:.{digits}f}" for value in values)
