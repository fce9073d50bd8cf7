"""Runs experiments of the theory lab and writes what they found: a folder each, with the record and its figure."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from understudy.errors import ConfigError
from understudy.files import atomic_path, finite, write_json
from understudy.reports.drawing import to_png
from understudy.reports.theory import FIGURE, RECORD, load_theory, theory_figure
from understudy.settings import nearest
from understudy.theory.outcome import Progress, silent
from understudy.theory.table import EXPERIMENTS, Experiment
from understudy.versions import versions


def experiment_named(name: str) -> Experiment:
    """The entry of that name.

    Raises:
        ConfigError: no such experiment; the message names the nearest one.
    """
    if name not in EXPERIMENTS:
        raise ConfigError(f"{name!r} is not an experiment of the theory lab. {nearest(name, EXPERIMENTS)}")
    return EXPERIMENTS[name]


def run_theory(
    name: str,
    folder: str | Path,
    *,
    seed: int = 0,
    run_folder: str | Path | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Run one experiment and write `theory.json` and `figure.png` into a folder; returns the record.

    The same name and seed give the same rows. What an earlier run of it left in the folder is replaced, each file in
    one step; nothing else there is touched.

    Args:
        name: an experiment (`understudy theory` lists them).
        folder: made if it is not there.
        run_folder: a finished comparison to set beside the predictions, for experiments that can (`mean-field`).
        progress: called with the share of the work that is done.
    Raises:
        ConfigError: an unknown name or a negative seed; a folder that cannot be made or belongs to a training run; a
            `run_folder` that this experiment cannot use.
    """
    experiment = experiment_named(name)
    if seed < 0:
        raise ConfigError(f"seed must be >= 0, got {seed}.")
    if run_folder is not None and not experiment.compares_a_run:
        able = ", ".join(entry.name for entry in EXPERIMENTS.values() if entry.compares_a_run)
        raise ConfigError(f"{name} compares with no run. --run is for: {able}.")
    folder = Path(folder)
    _claim(folder, name)
    started = time.perf_counter()
    try:
        outcome = experiment.run(seed, progress, str(run_folder or ""))
    except ValueError as error:
        if run_folder is None:
            raise
        raise ConfigError(str(error)) from None
    record = finite(
        {
            "order": list(EXPERIMENTS).index(name),
            "name": name,
            "question": experiment.question,
            "source": experiment.source,
            "seed": seed,
            "seconds": time.perf_counter() - started,
            "is_as_expected": outcome.is_as_expected,
            **outcome.as_record(),
            "versions": versions(),
        }
    )
    with atomic_path(folder / FIGURE) as part:
        part.write_bytes(to_png(theory_figure(record)))
    write_json(folder / RECORD, record)
    return record


def _claim(folder: Path, name: str) -> None:
    """Make the folder, or refuse one that belongs to a training run or to another experiment."""
    for mark in ("recipe.json", "compare.json"):
        if (folder / mark).exists():
            raise ConfigError(f"{folder} holds a training run or a comparison ({mark}). Use another --out.")
    if (folder / RECORD).is_file():
        (there,) = load_theory(folder)
        if there["name"] != name:
            raise ConfigError(
                f"{folder} holds the experiment {there['name']}, not {name}. Use another --out."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot create the folder {folder}: {error}.") from None
