"""Fixed data: written once, checked when read, the same whoever reads it and in whatever order."""

from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from small import Babble
from understudy.errors import DataError
from understudy.experts.expert import OracleExpert
from understudy.experts.noisy import Absorbing, Additive, NoisyExpert
from understudy.records import Prompt
from understudy.rollouts import offline
from understudy.rollouts.offline import OfflineData, offline_folder, reference_response
from understudy.rollouts.sampler import Limits
from understudy.tasks.modular_addition import ModularAddition

TASK = ModularAddition(modulus=3, length=6)
EXPERT = NoisyExpert(OracleExpert(TASK.oracle(), "oracle"), Absorbing(Additive(0.3, (0, 1, 2))))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(offline, "BLOCK_PROMPTS", 16)


def data(
    folder: Path, *, samples: int = 2, decoder=EXPERT.decoder, seed: int = 0, batch_size: int | None = None
) -> OfflineData:
    return OfflineData(
        folder=folder,
        task=TASK,
        identity={"expert": "x"},
        seed=seed,
        limits=Limits(max_new_tokens=6),
        samples_per_prompt=samples,
        batch_size=batch_size,
        decoder=decoder,
    )


def nobody():
    raise AssertionError("written already: the expert must not be asked again")


def test_written_once_and_the_same_in_any_order(tmp_path):
    """Fails if a block depends on what was read before it or on how many were written side by side, or is sampled
    again."""
    first = data(tmp_path / "a").responses(0, 40)
    assert len(first) == 80
    again = data(tmp_path / "a", decoder=nobody)
    assert again.responses(30, 7) == first[60:74]
    assert again.responses(3, 20) == first[6:46]
    backwards = data(tmp_path / "b", batch_size=5)
    pieces = [backwards.responses(start, 8) for start in range(32, -1, -8)]
    assert [r for piece in reversed(pieces) for r in piece] == first
    assert all(not any(r.is_student) for r in first)


def test_samples_of_a_prompt_differ_and_fewer_samples_are_a_part_of_more(tmp_path):
    two = data(tmp_path / "two", samples=2).responses(0, 16)
    assert any(a.token_ids != b.token_ids for a, b in zip(two[::2], two[1::2], strict=True))
    assert data(tmp_path / "one", samples=1).responses(0, 16) == two[::2]
    assert data(tmp_path / "seed", samples=1, seed=1).responses(0, 16) != two[::2]


def _write(folder: str, results) -> None:
    offline.BLOCK_PROMPTS = 16
    results.put(data(Path(folder)).responses(0, 20))


def test_two_writers_at_once(tmp_path):
    """Processes side by side in one folder: both get the whole data and nothing temporary is left."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    writers = [context.Process(target=_write, args=(str(tmp_path / "d"), results)) for _ in range(2)]
    for w in writers:
        w.start()
    found = [results.get(timeout=60) for _ in writers]
    for w in writers:
        w.join()
    assert found[0] == found[1] == data(tmp_path / "d", decoder=nobody).responses(0, 20)
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == [
        "block-000000.safetensors",
        "block-000001.safetensors",
        "data.json",
    ]
    assert json.loads((tmp_path / "d" / "data.json").read_text()) == {"expert": "x"}


@pytest.mark.parametrize("at", [-3, -400, 20, 3])
def test_a_flipped_byte_is_found(tmp_path, at):
    """In the numbers, in the header, in its length: one sentence that names the file. Fails without the hash."""
    data(tmp_path).responses(0, 4)
    file = tmp_path / "block-000000.safetensors"
    raw = bytearray(file.read_bytes())
    raw[at] ^= 0x10
    file.write_bytes(raw)
    with pytest.raises(DataError, match=r"block-000000\.safetensors .*Delete it"):
        data(tmp_path).responses(0, 4)


def test_swapped_content_is_found(tmp_path):
    """A whole file, well-formed, whose numbers are not the ones that were hashed."""
    data(tmp_path).responses(0, 4)
    file = tmp_path / "block-000000.safetensors"
    arrays = load_file(file)
    arrays["token_ids"] = arrays["token_ids"][::-1].copy()
    save_file(arrays, file, metadata={"sha256": "0" * 64})
    with pytest.raises(DataError, match="does not match its own hash"):
        data(tmp_path).responses(0, 4)
    os.truncate(file, 100)
    with pytest.raises(DataError, match="cannot be read"):
        data(tmp_path).responses(0, 4)


def test_the_folder_is_named_by_everything_that_decides_the_content(tmp_path):
    base = {"expert": "x", "seed": 0}
    assert offline_folder(tmp_path, base) == offline_folder(tmp_path, {"seed": 0, "expert": "x"})
    assert offline_folder(tmp_path, base) != offline_folder(tmp_path, {**base, "seed": 1})


def test_a_second_epoch_is_new_samples_of_the_same_prompts(tmp_path):
    """A finite data set read again: fresh draws, within a block as across blocks. Fails if streams go by prompt id
    and block alone, which repeats the samples inside a block and not across blocks."""
    task = Babble(num_train=10)
    small = replace(TASK, length=6)
    finite = _Cycled(small, 5)
    found = replace(data(tmp_path, samples=1), task=finite).responses(0, 32)
    epochs = [[r.token_ids for r in found[i : i + 5]] for i in range(0, 30, 5)]
    assert len({tuple(e) for e in epochs}) == len(epochs)
    assert task.prompts("train", 3, 1)[0] == task.prompts("train", 13, 1)[0]


class _Cycled:
    """The first prompts of a task, over and over."""

    def __init__(self, task: ModularAddition, size: int) -> None:
        self.task, self.num = task, size

    def prompts(self, split: str, start: int, count: int) -> list[Prompt]:
        first = self.task.prompts("train", 0, self.num)
        return [first[i % self.num] for i in range(start, start + count)]


def test_references_are_read_as_they_are():
    (prompt,) = TASK.prompts("train", 0, 1)
    found = reference_response(prompt)
    assert found.token_ids == prompt.reference_ids
    assert all(x != x for x in found.logp), "nobody's law is known"
    with pytest.raises(DataError, match="prompt bare has no reference"):
        reference_response(Prompt(id="bare", token_ids=(1,)))
