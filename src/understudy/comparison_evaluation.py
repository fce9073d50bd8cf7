"""Every checkpoint of a comparison on the same held-out prompts: measured once, kept, and put side by side."""

from __future__ import annotations

import hashlib
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from understudy import __version__
from understudy.config import filled
from understudy.errors import ConfigError, TrainingError
from understudy.evaluation.paired import compare_over_seeds
from understudy.evaluation.statistics import Estimate
from understudy.files import sha256_of, write_json
from understudy.final_checkpoints import Entry, compared_recipe, entries_of
from understudy.measure import measurement_job
from understudy.progress import bars
from understudy.reports.held_out import EVALUATIONS
from understudy.reports.metrics import in_order
from understudy.reports.tables import metric_of, over_seeds
from understudy.settings import nearest
from understudy.tasks.task import Split
from understudy.worker import Worker, WorkerDiedError, run_job

Measured = Mapping[str, Any]
"""One file: `label`, `seed`, `metrics` as a run logs them, `by_prompt`, and the `key` of what they were measured with."""
Found = Sequence[tuple[Entry, Measured]]
"""What there is of a comparison, in the order of its entries."""

DATA_FIELDS = ("train", "validation", "test", "path", "exclude")
"""What of a task's table may name files."""
EXPERT_METRICS = ("expert_kl_nats", "reverse_expert_kl_nats")
MAX_FILE_LETTERS = 100


def evaluate_comparison(
    folder: str | Path,
    *,
    split: Split = "validation",
    overrides: Mapping[str, Any] | Sequence[str] = (),
    against: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure the finished cells of a comparison, what they began with and their experts, and compare them by prompt.

    Every checkpoint answers the same prompts, those of one seed with the same random numbers. What has been measured is kept
    and used again as long as the checkpoint and the settings are the same: a call that was killed goes on where it stopped.

    Args:
        folder: of the comparison. Written: `evaluations/<split>.json` (the value returned) and a file a checkpoint.
        overrides: settings changed, as for `load_recipe`; of the evaluator, say.
        against: the label that all others are compared with; None: the start and each expert.
    Returns:
        `recipe`, `split`, `evaluate` (the settings), `rows` (one a label), `paired` (one a pair), `left_out`: see
        docs/metrics.md.
    Raises:
        ConfigError: no comparison, no finished cell, or no such label.
        TrainingError: a cell's checkpoint, or what all are compared with, could not be measured; what was is kept. A start or
            an expert that could not is left out, and said.
    """
    folder, console = Path(folder), console or Console(stderr=True)
    recipe = compared_recipe(folder, overrides)
    entries, left_out = entries_of(folder, recipe)
    labels = list(dict.fromkeys(entry.label for entry in entries))
    if against is not None and against not in labels:
        raise ConfigError(
            f"{folder} has nothing called {against!r} to compare with. {nearest(against, labels)}"
        )
    for line in left_out:
        console.print(f"left out: {line}", highlight=False, markup=False, soft_wrap=True)
    place = folder / EVALUATIONS / split
    place.mkdir(parents=True, exist_ok=True)
    assert recipe.compare is not None
    found, failed = _measured(entries, place, split, recipe.compare.workers, console)
    if against is not None and against not in {entry.label for entry, _ in found}:
        raise TrainingError(f"what all are compared with could not be measured ({'; '.join(failed)}).")
    left_out += failed
    summary = folder / EVALUATIONS / f"{split}.json"
    head = {"recipe": recipe.name, "split": split, "evaluate": recipe.to_table()["evaluate"]}
    inputs = [[entry.kind, measured["key"]] for entry, measured in found]
    key = _hash([head, against, left_out, inputs])
    before = _read(summary)
    if before is None or before.get("key") != key:
        console.print("comparing by prompt", highlight=False)
        rows, paired = _rows(found), _pairs(found, against)
        write_json(summary, {"key": key, **head, "rows": rows, "paired": paired, "left_out": left_out})
        before = _read(summary)
    assert before is not None
    return before


@dataclass(frozen=True, eq=False)
class _Order:
    """A checkpoint that is still to be measured."""

    entry: Entry
    file: Path
    key: str
    expert: str | None
    """Hash of whom it is asked how far it is from."""


def _measured(
    entries: Sequence[Entry], place: Path, split: Split, workers: int, console: Console
) -> tuple[Found, list[str]]:
    """What the files say, in the order of the entries; those that are not there, or of something else, are made first.

    Returns:
        what there is; and in words the starts and experts that could not be measured.
    Raises:
        TrainingError: a cell could not be measured, or a file does not hold what was just written to it.
    """
    contents: dict[str, str] = {}
    orders = [_order(entry, place, split, contents) for entry in entries]
    missing = [order for order in orders if _kept(order) is None]
    failed = _measure(missing, split, min(workers, len(missing)), console) if missing else {}
    cells = [words for order, words in failed.items() if order.entry.kind == "method"]
    if cells:
        raise TrainingError(
            f"{len(cells)} of {len(missing)} checkpoints could not be measured ({'; '.join(cells)}). The others are kept; "
            "mend what is wrong and evaluate again."
        )
    found: list[tuple[Entry, Measured]] = []
    for order in orders:
        if order in failed:
            continue
        if (measured := _kept(order)) is None:
            raise TrainingError(
                f"{order.file} does not hold the measurement of {order.entry.name} that was written there. Delete it, and "
                "evaluate again."
            )
        found.append((order.entry, measured))
    return found, list(failed.values())


def _order(entry: Entry, place: Path, split: Split, contents: dict[str, str]) -> _Order:
    key = _key(entry, split, contents)
    file = place / f"{_file_name(entry.label)}-seed{entry.seed}-{key[:12]}.json"
    return _Order(entry, file, key, _expert_hash(entry, contents))


def _kept(order: _Order) -> dict[str, Any] | None:
    """What the file of an order says; None where it is not there, of something else, or damaged."""
    found = _read(order.file)
    if found is None or found.get("key") != order.key:
        return None
    return found if all(isinstance(found.get(name), dict) for name in ("metrics", "by_prompt")) else None


def _key(entry: Entry, split: Split, contents: dict[str, str]) -> str:
    """A hash of all that decides the numbers: weights, tokenizer, the files that the prompts come from, settings, version.

    Args:
        contents: path -> hash of what has been read.
    """
    table = entry.recipe.to_table()
    kept = ("task", "student", "expert", "evaluate", "seed", "rollouts")
    train = {name: table["train"].get(name) for name in ("max_new_tokens", "mixed_precision", "device")}
    parts = {name: table.get(name) for name in kept} | {"train": train, "dtype": entry.dtype}
    student = entry.recipe.student
    places = [entry.checkpoint, filled(student.checkpoint, entry.seed), student.tokenizer]
    places.append(_expert_checkpoint(entry))
    sets = table["evaluate"].get("also") or {}
    places += [place for task in (table["task"], sets) for place in _data_places(task)]
    hashes = [None if place is None else _content(place, contents) for place in places]
    return _hash([__version__, entry.label, split, hashes, parts])


def _expert_checkpoint(entry: Entry) -> str | None:
    expert = entry.recipe.expert
    return None if expert is None else filled(expert.checkpoint, entry.seed)


def _expert_hash(entry: Entry, contents: dict[str, str]) -> str | None:
    """Of the law that a KL to the expert is to; None where there is none."""
    expert = entry.recipe.to_table().get("expert")
    if expert is None:
        return None
    checkpoint = _expert_checkpoint(entry)
    law = {name: expert.get(name) for name in ("kind", "dtype", "noise")}
    return _hash([law, None if checkpoint is None else _content(checkpoint, contents)])


def _data_places(table: Any) -> Iterator[str]:
    """The files and folders that tables of tasks name, those of mixtures' parts and of evaluation sets included."""
    if isinstance(table, list | tuple):
        for each in table:
            yield from _data_places(each)
    if not isinstance(table, Mapping):
        return
    for name, value in table.items():
        if name in DATA_FIELDS and value is not None:
            yield from (
                [value] if isinstance(value, str) else [each for each in value if isinstance(each, str)]
            )
        else:
            yield from _data_places(value)


def _content(place: str, contents: dict[str, str]) -> str:
    """A hash of a file, or of the files of a folder; what is not there, such as a hub id, stands for itself."""
    if place not in contents:
        path = Path(place)
        files = sorted(child for child in path.rglob("*") if child.is_file()) if path.is_dir() else [path]
        lines = []
        for file in files if path.exists() else []:
            with file.open("rb") as handle:
                name = file.relative_to(path).as_posix()
                lines.append(f"{name} {hashlib.file_digest(handle, 'sha256').hexdigest()}")
        contents[place] = _hash(lines) if path.exists() else place
    return contents[place]


def _hash(value: Any) -> str:
    return sha256_of(json.dumps(value, sort_keys=True).encode())


def _file_name(label: str) -> str:
    """Labels may share one: the key beside it tells them apart."""
    return "".join(c if c.isalnum() or c in " .,_=+-" else "_" for c in label)[:MAX_FILE_LETTERS]


def _read(file: Path) -> dict[str, Any] | None:
    """The JSON object in a file of ours; None where there is none, or one that cannot be read: it is made again."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _measure(orders: Sequence[_Order], split: Split, workers: int, console: Console) -> dict[_Order, str]:
    """Measure side by side; with one worker in this process.

    Returns:
        those that could not be measured, each with what went wrong in words.
    """
    failed: dict[_Order, str] = {}
    with bars(console) as progress:
        bar = progress.add_task(f"{split} prompts", total=len(orders), note="", unit="checkpoint")

        def ended(order: _Order, error: str | None) -> None:
            why = _why(order, error)
            if why is not None:
                failed[order] = f"{order.entry.name}: {why}"
            progress.update(bar, advance=1, note=order.entry.name)
            words = f"failed: {why}" if why is not None else _in_short(_kept(order) or {})
            console.print(escape(f"{order.entry.name}: {words}"), highlight=False, soft_wrap=True)

        if workers == 1:
            for order in orders:
                ended(order, run_job(_job(order, split)))
        else:
            _side_by_side(orders, split, workers, ended)
    return {order: failed[order] for order in orders if order in failed}


def _why(order: _Order, error: str | None) -> str | None:
    """What went wrong in one line; a longer text lies beside the measurement."""
    whole = order.file.with_suffix(".error.txt")
    whole.unlink(missing_ok=True)
    if error is None:
        return None
    lines = error.strip().splitlines() or ["no reason was given"]
    if len(lines) == 1:
        return lines[0]
    whole.write_text(error, encoding="utf-8")
    return f"{lines[-1]} (the whole text is in {whole.name})"


def _side_by_side(
    orders: Sequence[_Order], split: Split, workers: int, ended: Callable[[_Order, str | None], None]
) -> None:
    """Processes that take measurement after measurement. If one dies, only its measurement is lost."""
    waiting: queue.SimpleQueue[_Order] = queue.SimpleQueue()
    outcomes: queue.SimpleQueue[tuple[_Order, str | None]] = queue.SimpleQueue()
    for order in orders:
        waiting.put(order)
    running: set[Worker] = set()
    stop = threading.Event()

    def work() -> None:
        worker: Worker | None = None
        while not stop.is_set():
            try:
                order = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                if worker is None:
                    worker = Worker()
                    running.add(worker)
                outcomes.put((order, worker.run(_job(order, split))))
            except WorkerDiedError as death:
                worker = None
                outcomes.put((order, str(death)))
            except Exception as failure:  # noqa: BLE001 - whoever waits must hear of it, whatever it was
                worker = None
                outcomes.put((order, f"its worker could not do it: {failure!r}"))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        for _ in orders:
            ended(*outcomes.get())
    finally:
        stop.set()
        while True:
            for worker in [*running]:  # interrupted, perhaps: what is half measured is measured again
                worker.close()
            if not any(thread.is_alive() for thread in threads):
                break
            time.sleep(0.05)


def _job(order: _Order, split: Split) -> dict[str, Any]:
    entry = order.entry
    head = {"key": order.key, "label": entry.label, "seed": entry.seed, "checkpoint": entry.checkpoint}
    head["expert"] = order.expert
    return measurement_job(entry.recipe, entry.checkpoint, split, order.file, head, dtype=entry.dtype)


def _in_short(measured: Measured) -> str:
    names = {"accuracy_greedy": "greedy", "accuracy_sampled": "sampled", "validation_loss_nats": "loss"}
    metrics = {name: _estimate(measured, name) for name in names}
    return "  ".join(f"{names[name]} {found.value:.3f}" for name, found in metrics.items() if found.n)


def _estimate(measured: Measured, metric: str) -> Estimate:
    """A metric of a file, which has it as a run's record does; n = 0 where it is absent or not finite."""
    return metric_of(dict(measured), metric)


def _by_label(found: Found) -> dict[str, dict[int, Measured]]:
    by_label: dict[str, dict[int, Measured]] = {}
    for entry, measured in found:
        by_label.setdefault(entry.label, {})[entry.seed] = measured
    return by_label


def _rows(found: Found) -> list[dict[str, Any]]:
    """One row a label: each metric's mean and interval over seeds, and its value for every seed.

    One model for all seeds is one value: it has no interval.
    """
    entries = {entry.label: entry for entry, _ in found}
    rows = []
    for label, by_seed in _by_label(found).items():
        metrics = {}
        for name in in_order(name for measured in by_seed.values() for name in measured["metrics"]):
            each = {seed: _estimate(measured, name) for seed, measured in by_seed.items()}
            mean = over_seeds(name, list(each.values()))
            if mean.n:
                fields = mean.to_json()
                values = {str(seed): estimate.value for seed, estimate in each.items() if estimate.n}
                limits = {key: fields[key] for key in ("low", "high", "n")}
                metrics[name] = {"mean": fields["value"], **limits, "by_seed": values}
        head = {"label": label, "kind": entries[label].kind, "for_all_seeds": entries[label].for_all_seeds}
        rows.append({**head, "seeds": list(by_seed), "metrics": metrics})
    return rows


def _pairs(found: Found, against: str | None) -> list[dict[str, Any]]:
    """Each label against the one that is asked for, or against the start and every expert; no pair comes twice.

    One model for all seeds is put beside every seed of the other.
    """
    by_label = _by_label(found)
    of_all = {entry.label for entry, _ in found if entry.for_all_seeds}
    others = (
        [against] if against is not None else [entry.label for entry, _ in found if entry.kind != "method"]
    )
    rows: list[dict[str, Any]] = []
    seen: set[frozenset[str]] = set()
    for b in dict.fromkeys(others):
        for a in by_label:
            if a == b or frozenset((a, b)) in seen:
                continue
            seen.add(frozenset((a, b)))
            of_a, of_b = by_label[a], by_label[b]
            if a in of_all:
                of_a = dict.fromkeys(of_b, next(iter(of_a.values())))
            elif b in of_all:
                of_b = dict.fromkeys(of_a, next(iter(of_b.values())))
            rows.append({"a": a, "b": b, "metrics": _differences(of_a, of_b)})
    return rows


def _differences(a: Mapping[int, Measured], b: Mapping[int, Measured]) -> dict[str, Any]:
    """By metric; the KL to the expert only where both were asked about the same one, seed by seed."""
    names_of_both = [{name for found in side.values() for name in found["by_prompt"]} for side in (a, b)]
    has_one_expert = all(a[seed].get("expert") == b[seed].get("expert") for seed in a if seed in b)
    found: dict[str, Any] = {}
    for name in in_order(names_of_both[0] & names_of_both[1]):
        if name.rpartition("/")[2] in EXPERT_METRICS and not has_one_expert:
            continue
        values_a, values_b = (
            {
                seed: _finite(measured["by_prompt"][name])
                for seed, measured in side.items()
                if name in measured["by_prompt"]
            }
            for side in (a, b)
        )
        if (difference := compare_over_seeds(values_a, values_b)) is not None:
            found[name] = difference.to_json()
    return found


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    """Infinite values were written as null."""
    return {prompt: value for prompt, value in values.items() if value is not None}
