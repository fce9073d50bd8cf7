"""Methods x seeds under one budget: the same data, the same evaluator, one shared warm start a seed, workers side by side."""

from __future__ import annotations

import json
import queue
import shlex
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from understudy.config import cell_recipe, warm_start_recipe
from understudy.errors import ConfigError, TrainingError
from understudy.experts.expert import Expert
from understudy.experts.noisy import Noise
from understudy.files import write_json
from understudy.progress import bars
from understudy.reports.folders import load_compare
from understudy.reports.tables import compare_rows
from understudy.run import OwnParts, claim_folder, finished_run, make_expert
from understudy.schema import Recipe
from understudy.tasks.task import Task
from understudy.worker import Worker, WorkerDiedError, job_of, run_job


@dataclass
class _Job:
    """One run of the comparison: a shared warm start, or a cell."""

    label: str
    seed: int
    recipe: Recipe
    folder: Path
    needs: _Job | None = None
    stage: str = "main"
    status: str = "pending"
    error: str | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def name(self) -> str:
        return f"{self.label}, seed {self.seed}"


def compare(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    task: Task | None = None,
    expert: Expert | None = None,
    noise: Noise | None = None,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Run every method of `recipe.compare` with every seed and say how they did.

    Args:
        out: the folder of the comparison: `compare.json`, `warm_start/`, `cells/<label>-seed<k>/`, `data/`.
        resume: keep the cells that are done, go on with the others.
        workers: runs side by side; None: the recipe's. One process each, one thread each (train.threads).
        task, expert, noise: objects of your own in place of the recipe's; they cannot travel to another process, so
            the cells then run one after another in this one.
    Returns:
        one row a method: its name, the budget it spent, and for each metric mean, low, high and n over seeds. A cell
        that failed is counted in its method's row and described in `compare.json`; it does not stop the others.
    Raises:
        ConfigError: the recipe has no [compare] table, or the folder holds another comparison.
    """
    if recipe.compare is None:
        raise ConfigError(f"recipe {recipe.name} has no [compare] table, which lists the methods and seeds.")
    folder = Path(out)
    console = console or Console(stderr=True)
    given = OwnParts(task=task, expert=expert, noise=noise)
    claim_folder(folder, recipe, given, kind="a comparison", resume=resume, overwrite=overwrite)
    if expert is None:
        make_expert(recipe, console)
    jobs = _jobs(recipe, folder)
    board = _Board(folder, recipe, jobs)
    count = workers or recipe.compare.workers
    own = given if any(part is not None for part in vars(given).values()) else None
    try:
        _run_jobs(jobs, board, own, 1 if own else count, console)
    except OSError as error:
        raise TrainingError(
            f"{folder}: {error}. Nothing written before is lost; free some space and go on with --resume."
        ) from error
    return compare_rows(load_compare(folder))


def _jobs(recipe: Recipe, folder: Path) -> list[_Job]:
    """Warm starts first, then the cells, seed by seed: by the time a cell's turn comes its warm start is done or near."""
    data = replace(recipe.data, folder=recipe.data.folder or str(folder / "data"))
    recipe = replace(recipe, data=data)
    assert recipe.compare is not None
    first_jobs: dict[int, _Job] = {}
    cells: list[_Job] = []
    for seed in recipe.compare.seeds:
        first = warm_start_recipe(replace(recipe, seed=seed))
        if first is not None:
            first_jobs[seed] = _Job(
                "warm start", seed, first, folder / "warm_start" / f"seed{seed}", stage="warm_start"
            )
        for label in recipe.compare.methods:
            place = folder / "cells" / f"{label}-seed{seed}"
            cells.append(
                _Job(label, seed, cell_recipe(recipe, label, seed), place, needs=first_jobs.get(seed))
            )
    return [*first_jobs.values(), *cells]


class _Board:
    """`compare.json`: what has been done, rewritten atomically whenever a cell changes its status."""

    def __init__(self, folder: Path, recipe: Recipe, jobs: list[_Job]) -> None:
        self.folder, self.recipe, self.jobs = folder, recipe, jobs
        self.lock = threading.Lock()
        self.workers: set[Worker] = set()

    def write(self) -> None:
        assert self.recipe.compare is not None
        cells = [
            {
                "label": job.label,
                "method": job.recipe.method.name,
                "seed": job.seed,
                "folder": str(job.folder.relative_to(self.folder)),
                "warm_start": str(job.needs.folder.relative_to(self.folder)) if job.needs else None,
                "status": job.status,
                "error": job.error,
            }
            for job in self.jobs
            if job.stage == "main"
        ]
        head = {
            "recipe": self.recipe.name,
            "methods": list(self.recipe.compare.methods),
            "seeds": list(self.recipe.compare.seeds),
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        }
        with self.lock:
            write_json(self.folder / "compare.json", {**head, "cells": cells})


def _run_jobs(jobs: list[_Job], board: _Board, own: OwnParts | None, workers: int, console: Console) -> None:
    for job in jobs:
        if finished_run(job.folder) is not None:
            job.status = "done"
            job.ended.set()
    board.write()
    waiting: queue.SimpleQueue[_Job] = queue.SimpleQueue()
    for job in jobs:
        if job.status != "done":
            waiting.put(job)
    stop = threading.Event()
    threads = [
        threading.Thread(target=_work, args=(waiting, board, own, stop), daemon=True, name=f"worker {i}")
        for i in range(min(workers, max(1, waiting.qsize())))
    ]
    for thread in threads:
        thread.start()
    try:
        _watch(jobs, threads, console)
    finally:
        stop.set()
        if any(thread.is_alive() for thread in threads):  # interrupted: the runs can be resumed
            for worker in board.workers:
                worker.close()
        for thread in threads:
            thread.join()
    board.write()


def _work(
    waiting: queue.SimpleQueue[_Job], board: _Board, own: OwnParts | None, stop: threading.Event
) -> None:
    """One worker: a process of its own that takes job after job. If the process dies, only its job is lost."""
    worker: Worker | None = None
    while not stop.is_set():
        try:
            job = waiting.get_nowait()
        except queue.Empty:
            break
        if job.needs is not None:
            while not job.needs.ended.wait(0.2):
                if stop.is_set():
                    return
            if job.needs.status == "failed":
                _end(job, board, "failed", f"its warm start failed: {job.needs.error}")
                continue
        job.status = "running"
        warm_start = job.needs.folder if job.needs is not None else None
        order = job_of(job.recipe.to_table(), job.folder, warm_start, job.stage)
        try:
            if own is not None:
                error = run_job(order, **vars(own))
            else:
                worker = worker or Worker()
                board.workers.add(worker)
                error = worker.run(order)
        except WorkerDiedError as death:
            worker, error = None, str(death)
        except Exception as failure:  # noqa: BLE001 - whoever waits for this job must hear of it, whatever it was
            worker, error = None, f"its worker could not do it: {failure!r}"
        if not stop.is_set():
            _end(job, board, "done" if error is None else "failed", error)
    if worker is not None:
        worker.close()


def _end(job: _Job, board: _Board, status: str, error: str | None) -> None:
    job.status, job.error = status, error
    job.ended.set()
    try:
        board.write()
    except OSError as failure:  # a full disk; the watching thread writes again at the end, and reports it
        job.error = job.error or f"compare.json could not be written: {failure}"


def _watch(jobs: list[_Job], threads: list[threading.Thread], console: Console) -> None:
    """A bar for the whole comparison and one for each run in progress, read from the runs' own logs."""
    total = sum(job.recipe.train.steps for job in jobs)
    shown: dict[str, Any] = {}
    said: set[str] = set()
    with bars(console) as progress:
        overall = progress.add_task("all runs", total=total, note="", unit="step")
        while any(thread.is_alive() for thread in threads):
            _draw(jobs, progress, overall, shown, said, console)
            time.sleep(0.25)
        _draw(jobs, progress, overall, shown, said, console)


def _draw(
    jobs: list[_Job], progress: Any, overall: Any, shown: dict[str, Any], said: set[str], console: Console
) -> None:
    steps = 0
    for job in jobs:
        ended = job.status in ("done", "failed")
        step, note = (job.recipe.train.steps, "") if ended else last_seen(job.folder)
        steps += step
        if job.status == "running":
            if job.name not in shown:
                shown[job.name] = progress.add_task(
                    f"  {job.name}", total=job.recipe.train.steps, note="", unit="step"
                )
            progress.update(shown[job.name], completed=step, note=note)
        elif ended and job.name in shown:
            progress.remove_task(shown.pop(job.name))
        if ended and job.name not in said:
            said.add(job.name)
            _say(job, console)
    done = sum(job.status in ("done", "failed") for job in jobs)
    progress.update(overall, completed=steps, note=f"{done} of {len(jobs)} runs")


def _say(job: _Job, console: Console) -> None:
    if job.status == "failed":
        last = (job.error or "").strip().splitlines()
        console.print(
            f"[red]{escape(job.name)} failed:[/] {escape(last[-1]) if last else ''}",
            highlight=False,
            soft_wrap=True,
        )
    else:
        console.print(f"{job.name}: {_one_line(job.folder)}", highlight=False, soft_wrap=True)


def _one_line(folder: Path) -> str:
    result = finished_run(folder)
    if result is None:
        return ""
    names = {"accuracy_greedy": "greedy", "accuracy_sampled": "T=1", "expert_kl_nats": "KL to expert"}
    found = [f"{short} {result.metrics[n]['value']:.3f}" for n, short in names.items() if n in result.metrics]
    return f"{'  '.join(found)}  ({result.budget['cpu_seconds']:.0f} cpu-s)"


def last_seen(folder: Path) -> tuple[int, str]:
    """Steps taken and the latest evaluation of a run that another process is writing; cheap: reads the log's end."""
    file = folder / "metrics.jsonl"
    if not file.exists():
        return 0, ""
    with file.open("rb") as handle:
        handle.seek(max(0, file.stat().st_size - 65536))
        lines = handle.read().decode(errors="replace").splitlines()
    step, note = 0, ""
    for line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # the first line of the window, or one that is being written
        step = record.get("stage_step", step)
        value = record.get("metrics", {}).get("accuracy_greedy", {}).get("value")
        note = note if value is None else f"greedy {value:.2f}"
    return step, note
