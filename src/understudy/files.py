"""Writing so that a reader, or the same program after a kill, finds either the old state or the new one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary file or folder beside `target` that takes its name when the block ends, or vanishes if it fails."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    remove(part)
    try:
        yield part
        _sync(part)
        if target.is_dir():
            # A folder cannot be renamed over a full one: move the old one aside first.
            old = target.with_name(f".{target.name}.{os.getpid()}.old")
            os.replace(target, old)
            os.replace(part, target)
            remove(old)
        else:
            os.replace(part, target)
        _sync_one(target.parent)
    finally:
        remove(part)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_aside(folder: Path) -> None:
    """Delete a folder so that a kill in the middle leaves it whole or gone, never half."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.deleted")
    os.replace(folder, aside)
    remove(aside)


def remove_unfinished(folder: Path) -> None:
    """Clear up after a killed writer anywhere below a folder that nobody writes to now: what it had moved aside comes
    back if nothing took its place, the rest is deleted."""
    for old in folder.rglob(".*.old"):
        target = old.with_name(old.name[1:].rsplit(".", 2)[0])
        if not target.exists():
            os.replace(old, target)
    for pattern in (".*.part", ".*.old"):
        for path in folder.rglob(pattern):
            remove(path)


def _sync(path: Path) -> None:
    for child in [*path.rglob("*")] if path.is_dir() else []:
        if child.is_file():
            _sync_one(child)
    _sync_one(path)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Atomically; NaN and infinities become null, as JSON has no such numbers."""
    with atomic_path(path) as part:
        part.write_text(json.dumps(finite(value), indent=2) + "\n", encoding="utf-8")


def finite(value: Any) -> Any:
    """The same structure with non-finite floats replaced by None."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value
