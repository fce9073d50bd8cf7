"""Longer training against the maps of `mean_field`: their match with the demo is a stage, not where students end.

T positions, K actions. `long` is the shipped comparison of 200 steps, `series` one opd-f run of 800 steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from understudy.theory import mean_field as maps
from understudy.theory.mean_field_demo import (
    expert_right,
    gaps,
    listed,
    loss_nats,
    measured_right,
    nearest_prefixes,
    predicted,
    rms,
)
from understudy.theory.outcome import Row

Array = np.ndarray

DELAY = 2
"""The delay of the map that is nearest to 200 steps of opd-f: the end state that 800 steps refute."""


def nearest_delay(path: maps.Path, right_T: Array) -> tuple[int, float]:
    """The delay of a map, in positions, that is nearest to a curve, and the RMS gap it leaves."""
    distance = {delay: rms(right_T - maps.delayed(path, delay)) for delay in range(len(right_T))}
    delay = min(distance, key=distance.__getitem__)
    return delay, distance[delay]


def best_delay(curves: dict[str, Any], method: str) -> tuple[int, float]:
    """`nearest_delay` of the method's own map to the mean curve of the seeds."""
    return nearest_delay(predicted(curves)[method], measured_right(curves["end"][method]).mean(axis=0))


def rows(long: dict[str, Any], series: dict[str, Any]) -> list[Row]:
    """Where the maps are wrong about a student that trains on."""
    num_near, num = nearest_prefixes(long)
    gap, ratios, steps = gaps(long, "opd-f"), blind_ratios(long), long["steps"]
    (delay_f, rest_f), (delay_r, rest_r) = best_delay(long, "opd-f"), best_delay(long, "opd-r")
    source = "DERIVED; longer demo run"
    return [
        Row(
            claim=f"p_t of each of {num} runs of {steps} steps is nearest to the map of its own prefixes",
            source=source,
            relation="=",
            bound=num,
            measured=num_near,
            num=num,
            is_refuted=True,
            note=f"{', '.join(long['end'])}; opd-f's mean curve is {gap['opd-f']:.3f} off its map, {gap['bc']:.3f} off that of "
            f"fixed prefixes, and {rest_f:.3f} off it delayed by {delay_f} positions (opd-r: {delay_r}, {rest_r:.3f}; fitted)",
        ),
        Row(
            claim="a trained student cannot tell poisoned prefixes apart (KL over a blind one's)",
            source="DERIVED, assumption; longer demo run",
            relation=">=",
            bound=1.0,
            measured=max(ratios),
            num=len(ratios),
            is_refuted=True,
            note=f"second position, {steps} steps; opd-f and opd-r by seed: {listed(ratios, 2)}; below 1 it does tell",
        ),
        _series_row(series),
    ]


def blind_ratios(long: dict[str, Any]) -> list[float]:
    """KL at the second position over the least of a student that cannot tell, by method (opd-f, opd-r) and seed."""
    num_actions, right, ratios = long["num_actions"], expert_right(long), []
    for method in ("opd-f", "opd-r"):
        first_S = measured_right(long["end"][method])[:, 0]
        kl_S = np.array(long["end"][method]["expert_kl_nats"]["by_seed"])[:, 1]
        ratios += [
            float(kl / maps.blind_kl_floor(c, right, num_actions))
            for kl, c in zip(kl_S, first_S, strict=True)
        ]
    return ratios


def series_losses(series: dict[str, Any]) -> dict[int, float]:
    """Step -> validation loss in nats, averaged over positions."""
    losses = [float(np.mean(loss_T)) for loss_T in series["validation_loss_nats"]]
    return dict(zip(series["steps"], losses, strict=True))


def series_delay(series: dict[str, Any]) -> int:
    """Delay of opd-f's map that is nearest to the last curve of the series."""
    return nearest_delay(_series_map(series), np.exp(-np.array(series["validation_loss_nats"][-1])))[0]


def _series_map(series: dict[str, Any]) -> maps.Path:
    return maps.forward_walk(expert_right(series), series["length"], series["num_actions"])


def _series_row(series: dict[str, Any]) -> Row:
    losses = series_losses(series)
    last = max(losses)
    delayed_T = maps.delayed(_series_map(series), DELAY)
    return Row(
        claim=f"opd-f ends at its map delayed by {DELAY}: after {last} steps its loss is no lower",
        source="DERIVED; one demo run, one seed",
        relation=">=",
        bound=-float(np.log(delayed_T).mean()),
        measured=losses[last],
        num=series["prompts"],
        is_refuted=True,
        note=f"loss in nats by step: {_by_step(losses)}; the nearest delay is now {series_delay(series)}; "
        f"map {_series_map(series).loss_nats:.3f}",
    )


def _by_step(losses: dict[int, float]) -> str:
    return ", ".join(f"{loss:.3f} ({step})" for step, loss in losses.items())


def reading(long: dict[str, Any], series: dict[str, Any]) -> str:
    """One sentence on what the longer runs show."""
    delay, rest = best_delay(long, "opd-f")
    num_near, num = nearest_prefixes(long)
    losses = series_losses(series)
    last = max(losses)
    half = max(step for step in losses if step <= last / 2)
    trend = (
        "still falling"
        if losses[last] < min(loss for step, loss in losses.items() if step < last)
        else "no longer falling"
    )
    return (
        f"The demo's match is a stage: after {long['steps']} steps {num_near} of {num} runs are nearest to their own map, and "
        f"opd-f stands at {loss_nats(long['end']['opd-f']):.3f}, better than its map, since the student has learnt to tell "
        f"poisoned prefixes apart at the first positions (the map delayed by {delay} is within {rest:.3f}); nor is that "
        f"the end: one seed of {last} steps goes from {losses[0]:.3f} over {losses[half]:.3f} (step {half}) to "
        f"{losses[last]:.3f}, {trend}."
    )
