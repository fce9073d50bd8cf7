"""Random numbers that depend on what they are for and on nothing else.

Every stream is named by (run seed, purpose, round, prompt id, sample index). Neither the process, nor the place in a
batch, nor what was drawn before enters: a run on one or four processes, or resumed after a kill, draws the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def generator(*name: object) -> np.random.Generator:
    """A counter-based generator (Philox) keyed by a 128-bit hash of the name."""
    digest = hashlib.blake2b("\x1f".join(map(str, name)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def uniforms(names: Sequence[tuple[object, ...]], count: int) -> np.ndarray:
    """[len(names), count] float64 in [0, 1): row i is the start of the stream named names[i]."""
    rows = np.empty((len(names), count))
    for i, name in enumerate(names):
        rows[i] = generator(*name).random(count)
    return rows
