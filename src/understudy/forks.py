"""Probes a student and its expert for forks: from a run or a recipe to a folder with the record and its page.

A call that was killed goes on where it stopped, and the same call again computes nothing (`fork_subjects`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from understudy.diagnostics.fork_probe import Ahead, Chosen, choose_tokens, costs_of, look_ahead
from understudy.diagnostics.forks import GROUPS, Group, ProbedToken, probe_forks
from understudy.files import finite, write_json
from understudy.fork_subjects import (
    SHOWN_PREFIX_TOKENS,
    Probing,
    Scene,
    Settings,
    Subject,
    folder_for,
    kept_record,
    key_of,
    make_folder,
    part_file,
    probe_table,
    ready,
    settings_of,
    subject_of,
    told_of,
    written_by,
)
from understudy.objectives.transport import exact_plan
from understudy.progress import Bar, one_bar
from understudy.records import Trajectory
from understudy.reports.forks import PAGE, PROBE, write_forks_report
from understudy.rollouts.sampler import Response
from understudy.rollouts.windows import Spot
from understudy.versions import versions

NUM_SHOWN = 12
"""Forks that the page shows side by side: of the high-loss tokens, evenly over their distances."""


def find_forks(
    place: str | Path,
    *,
    probing: Probing | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    seed: int | None = None,
    out: str | Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Do high losses lead to other futures? What student and expert say next at high-loss, random and low-loss tokens.

    Args:
        place: a finished run's folder (its final student, its recipe's expert and task), or a recipe (the student that it
            starts with; stages that are missing are trained first).
        overrides: of the recipe, as for `load_recipe`: `evaluate.prompts` and `evaluate.samples_per_prompt` say how much is
            written.
        seed: of responses, windows and choices; None: the recipe's. In a recipe's paths it also stands for `{seed}`.
        out: None: `forks` in the run's folder, `runs/NAME-forks` for a recipe. Written: forks.json (what is returned, but
            `folder`), forks.html, figures, and `parts/`.
    Raises:
        ConfigError, DataError, ModelError, TrainingError: one sentence on what does not fit.
    """
    console = console or Console(stderr=True)
    subject = subject_of(place, overrides, seed)
    settings = settings_of(probing or Probing(), subject.recipe)
    folder = folder_for(subject, out)
    with ready(subject, settings, console) as scene:
        make_folder(folder)
        key = key_of(scene.key, probe_table(settings), [p.id for p in scene.prompts], scene.samples)
        record = kept_record(folder / PROBE, key)
        if record is not None and (folder / PAGE).is_file():
            console.print(f"probed before: {folder / PROBE}", highlight=False, soft_wrap=True)
            return record | {"folder": str(folder)}
        record = _probed(scene, subject, settings, folder, console)
    record = finite({"key": key, **record, "versions": versions()})
    write_json(folder / PROBE, record)
    write_forks_report(folder)
    return record | {"folder": str(folder)}


def _probed(
    scene: Scene, subject: Subject, settings: Settings, folder: Path, console: Console
) -> dict[str, Any]:
    with one_bar(console, "forks", len(GROUPS) * settings.per_group, unit="token") as bar:
        written = written_by(scene, folder, bar.hint)
        pair = scene.pair
        chosen = choose_tokens(
            written.trajectories,
            written.losses,
            per_group=settings.per_group,
            quantile=settings.quantile,
            spacing=settings.spacing,
            seed=pair.seed,
        )
        groups: dict[Group, dict[str, Any]] = {
            group: _group(scene, written.key, group, tokens, settings, folder, bar, i * settings.per_group)
            for i, (group, tokens) in enumerate(chosen.items())
        }
    probe = probe_forks(
        [
            ProbedToken(
                trajectory=row["prompt"], group=group, loss_nats=row["loss_nats"], distance=row["distance"]
            )
            for group, record in groups.items()
            for row in record["tokens"]
        ],
        seed=pair.seed,
    )
    low = next(row for row in probe.quartiles if row.group == "low")
    tokens = [
        {"group": group, **row, "is_false_alarm": group == "high" and row["distance"] < low.upper.value}
        for group, record in groups.items()
        for row in record["tokens"]
    ]
    return {
        **told_of(subject, scene, settings),
        "num_responses": len(written.trajectories),
        "num_tokens": sum(map(len, written.losses)),
        "losses": _quantiles([loss for row in written.losses for loss in row]),
        "groups": [_group_summary(group, record["tokens"]) for group, record in groups.items()],
        "low_upper": low.upper.value,
        "probe": probe.as_record(),
        "seconds": _added(written.seconds, *(record["seconds"] for record in groups.values())),
        "shown": _shown(scene, tokens, written.trajectories, settings),
        "tokens": tokens,
    }


def _group(
    scene: Scene,
    rollouts_key: str,
    group: Group,
    tokens: Sequence[Chosen],
    settings: Settings,
    folder: Path,
    bar: Bar,
    done: int,
) -> dict[str, Any]:
    """The near futures of a group's tokens; kept, and read where they are there."""
    key = key_of(rollouts_key, group, probe_table(settings))
    file = part_file(folder, group, key)
    record = kept_record(file, key)
    if record is None:
        # Neighbours in length, and places of one response, side by side.
        order = sorted(range(len(tokens)), key=lambda i: _place(tokens[i]))
        found: dict[int, Ahead] = {}
        seconds: dict[str, float] = {}
        for start in range(0, len(order), scene.pair.batch_size):
            piece = order[start : start + scene.pair.batch_size]
            bar.hint(f"{group}: looking ahead")
            ahead, spent = look_ahead(scene.pair, [tokens[i].spot for i in piece], settings.looking)
            found.update(zip(piece, ahead, strict=True))
            seconds = _added(seconds, spent)
            bar.move(done + start + len(piece))
        rows = [_token(tokens[i], found[i]) for i in range(len(tokens))]
        record = {"key": key, "group": group, "seconds": seconds, "tokens": rows}
        write_json(file, record)
    bar.move(done + len(tokens), f"{group} tokens: {len(tokens)} looked ahead from")
    return record


def _place(token: Chosen) -> tuple[int, str, int]:
    t = token.spot.trajectory
    return len(t.prompt.token_ids) + len(t.response_ids), t.id, token.spot.position


def _token(token: Chosen, ahead: Ahead) -> dict[str, Any]:
    t = token.spot.trajectory
    return {
        "prompt": t.prompt.id,
        "sample": t.sample_index,
        "position": token.spot.position,
        "token": t.response_ids[token.spot.position],
        "loss_nats": token.loss_nats,
        "distance": ahead.distance,
        "student_ids": ahead.student.token_ids,
        "expert_ids": ahead.expert.token_ids,
    }


def _group_summary(group: Group, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    same = sum(list(row["student_ids"]) == list(row["expert_ids"]) for row in rows)
    return {
        "group": group,
        "num_tokens": len(rows),
        "num_prompts": len({row["prompt"] for row in rows}),
        "losses": _quantiles([row["loss_nats"] for row in rows]),
        "distances": _quantiles([row["distance"] for row in rows]),
        "num_identical": same,
        "identical_share": same / len(rows),
    }


def _shown(
    scene: Scene,
    tokens: Sequence[Mapping[str, Any]],
    trajectories: Sequence[Trajectory],
    settings: Settings,
) -> list[dict[str, Any]]:
    """Some high-loss tokens with both futures as text and the plan between them, evenly over their distances."""
    high = sorted((row for row in tokens if row["group"] == "high"), key=lambda row: row["distance"])
    picked = np.unique(np.linspace(0, len(high) - 1, NUM_SHOWN).round().astype(int)).tolist()
    of = {(t.prompt.id, t.sample_index): t for t in trajectories}
    return [
        _told_fork(scene, high[i], of[high[i]["prompt"], high[i]["sample"]], settings)
        for i in reversed(picked)
    ]


def _told_fork(
    scene: Scene, row: Mapping[str, Any], trajectory: Trajectory, settings: Settings
) -> dict[str, Any]:
    spot = Spot(trajectory=trajectory, position=row["position"])
    student, expert = (Response(tuple(row[f"{who}_ids"]), (), (), "length") for who in ("student", "expert"))
    costs = costs_of(scene.pair, [spot], [student], [expert], settings.looking.embedding)
    (plan_IJ,) = exact_plan(costs.cost_BIJ)
    decode = scene.task.decode
    prefix = spot.prefix_ids
    return {
        **{name: row[name] for name in ("prompt", "sample", "position", "loss_nats", "distance")},
        "is_false_alarm": row["is_false_alarm"],
        "prefix": decode(prefix[-SHOWN_PREFIX_TOKENS:]),
        "is_prefix_cut": len(prefix) > SHOWN_PREFIX_TOKENS,
        "said": decode([row["token"]]),
        "student": [decode([token]) for token in student.token_ids],
        "expert": [decode([token]) for token in expert.token_ids],
        "plan": [
            [i, j, float(plan_IJ[i, j]), float(costs.cost_BIJ[0, i, j])]
            for i, j in plan_IJ.nonzero().tolist()
        ],
    }


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    names = ("lowest", "lower", "median", "upper", "highest")
    return dict(zip(names, np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist(), strict=True))


def _added(*parts: Mapping[str, float]) -> dict[str, float]:
    """Seconds by what they were spent on, summed."""
    total: dict[str, float] = {}
    for part in parts:
        for name, seconds in part.items():
            total[name] = total.get(name, 0.0) + seconds
    return total
