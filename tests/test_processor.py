"""Threads and memory of a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from small import make_recipe, quiet_console
from understudy import processor
from understudy.processor import LARGE_MODEL, choose_threads, idle_share, one_thread
from understudy.run import train
from understudy.worker import Worker


@pytest.fixture
def machine(monkeypatch):
    """An idle machine of four cores, whatever this one is, on which nothing has been set."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(processor, "available_cores", lambda: 4)
    monkeypatch.setattr(processor, "idle_share", lambda: 1.0)
    return monkeypatch


def test_a_large_student_alone_on_an_idle_machine_gets_all_cores(machine):
    assert choose_threads(None, LARGE_MODEL) == 4
    machine.setattr(processor, "available_cores", lambda: 64)
    assert choose_threads(None, LARGE_MODEL) == processor.MAX_THREADS


@pytest.mark.parametrize(
    ("size", "processes", "idle"), [(LARGE_MODEL - 1, 1, 1.0), (LARGE_MODEL, 2, 1.0), (LARGE_MODEL, 1, 0.8)]
)
def test_everything_else_gets_one(machine, size, processes, idle):
    """A small student, company in the run, company on the machine."""
    machine.setattr(processor, "idle_share", lambda: idle)
    assert choose_threads(None, size, processes) == 1


def test_what_was_asked_for_comes_first(machine):
    """The recipe, then the environment, then the rule."""
    machine.setenv("OMP_NUM_THREADS", "3")
    assert choose_threads(2, LARGE_MODEL) == 2
    assert choose_threads(None, 10) == 3
    machine.setenv("OMP_NUM_THREADS", "2,1")  # nested, as OpenMP allows
    assert choose_threads(None, LARGE_MODEL) == 2
    machine.setenv("OMP_NUM_THREADS", "many")
    assert choose_threads(None, LARGE_MODEL) == 4


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 6),
        ({"cpu.max": "max 100000\n"}, 6),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "1600000 100000\n"}, 6),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 6),
        ({"cpu.max": "nonsense"}, 6),
    ],
)
def test_a_container_counts_the_cores_it_is_allowed(tmp_path, monkeypatch, files, cores):
    """Six cores, of which a quota allows less. Fails if threads are started that the kernel then holds back."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(processor, "CGROUP", tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert processor.available_cores() == cores


def test_workers_get_one_thread_unless_the_user_says_otherwise():
    assert one_thread({"A": "b"}) == {"A": "b", "OMP_NUM_THREADS": "1"}
    assert one_thread({"OMP_NUM_THREADS": "2"}) == {"OMP_NUM_THREADS": "2"}


def test_idle_share_reads_the_time_that_passed(monkeypatch):
    """user, nice, system, idle, iowait: 3 of 10 ticks were idle."""
    times = iter([[100, 0, 50, 1000, 5], [105, 0, 52, 1003, 5]])
    monkeypatch.setattr(processor, "_processor_times", lambda: next(times))
    assert idle_share(0.0) == pytest.approx(0.3)
    monkeypatch.setattr(processor, "_processor_times", list)
    assert idle_share(0.0) == 0


def test_a_resumed_run_goes_on_with_as_many_threads(tmp_path, monkeypatch):
    """Sums in another order would be another run. Fails if the choice is made anew."""
    import torch

    recipe = make_recipe(train__steps=1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    train(recipe, tmp_path / "run", console=quiet_console())
    assert json.loads((tmp_path / "run" / "process.json").read_text()) == {"threads": 1}
    (tmp_path / "run" / "process.json").write_text('{"threads": 2}')
    (tmp_path / "run" / "result.json").unlink()
    before = torch.get_num_threads()
    try:
        train(recipe, tmp_path / "run", resume=True, console=quiet_console())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


FAULTS = """
import resource, sys, torch
from understudy.processor import keep_freed_memory
torch.set_num_threads(1)
print(keep_freed_memory())
def work(times):
    for _ in range(times):
        # Tens of MiB: above every limit that glibc moves by itself.
        first = [torch.ones(n * 2**18) for n in (20, 40, 30)]
        second = [torch.ones(n * 2**18) for n in (20, 40, 30)]
        del first, second
work(6)  # the heap grows a few times before the same places fit again
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work(4)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run_faults(**environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=clean | environment, capture_output=True, text=True, check=True
    )
    changed, faults = done.stdout.split()
    return changed == "True", int(faults)


@pytest.mark.skipif(
    "glibc" not in str(os.confstr("CS_GNU_LIBC_VERSION") if hasattr(os, "confstr") else ""),
    reason="glibc only",
)
def test_freed_memory_is_used_again_without_the_kernel():
    """A page is mapped once, not at every step; what the user chose is left alone. Fails if either threshold is not set."""
    changed, faults = run_faults()
    assert changed
    assert faults < 100
    # The count itself: a kernel under load has been seen to report none for once.
    untouched = (run_faults(MALLOC_ARENA_MAX="4") for _ in range(3))
    assert any(not changed and faults > 100 for changed, faults in untouched)


def test_a_worker_starts_with_one_thread(monkeypatch):
    """A comparison's runs stand side by side. Fails if a worker inherits a machine's worth of threads."""
    seen = {}
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **settings: seen.update(settings))
    Worker()
    assert seen["env"]["OMP_NUM_THREADS"] == "1"
    assert seen["env"]["PATH"] == os.environ["PATH"]
