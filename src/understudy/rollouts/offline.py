"""Fixed data: expert samples written once, hashed, and read by every run that asks for the same ones.

A data set is a folder named after a hash of everything that decides its content (task, expert and noise, seed, length
limits). It grows block by block, as far as it is read; a block is one safetensors file, written atomically, so that
processes side by side may share the folder.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from understudy.errors import DataError
from understudy.files import atomic_path, sha256_of
from understudy.records import Finish, Prompt, Trajectory
from understudy.rollouts.sampler import Decoder, Limits, Response, sample_all
from understudy.tasks.task import Task

BLOCK_PROMPTS = 512
_FINISHES: tuple[Finish, ...] = ("eos", "stop", "length")


@dataclass(frozen=True, kw_only=True)
class OfflineData:
    """Expert samples of a task's training prompts, by (prompt number, sample number)."""

    folder: Path
    task: Task
    identity: dict[str, Any]
    seed: int
    limits: Limits
    samples_per_prompt: int
    batch_size: int | None
    """Trajectories that are written side by side; None: a whole block. It does not change them."""
    decoder: Callable[[], Decoder]
    num_prompts: int | None = None
    """After so many prompts the first ones come again, with the same responses; None: as the task does, with new ones."""
    num_written: int | None = None
    """How many prompts the student's start answers at all, those that are held out included; None: no end."""
    _blocks: dict[int, list[Response]] = field(default_factory=dict, repr=False)
    _costs: dict[int, float] = field(default_factory=dict, repr=False)

    def take_costs(self) -> dict[int, float]:
        """Block number -> processor seconds that others spent on it, for the blocks read since the last call (0: own).

        Whoever comes first writes a block and everybody reads it; a fair budget charges every reader for it, once.
        """
        costs = dict(self._costs)
        self._costs.clear()
        return costs

    def number(self, prompt_number: int) -> int:
        """Which prompt stands in the place of that one."""
        return prompt_number if self.num_prompts is None else prompt_number % self.num_prompts

    def responses(self, start: int, count: int) -> list[Response]:
        """The responses to prompts start .. start + count - 1, all samples of a prompt in a row."""
        per = self.samples_per_prompt
        found: list[Response] = []
        for number in range(start // BLOCK_PROMPTS, (start + count - 1) // BLOCK_PROMPTS + 1):
            first = number * BLOCK_PROMPTS
            low, high = max(start, first), min(start + count, first + BLOCK_PROMPTS)
            found += self._block(number)[(low - first) * per : (high - first) * per]
        return found

    def _block(self, number: int) -> list[Response]:
        if number not in self._blocks:
            self._blocks.clear()  # blocks are read in order; the past ones would only fill memory
            file = self.folder / f"block-{number:06d}.safetensors"
            is_mine = not file.exists()
            if is_mine:
                self._write(number, file)
            self._blocks[number], cpu_seconds = _read(file)
            self._costs[number] = 0.0 if is_mine else cpu_seconds
        return self._blocks[number]

    def _write(self, number: int, file: Path) -> None:
        first = number * BLOCK_PROMPTS
        count = BLOCK_PROMPTS if self.num_written is None else min(BLOCK_PROMPTS, self.num_written - first)
        prompts = self.task.prompts("train", first, count)
        repeated = [p for p in prompts for _ in range(self.samples_per_prompt)]
        # A small data set comes round again within a block: its prompts get new samples then, as in the next block.
        seen: Counter[str] = Counter()
        names = []
        for p in repeated:
            names.append((self.seed, "offline", number, p.id, seen[p.id]))
            seen[p.id] += 1
        start = time.process_time()
        responses = sample_all(
            repeated, names, limits=self.limits, batch_size=self.batch_size, expert=self.decoder
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_description(self.folder, self.identity)
        _save(responses, repeated, file, time.process_time() - start)


def num_trained(num_prompts: int, heldout: float) -> int:
    """How many prompts, from the first on, are left when a share is held out; at least one on either side."""
    return min(max(1, round(num_prompts * (1 - heldout))), num_prompts - 1)


def offline_folder(root: Path, identity: dict[str, Any]) -> Path:
    """The folder of the data set with this identity, below `root`."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return root / digest[:16]


def _write_description(folder: Path, identity: dict[str, Any]) -> None:
    file = folder / "data.json"
    if not file.exists():
        with atomic_path(file) as part:
            part.write_text(json.dumps(identity, indent=2, sort_keys=True) + "\n")


def _save(responses: Sequence[Response], prompts: Sequence[Prompt], file: Path, cpu_seconds: float) -> None:
    arrays = {
        "token_ids": np.concatenate([np.array(r.token_ids, dtype=np.int32) for r in responses]),
        "logp": np.concatenate([np.array(r.logp, dtype=np.float64) for r in responses]),
        "length": np.array([len(r.token_ids) for r in responses], dtype=np.int32),
        "finish": np.array([_FINISHES.index(r.finish) for r in responses], dtype=np.int32),
    }
    metadata = {"sha256": _content_hash(arrays), "first_prompt": prompts[0].id, "last_prompt": prompts[-1].id}
    metadata["cpu_seconds"] = f"{cpu_seconds:.3f}"
    with atomic_path(file) as part:
        save_file(arrays, part, metadata=metadata)


def _content_hash(arrays: dict[str, np.ndarray]) -> str:
    return sha256_of(b"".join(arrays[name].tobytes() for name in sorted(arrays)))


def _read(file: Path) -> tuple[list[Response], float]:
    from safetensors import safe_open

    try:
        arrays = load_file(file)
        with safe_open(file, framework="numpy") as handle:
            metadata = handle.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"offline data {file} cannot be read ({error}). Delete it; it will be written again."
        ) from None
    if _content_hash(arrays) != metadata.get("sha256"):
        raise DataError(
            f"offline data {file} does not match its own hash. Delete it; it will be written again."
        )
    ends = np.cumsum(arrays["length"])
    responses = []
    for begin, end, finish in zip(ends - arrays["length"], ends, arrays["finish"], strict=True):
        tokens = tuple(arrays["token_ids"][begin:end].tolist())
        logp = tuple(arrays["logp"][begin:end].tolist())
        responses.append(Response(tokens, (False,) * len(tokens), logp, _FINISHES[int(finish)]))
    return responses, float(metadata["cpu_seconds"])


def reference_response(prompt: Prompt) -> Response:
    """The task's own gold response as if somebody had written it.

    Raises:
        DataError: the prompt has no reference.
    """
    if not prompt.reference_ids:
        raise DataError(
            f"prompt {prompt.id} has no reference and data.offline = 'reference' trains on references. "
            "Give every row one, or use data.offline = 'expert'."
        )
    ids = prompt.reference_ids
    finish = cast(Literal["eos"], "eos")
    return Response(ids, (False,) * len(ids), (float("nan"),) * len(ids), finish)


def as_trajectory(prompt: Prompt, sample_index: int, response: Response, *, round: int) -> Trajectory:
    """A trajectory of fixed data: nobody's student wrote it."""
    return Trajectory(
        prompt=prompt,
        sample_index=sample_index,
        response_ids=response.token_ids,
        is_student=response.is_student,
        logp=response.logp,
        temperature=1.0,
        finish=response.finish,
        round=round,
        student_version=-1,
    )
