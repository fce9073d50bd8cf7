"""The maps of `mean_field` against curves measured in a finished `modular-addition` comparison: nothing is fitted.

T positions, K actions. K, T, eta and the kind of error are read from the run; the maps follow from them.
"""

from __future__ import annotations

from dataclasses import replace
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


def single_gaps(evaluation: dict[str, Any], path: maps.Path) -> list[float]:
    """Root mean square over positions of p_t(right) minus the map's, one a seed."""
    return [rms(right_T - path.right_T) for right_T in measured_right(evaluation)]


def rows(curves: dict[str, Any]) -> list[Row]:
    """What the shipped run says about the maps."""
    num_near, num = nearest_prefixes(curves)
    mean, paths = gaps(curves, "opd-f"), predicted(curves)
    single = {
        name: single_gaps(curves["end"]["opd-f"], path) for name, path in paths.items() if name != "nail"
    }
    before = single_gaps(curves["start"], paths["opd-f"])
    found = [
        Row(
            claim=f"p_t of each of {num} demo runs is nearest to the map of its own prefixes",
            source="DERIVED, demo run",
            relation="=",
            bound=num,
            measured=num_near,
            num=num,
            note=f"after {curves['steps']} steps; a run: method and seed; maps: expert's, greedy, student's prefixes; all "
            "start from kd, near the map of the expert's",
        ),
        Row(
            claim="demo, opd-f: gap to its map (RMS) over that to the fixed prefixes' map, worst seed",
            source="DERIVED, demo run",
            relation="<=",
            bound=1.0,
            measured=max(own / bc for own, bc in zip(single["opd-f"], single["bc"], strict=True)),
            num=len(curves["seeds"]),
            note=f"gaps by seed {listed(single['opd-f'])}, at the start {listed(before)}, to the fixed prefixes' map "
            f"{listed(single['bc'])}; of the mean curve {mean['opd-f']:.3f}: the seeds' gaps partly cancel",
        ),
    ]
    return [*found, *_greedy_prefix_rows(curves), _greedy_row(curves)]


def own_rows(curves: dict[str, Any]) -> list[Row]:
    """A reader's own run beside the maps: numbers side by side, none of them judged, for no claim is about that run."""
    num_near, num = nearest_prefixes(curves)
    paths, steps, source = predicted(curves), curves["steps"], "own run"
    found = [
        Row(
            claim=f"own run, {method}: validation loss in nats after {steps} steps, and its map's",
            source=source,
            relation="~",
            bound=paths[OWN_MAP[method]].loss_nats,
            measured=loss_nats(evaluation),
            num=len(curves["seeds"]),
            note=f"RMS gap in p_t by seed {listed(single_gaps(evaluation, paths[OWN_MAP[method]]))}; to the map of fixed "
            f"prefixes {listed(single_gaps(evaluation, paths['bc']))}",
        )
        for method, evaluation in curves["end"].items()
    ]
    nearest = Row(
        claim="own run: methods and seeds whose p_t is nearest to the map of their own prefixes",
        source=source,
        relation="~",
        bound=num,
        measured=num_near,
        num=num,
    )
    chain, walk = (replace(row, relation="~", source=source) for row in _greedy_prefix_rows(curves))
    greedy = replace(_greedy_row(curves), relation="~", is_refuted=False, source=source, note="")
    return [
        *found,
        nearest,
        replace(chain, claim="own run, nail-f at T = 1: share of chains that are right; a^T"),
        replace(walk, claim="own run, nail-f at T = 1: RMS of accuracy about the offset walk; about p_t"),
        replace(greedy, claim="own run, opd-f: greedy accuracy at the last position; at its optimum"),
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


def panel(curves: dict[str, Any], name: str) -> Panel:
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
    title = f"{name}, K = {curves['num_actions']}, eta = {curves['eta']:g}: after {curves['steps']} steps"
    return Panel(
        title=title,
        x_label="position",
        y_label="p_t(right) on clean prefixes",
        lines=lines,
        y_limits=(0.0, 1.0),
    )


def loss_nats(evaluation: dict[str, Any]) -> float:
    """Validation loss: mean over positions and seeds."""
    return float(np.mean(evaluation["validation_loss_nats"]["mean"]))


def reading(curves: dict[str, Any]) -> str:
    """One sentence on the run."""
    paths = predicted(curves)
    parts = [
        f"{method} {loss_nats(curves['end'][method]):.3f} (map {paths[OWN_MAP[method]].loss_nats:.3f})"
        for method in ("opd-f", "opd-r", "nail-f", "kd")
        if method in curves["end"]
    ]
    gap_S, mean = single_gaps(curves["end"]["opd-f"], paths["opd-f"]), gaps(curves, "opd-f")["opd-f"]
    single = listed(gap_S)
    before = listed(single_gaps(curves["start"], paths["opd-f"]))
    after = f" (a warm start by {curves['warm_start']})" if curves["warm_start"] else ""
    return (
        f"Nothing fitted, the validation losses of the run in nats after {curves['steps']} steps are {', '.join(parts)}, all "
        f"from {loss_nats(curves['start']):.3f} at the start{after}; single opd-f seeds are {single} off their map in p_t (RMS), "
        f"{before} at the start, and the mean of the seeds {mean:.3f}{' (opposite gaps cancel)' if mean < min(gap_S) else ''}."
    )


def listed(values: list[float], digits: int = 3) -> str:
    """Numbers with slashes between them."""
    return "/".join(f"{value:.{digits}f}" for value in values)
