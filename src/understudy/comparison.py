"""Methods x seeds under one budget: the same data, the same evaluator, one shared warm start a seed, workers side by side."""

from __future__ import annotations

import json
import queue
import shlex
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from understudy.config import cell_recipe, uses_server, warm_start_recipe
from understudy.errors import ConfigError, TrainingError
from understudy.experts.expert import Expert
from understudy.experts.noisy import Noise
from understudy.files import write_json
from understudy.progress import bars
from understudy.reports.folders import load_compare
from understudy.reports.tables import compare_rows
from understudy.run import OwnParts, claim_folder, finished_run, read_json
from understudy.schema import Recipe
from understudy.stages import Role, Source, missing_stages, require_one_recipe, sources
from understudy.tasks.task import Task
from understudy.worker import Worker, WorkerDiedError, job_of, run_job


@dataclass
class _Job:
    """One run of the comparison: a shared warm start, or a cell."""

    label: str
    seed: int
    recipe: Recipe
    folder: Path
    begins_with: _Job | None = None
    """The warm start whose student this run goes on with."""
    needs: Sequence[_Job] = ()
    """Runs that must have ended before this one begins."""
    sources: dict[Role, Source] = field(default_factory=dict)
    """The runs that its student's checkpoint and its expert come from."""
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

    What the cells begin with or imitate and a recipe makes (`student.recipe`, `expert.recipe`) is trained first where it is
    not there yet: once for all the cells that ask for it, in the folder they name, without the objects given here.

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
    jobs = _jobs(recipe, folder, ("student", "expert") if expert is None else ("student",))
    own = given if any(part is not None for part in vars(given).values()) else None
    count = 1 if own else workers or recipe.compare.workers
    _refuse_shared_server(jobs, count)
    claim_folder(folder, recipe, given, kind="a comparison", resume=resume, overwrite=overwrite)
    board = _Board(folder, recipe, jobs)
    try:
        _run_jobs(jobs, board, own, count, console)
    except OSError as error:
        raise TrainingError(
            f"{folder}: {error}. Nothing written before is lost; free some space and go on with --resume."
        ) from error
    return compare_rows(load_compare(folder))


def _refuse_shared_server(jobs: Sequence[_Job], workers: int) -> None:
    """A server holds one student's weights at a time."""
    asks = Counter(job.recipe.rollouts.server for job in jobs if uses_server(job.recipe))
    shared = [server for server, num in asks.items() if num > 1]
    if workers > 1 and shared:
        raise ConfigError(
            f"{workers} runs side by side would overwrite each other's weights on the server {shared[0]}. Set "
            "compare.workers = 1 (--workers 1)."
        )


def _jobs(recipe: Recipe, folder: Path, roles: tuple[Role, ...]) -> list[_Job]:
    """What comes first, then the cells, seed by seed: by the time a cell's turn comes all it needs is done or near."""
    data = replace(recipe.data, folder=recipe.data.folder or str(folder / "data"))
    recipe = replace(recipe, data=data)
    assert recipe.compare is not None
    made: dict[Path, _Job] = {}
    warm_starts: dict[int, _Job] = {}
    cells: list[_Job] = []
    for seed in recipe.compare.seeds:
        first = warm_start_recipe(replace(recipe, seed=seed))
        if first is not None:
            needs = _stage_jobs(first, roles, made)
            place = folder / "warm_start" / f"seed{seed}"
            warm_starts[seed] = _Job("warm start", seed, first, place, needs=needs, stage="warm_start")
        for label in recipe.compare.methods:
            cell = cell_recipe(recipe, label, seed)
            place = folder / "cells" / f"{label}-seed{seed}"
            before = warm_starts.get(seed)
            needs = [*_stage_jobs(cell, roles, made), *([before] if before else [])]
            come_from = sources(cell, roles)
            cells.append(_Job(label, seed, cell, place, begins_with=before, needs=needs, sources=come_from))
    return [*made.values(), *warm_starts.values(), *cells]


def _stage_jobs(recipe: Recipe, roles: tuple[Role, ...], made: dict[Path, _Job]) -> list[_Job]:
    """The runs that this one begins with or imitates and that are still to be made; each is made once for all."""
    stages = missing_stages(recipe, roles=roles)
    for stage in stages:
        if stage.folder in made:
            require_one_recipe(stage.folder, made[stage.folder].recipe, stage.recipe)
        else:
            needs = [made[place] for place in stage.needs]
            name = f"{stage.role} {stage.recipe.name}"
            made[stage.folder] = _Job(
                name, stage.recipe.seed, stage.recipe, stage.folder, needs=needs, stage="made"
            )
    return [made[stage.folder] for stage in stages]


class _Board:
    """`compare.json`: what has been done, rewritten atomically whenever a cell changes its status."""

    def __init__(self, folder: Path, recipe: Recipe, jobs: list[_Job]) -> None:
        self.folder, self.recipe, self.jobs = folder, recipe, jobs
        self.lock = threading.Lock()
        self.workers: set[Worker] = set()
        self.made = {_inside(job.folder, folder) for job in jobs if job.stage == "made"} | _made_before(
            folder
        )

    def write(self) -> None:
        assert self.recipe.compare is not None
        cells = [
            {
                "label": job.label,
                "method": job.recipe.method.name,
                "seed": job.seed,
                "folder": str(job.folder.relative_to(self.folder)),
                "warm_start": str(job.begins_with.folder.relative_to(self.folder))
                if job.begins_with
                else None,
                "student": self._source(job, "student"),
                "expert": self._source(job, "expert"),
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
            "step_scale": self.recipe.compare.step_scale or {},
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        }
        with self.lock:
            write_json(self.folder / "compare.json", {**head, "cells": cells})

    def _source(self, job: _Job, role: Role) -> dict[str, Any] | None:
        """The run that a cell's student or expert comes from; None: none of ours."""
        source = job.sources.get(role)
        if source is None:
            return None
        to_make = {other.folder: other.recipe.name for other in self.jobs if other.stage == "made"}
        name = to_make.get(source.folder) or read_json(source.folder / "recipe.json").get("name")
        place = _inside(source.folder, self.folder)
        made = place in self.made
        return {"checkpoint": source.checkpoint, "folder": place, "recipe": name, "made": made}


def _inside(place: Path, folder: Path) -> str:
    """A path as compare.json has it: relative to the comparison's folder where it is inside, else as it was given."""
    place_there, whole = place.absolute(), folder.absolute()
    return str(place_there.relative_to(whole) if place_there.is_relative_to(whole) else place)


def _made_before(folder: Path) -> set[str]:
    """Runs that this comparison made before it was resumed: they are there now, and were not when it began."""
    cells = read_json(folder / "compare.json").get("cells") or []
    named = [cell.get(role) or {} for cell in cells for role in ("student", "expert")]
    return {source["folder"] for source in named if source.get("made")}


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
        for first in job.needs:
            while not first.ended.wait(0.2):
                if stop.is_set():
                    return
        failed = next((first for first in job.needs if first.status == "failed"), None)
        if failed is not None:
            _end(job, board, "failed", f"what it needs failed: {failed.name}: {failed.error}")
            continue
        job.status = "running"
        warm_start = job.begins_with.folder if job.begins_with is not None else None
        stage = "warm_start" if job.stage == "warm_start" else "main"
        order = job_of(job.recipe.to_table(), job.folder, warm_start, stage)
        try:
            if own is not None:
                # What is made for other runs, too, must not depend on objects that those never see.
                error = run_job(order, **vars(OwnParts() if job.stage == "made" else own))
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
