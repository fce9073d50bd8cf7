"""Corrects a student at one prefix after another: from a run or a recipe to a folder with the record and its page.

Every prefix is kept as soon as it is done; the same call goes on behind it (`fork_subjects`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from understudy.diagnostics.fork_probe import Chosen, choose_tokens
from understudy.diagnostics.local_correction import ARMS, Outcome, correct, summarise
from understudy.errors import ConfigError
from understudy.files import finite, write_json
from understudy.fork_subjects import (
    SHOWN_PREFIX_TOKENS,
    Probing,
    Scene,
    Settings,
    folder_for,
    key_of,
    make_folder,
    part_file,
    ready,
    require_setting,
    settings_of,
    subject_of,
    told_of,
    written_by,
)
from understudy.progress import Bar, one_bar
from understudy.reports.forks import CORRECTION, write_forks_report
from understudy.versions import versions

NUM_EXAMPLES = 6
"""Corrected prefixes whose windows the page shows as text."""


def correct_forks(
    place: str | Path,
    *,
    probing: Probing | None = None,
    steps: int = 5,
    rates: Sequence[float] = (),
    num_seeds: int = 1,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    seed: int | None = None,
    out: str | Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """A few steps on one prefix each: how near they bring the student's window to the expert's (`diagnostics.local_correction`).

    Windows, plan, targets and their weight are those of the recipe's near-future method, or of that row where its method is
    another one; betas, weight decay and clipping those of its [optimizer].

    Args:
        place, overrides, seed, out: as in `find_forks`. Written: correction.json (what is returned, but `folder`), the page, and
            in `parts/` a line for every prefix as soon as it is done.
        probing: which prefixes: `per_group` of every seed, from before high-loss tokens.
        rates: AdamW's learning rates, a table each and none chosen; empty: the recipe's optimizer.learning_rate.
        num_seeds: from `seed` on. Each has its own responses, and in a recipe its own expert where the path has `{seed}`.
    Raises:
        ConfigError, DataError, ModelError, TrainingError: one sentence on what does not fit.
    """
    console = console or Console(stderr=True)
    first = subject_of(place, overrides, seed)
    settings = settings_of(probing or Probing(), first.recipe, steps=steps)
    if settings.correcting.targets not in ("plan", "heaviest"):
        raise ConfigError(
            f"method.targets = {settings.correcting.targets!r} is what the arm sft does. Take plan or heaviest for the others."
        )
    rates = tuple(dict.fromkeys(rates or (first.recipe.optimizer.learning_rate,)))
    for rate in rates:
        require_setting(0 < rate < math.inf, "--rates", "numbers above 0", rate)
    require_setting(num_seeds >= 1, "--seeds", "at least 1", num_seeds)
    folder = folder_for(first, out)
    told: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    per_seed = settings.per_group * len(rates)
    with one_bar(console, "correct", num_seeds * per_seed, unit="prefix") as bar:
        for number in range(num_seeds):
            subject = first if number == 0 else subject_of(place, overrides, first.seed + number)
            with ready(subject, settings, console, keeps_lora=True) as scene:
                make_folder(folder)
                told = told or told_of(subject, scene, settings)
                rows += _corrected(scene, settings, rates, folder, bar, number * per_seed)
    told |= {
        "seeds": [first.seed + i for i in range(num_seeds)],
        "correcting": asdict(settings.correcting),
    }
    record = finite({**_correction_record(told, rates, rows), "versions": versions()})
    write_json(folder / CORRECTION, record)
    write_forks_report(folder)
    return record | {"folder": str(folder)}


def _corrected(
    scene: Scene,
    settings: Settings,
    rates: Sequence[float],
    folder: Path,
    bar: Bar,
    done: int,
) -> list[dict[str, Any]]:
    """A row for every prefix and rate of a seed, in their order; each is kept as soon as it is there."""
    written = written_by(scene, folder, bar.hint)
    chosen = choose_tokens(
        written.trajectories,
        written.losses,
        per_group=settings.per_group,
        quantile=settings.quantile,
        spacing=settings.spacing,
        seed=scene.pair.seed,
        groups=("high",),
    )["high"]
    key = key_of(scene.key, "correction", asdict(settings.correcting))
    file = part_file(folder, "correction", key).with_suffix(".jsonl")
    kept = {_name(row): row for row in _lines(file)}
    rows = []
    with file.open("a", encoding="utf-8") as lines:
        for token in chosen:
            for rate in rates:
                t = token.spot.trajectory
                row: dict[str, Any] = {
                    "seed": scene.pair.seed,
                    "prompt": t.prompt.id,
                    "sample": t.sample_index,
                    "position": token.spot.position,
                    "rate": rate,
                    "loss_nats": token.loss_nats,
                }
                if _name(row) not in kept:
                    found = correct(scene.pair, token.spot, rate=rate, correcting=settings.correcting)
                    kept[_name(row)] = {**row, **asdict(found)}
                    lines.write(json.dumps(kept[_name(row)]) + "\n")
                    lines.flush()
                rows.append(kept[_name(row)])
                bar.move(done + len(rows))
    bar.move(done + len(rows), f"seed {scene.pair.seed}: {len(chosen)} prefixes")
    return [{**row, **_texts(scene, chosen[i // len(rates)], row)} for i, row in enumerate(rows)]


def _name(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("prompt", "sample", "position", "rate"))


def _lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; a last one that a kill has cut is taken off."""
    if not file.exists():
        return []
    whole, newline, _ = file.read_bytes().rpartition(b"\n")
    if file.stat().st_size != len(whole) + len(newline):
        file.write_bytes(whole + newline)
    return [json.loads(line) for line in whole.splitlines()]


def _texts(scene: Scene, token: Chosen, row: Mapping[str, Any]) -> dict[str, Any]:
    decode = scene.task.decode
    return {
        "prefix": decode(token.spot.prefix_ids[-SHOWN_PREFIX_TOKENS:]),
        "expert": decode(row["expert_ids"]),
        "student": decode(row["student_ids"]),
        "corrected": {name: decode(ids) for name, ids in row["after_ids"].items()},
    }


def _correction_record(
    told: Mapping[str, Any], rates: Sequence[float], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    tables = []
    for rate in rates:
        of_rate = [row for row in rows if row["rate"] == rate]
        outcomes = [
            Outcome(seed=row["seed"], prompt=row["prompt"], before=row["before"], after=row["after"])
            for row in of_rate
        ]
        tables.append(
            {
                "rate": rate,
                **summarise(outcomes).as_record(),
                "distances": {
                    "before": [row["before"] for row in of_rate],
                    **{arm.name: [row["after"][arm.name] for row in of_rate] for arm in ARMS},
                },
            }
        )
    return {
        **told,
        "arms": {arm.name: arm.summary for arm in ARMS},
        "rates": tables,
        "seconds_per_prefix": {
            arm.name: math.fsum(row["seconds"][arm.name] for row in rows) / len(rows) for arm in ARMS
        },
        "examples": [
            {
                name: row[name]
                for name in ("prompt", "rate", "prefix", "expert", "student", "corrected", "before", "after")
            }
            for row in rows[: len(rates) * NUM_EXAMPLES : len(rates)]
        ],
    }
