"""Countdown puzzles from files or from the hub: read, checked, and kept apart by content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from understudy.errors import ConfigError, DataError
from understudy.tasks.countdown.generator import Content, Puzzle
from understudy.tasks.countdown.grading import is_solution
from understudy.tasks.countdown.solver import MAX_OPERANDS, MIN_OPERANDS
from understudy.tasks.sources import RawRow, fields_there, missing, read_hub, read_jsonl
from understudy.tasks.streams import permutation, stream
from understudy.tasks.task import Split

HUB_DATASET = "Jiayi-Pan/Countdown-Tasks-3to4"
HUB_TRAIN_ROWS, HUB_TEST_ROWS = 327_680, 1_024
"""The published task trains on the first rows of the data set's one split and tests on the next ones."""
VALIDATION_ROWS = 256
LARGEST = 10**9


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Puzzles that were read. Training goes through all of them in a new order each epoch; the rest keep theirs.

    `num_shared`: rows left out of train because the puzzle is also one of validation, test or another held-out file.
    """

    splits: Mapping[Split, Sequence[Puzzle]]
    seed: int
    num_shared: int = 0

    def __post_init__(self) -> None:
        stream(self.seed)

    @property
    def max_operands(self) -> int:
        return max(len(p.nums) for found in self.splits.values() for p in found)

    @property
    def max_number(self) -> int:
        return max(max(p.nums) for found in self.splits.values() for p in found)

    @property
    def max_target(self) -> int:
        return max(p.target for found in self.splits.values() for p in found)

    @property
    def identity(self) -> str:
        """A hash of all puzzles in order."""
        digest = hashlib.sha256(str(self.seed).encode())
        for split, found in self.splits.items():
            for p in found:
                digest.update(f"{split} {p.id} {p.nums} {p.target}\n".encode())
        return digest.hexdigest()[:32]

    def size(self, split: Split) -> int:
        return len(self.splits.get(split, ()))

    def puzzles(self, split: Split, start: int, count: int) -> list[Puzzle]:
        """As `Task.prompts`. Raises DataError where there is no such split."""
        found = self.splits.get(split, ())
        if not found:
            raise DataError(f"the task countdown has no {split} split. Give its rows.")
        if split != "train":
            return list(found[start : start + count])
        positions = (divmod(i, len(found)) for i in range(start, start + count))
        return [found[_order(self.seed, epoch, len(found))[k]] for epoch, k in positions]


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, size: int) -> NDArray[np.intp]:
    return permutation(seed, epoch, size)


def read_folder(path: str | Path) -> dict[str, list[Puzzle]]:
    """The .jsonl files of a folder by their names without the ending; train and test must be there.

    Raises:
        DataError: no such folder or file, or a row that is no puzzle; the message names file and line.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(
            missing(folder) if not folder.exists() else f"{folder} is no folder. Give one with train.jsonl."
        )
    for name in ("train", "test"):
        if not (folder / f"{name}.jsonl").is_file():
            raise DataError(missing(folder / f"{name}.jsonl"))
    return {file.stem: read_file(file) for file in sorted(folder.glob("*.jsonl"))}


def read_file(path: str | Path) -> list[Puzzle]:
    """The puzzles of one JSON Lines file with the fields nums, target and, where there are any, id and solution."""
    return [_puzzle(row) for row in read_jsonl(path)]


def read_dataset(dataset: str, train_rows: int, test_rows: int) -> dict[str, list[Puzzle]]:
    """The first rows of the `train` split of a data set of the hub, for training, and the next ones, for testing."""
    if min(train_rows, test_rows) < 1:
        raise ConfigError(f"train_rows and test_rows must be >= 1, got {train_rows} and {test_rows}.")
    rows = read_hub(dataset, None, f"train[:{train_rows + test_rows}]")
    found = [_puzzle(row) for row in rows]
    if len(found) <= train_rows:
        raise DataError(f"{dataset} has {len(found)} rows and train_rows is {train_rows}. Lower train_rows.")
    test = found[train_rows:]
    return {"train": found[:train_rows], "test": test}


def make_rows(
    found: Mapping[str, Sequence[Puzzle]], *, seed: int, validation_rows: int | None, validation: str | None
) -> Rows:
    """Splits of what was read, disjoint by content: nothing of any other file is trained on, but of those called train...

    Args:
        validation_rows: this many different puzzles of train are held out, chosen by `seed` and content. None: 256.
        validation: the file that is the validation split instead, by its name without the ending.
    Raises:
        ConfigError: both are given, or too many rows held out. DataError: no such file.
    """
    train, test = list(found["train"]), list(found["test"])
    apart = {p.content for name, held in found.items() if not name.startswith("train") for p in held}
    if validation is not None:
        if validation_rows is not None:
            raise ConfigError(
                "give either validation or validation_rows, not both: they are one split. Remove one."
            )
        if validation not in found or validation == "train":
            raise DataError(
                f"no validation file {validation}.jsonl (there are: {', '.join(sorted(set(found) - {'train'}))}). "
                "Give one of these."
            )
        held = list(found[validation])
    else:
        count = VALIDATION_ROWS if validation_rows is None else validation_rows
        held = _held_out([p for p in train if p.content not in apart], count, seed)
    kept_apart = apart | {p.content for p in held}
    rest = [p for p in train if p.content not in kept_apart]
    if not rest:
        raise DataError(
            "every puzzle of train is also one of validation, test or another file. Add other puzzles."
        )
    held_out = 0 if validation is not None else len(held)
    splits: dict[Split, list[Puzzle]] = {"train": rest, "validation": held, "test": test}
    return Rows(
        splits={split: puzzles for split, puzzles in splits.items() if puzzles},
        seed=seed,
        num_shared=len(train) - len(rest) - held_out,
    )


def _held_out(train: Sequence[Puzzle], count: int, seed: int) -> list[Puzzle]:
    """`count` puzzles of different content: the same ones whatever the order of the file."""
    first: dict[Content, Puzzle] = {}
    for puzzle in train:
        first.setdefault(puzzle.content, puzzle)
    if not 0 <= count < len(first):
        raise ConfigError(
            f"validation_rows must be in 0 .. {len(first) - 1} (one puzzle must be left), got {count}."
        )

    def rank(content: Content) -> bytes:
        return hashlib.blake2b(f"{seed}:{content}".encode(), digest_size=16).digest()

    chosen = set(sorted(first, key=rank)[:count])
    return [puzzle for content, puzzle in first.items() if content in chosen]


def _puzzle(row: RawRow) -> Puzzle:
    nums, target = _field(row, "nums"), _field(row, "target")
    if not isinstance(nums, list) or not MIN_OPERANDS <= len(nums) <= MAX_OPERANDS:
        raise DataError(
            f"{row.where}: nums must be a list of {MIN_OPERANDS} to {MAX_OPERANDS} whole numbers, found {nums!r:.60}."
        )
    for value in (*nums, target):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
            raise DataError(
                f"{row.where}: nums and target must be whole numbers in 1 .. 10**9, found {value!r:.40}."
            )
    solution = row.fields.get("solution")
    if solution is not None and not (
        isinstance(solution, str) and is_solution(solution, tuple(nums), target)
    ):
        raise DataError(
            f"{row.where}: the solution {solution!r:.60} does not make {target} of {nums}, each used once. Correct it."
        )
    name = row.fields.get("id")
    return Puzzle(
        index=row.index,
        id=str(row.index if name is None else name),
        nums=tuple(nums),
        target=target,
        where=row.where,
        solution=solution,
    )


def _field(row: RawRow, name: str) -> Any:
    if name not in row.fields:
        raise DataError(f"{row.where}: no field {name!r}. {fields_there(row, name)}")
    return row.fields[name]
