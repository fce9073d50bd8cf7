"""How a process uses the processor: its number of threads, and an allocator that keeps what it has been given.

Both are process-wide, chosen once when a run starts, and written down in the run folder.
"""

from __future__ import annotations

import ctypes
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

LARGE_MODEL = 1_000_000
"""Parameters from which a second thread pays. Below, waiting for one another takes longer than what is shared."""
IDLE_SHARE = 0.9
"""Share of the processor's time that must go unused for a machine to count as idle. Two threads on a busy one are slower
than one, by factors of 2 to 40: each waits at every barrier for the one that has been set aside."""
MAX_THREADS = 8
"""More share the small matrices of a step in too small pieces."""

CGROUP = Path("/sys/fs/cgroup")
_QUOTA_FILES = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
"""Of the second and the first version of control groups: microseconds allowed, in a period of so many."""
_IDLE_COLUMN = 3
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_KEEP_BELOW_BYTES = (2**27, 2**25)
"""The second is the most that older versions of glibc take."""
_NEVER = 2**31 - 1


def choose_threads(asked: int | None, num_parameters: int = 0, num_processes: int = 1) -> int:
    """Threads of this process: what the recipe asks for, else OMP_NUM_THREADS, else as many as pay off now.

    That is one, unless the process is alone on an idle machine and its student is large enough to share.

    Args:
        num_parameters: of the student; left out, it counts as small.
        num_processes: of the same run on this machine.
    """
    if asked is not None:
        return asked
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if given.isdigit() and int(given) > 0:
        return int(given)
    if num_processes > 1 or num_parameters < LARGE_MODEL or idle_share() < IDLE_SHARE:
        return 1
    return min(available_cores(), MAX_THREADS)


def available_cores() -> int:
    """Cores this process may use: those it may run on, or fewer where a container is allowed less of their time."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota())))


def _quota() -> float:
    """Cores' worth of time that a container allows this process; infinite where nobody limits it."""
    for names in _QUOTA_FILES:
        try:
            allowed, period = " ".join((CGROUP / name).read_text(encoding="ascii") for name in names).split()
        except (OSError, ValueError):
            continue
        if allowed.isdigit() and period.isdigit() and int(period) > 0:
            return int(allowed) / int(period)
    return math.inf


def idle_share(seconds: float = 0.25) -> float:
    """The share of all cores' time that nobody used while this looked; 0 where the system does not say (not Linux)."""
    before = _processor_times()
    time.sleep(seconds)
    passed = [after - then for then, after in zip(before, _processor_times(), strict=True)]
    return passed[_IDLE_COLUMN] / sum(passed) if sum(passed) > 0 else 0.0


def _processor_times() -> list[int]:
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return []
    return [int(ticks) for ticks in first.split()[1:]]


def one_thread(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that will have others beside it."""
    return {"OMP_NUM_THREADS": "1", **environment}


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next step instead of handing it back to the kernel.

    Every step allocates the same tensors again. By default glibc maps the large ones from the kernel, which zeroes them page
    by page, and unmaps them when they are freed, at every use. Allocations of 128 MiB and more (32 MiB in older versions)
    still come and go: kept, they would cost more memory than time. The price is a process that stays as large as it once was.

    Returns:
        whether anything was changed: not where the C library is another one, and not where the user has chosen
        (MALLOC_* or GLIBC_TUNABLES in the environment).
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        library = ctypes.CDLL("libc.so.6")
        mallopt = library.mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    keeps = any(mallopt(_MMAP_THRESHOLD, size) == 1 for size in _KEEP_BELOW_BYTES)
    return mallopt(_TRIM_THRESHOLD, _NEVER) == 1 or keeps
