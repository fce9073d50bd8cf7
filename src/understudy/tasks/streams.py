"""Random bits named by what they are for, so that item i never depends on what was asked for before it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from understudy.errors import ConfigError


def stream(seed: int, *name: int) -> np.random.Philox:
    """A counter-based bit generator that depends on (seed, name) alone.

    Draw with `random_raw`: NumPy promises its bits for good, which it does not for `Generator.integers` or
    `permutation`.
    """
    if seed < 0:
        raise ConfigError(f"a task's seed must be >= 0, got {seed}.")
    return np.random.Philox(np.random.SeedSequence(entropy=seed, spawn_key=name))


def permutation(seed: int, name: int, size: int) -> NDArray[np.intp]:
    """A random order of 0 .. size - 1 that depends on (seed, name, size) alone."""
    return np.argsort(np.asarray(stream(seed, name).random_raw(size)), kind="stable")


class Dice:
    """Small whole numbers, one after another, from a stream of its own."""

    def __init__(self, seed: int, *name: int) -> None:
        self._bits = stream(seed, *name)
        self._raw: list[int] = []

    def below(self, size: int) -> int:
        """A number in 0 .. size - 1; off from uniform by less than size / 2**32."""
        return (self._next() >> 32) * size >> 32

    def happens(self, probability: float) -> bool:
        """True with this probability, to within 2**-53."""
        return (self._next() >> 11) * 2.0**-53 < probability

    def _next(self) -> int:
        if not self._raw:
            self._raw = np.asarray(self._bits.random_raw(32)).tolist()[::-1]
        return self._raw.pop()
