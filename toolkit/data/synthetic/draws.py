"""Random draws of one row of a task: the same on every machine and with every release of numpy."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class Draws:
    """Draws from PCG64's raw bits, keyed by what is drawn for (any text).

    Raw bits and sorts only: numpy keeps these from release to release, but not what its Generator makes of them.
    """

    def __init__(self, key: str) -> None:
        entropy = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big")
        self._bits = np.random.PCG64(np.random.SeedSequence(entropy))

    def integers(self, below: int, count: int) -> Ints:
        """Independent integers of 0..below-1: (count,). The bias of the remainder is under below / 2^64."""
        return (self._raw(count) % np.uint64(below)).astype(np.int64)

    def integer(self, below: int) -> int:
        """One integer of 0..below-1."""
        return int(self.integers(below, 1)[0])

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Independent numbers of (0, 1): (count,)."""
        return (np.asarray(self._raw(count) >> np.uint64(11), dtype=np.float64) + 0.5) * 2.0**-53

    def distinct(self, below: int, count: int) -> Ints:
        """Different integers of 0..below-1 in random order: (count,)."""
        return np.argsort(self._raw(below), kind="stable")[:count].astype(np.int64)

    def shuffled(self, values: Ints) -> Ints:
        """The values in random order."""
        return values[self.distinct(len(values), len(values))]

    def weighted(self, weights: npt.NDArray[np.float64], count: int) -> Ints:
        """Different indices drawn one after another with these weights, in increasing order: (count,).

        Efraimidis and Spirakis (2006): the ``count`` smallest of -ln(u) / weight.
        """
        return np.sort(np.argsort(-np.log(self.uniform(len(weights))) / weights, kind="stable")[:count])

    def starts(self, room: int, blocks: int, size: int) -> Ints:
        """Where blocks of ``size`` start among ``room`` slots, in order: every arrangement equally likely."""
        gaps = np.sort(self.distinct(room - blocks * (size - 1), blocks))
        return gaps + np.arange(blocks) * (size - 1)

    def _raw(self, count: int) -> npt.NDArray[np.uint64]:
        return np.asarray(self._bits.random_raw(count), dtype=np.uint64)
