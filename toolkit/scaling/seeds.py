"""Means over seeds and differences paired by seed, with their 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from toolkit.scaling.results import RunResult

LEVEL = 0.95


@dataclass(frozen=True)
class SeedMean:
    """A mean over seeds.

    Attributes:
        value: the mean; nan where there is no seed.
        half: half the width of its 95% interval; None with one seed or none, which tell nothing of the noise.
        seeds: how many.
        p_value: two-sided, of the hypothesis that the mean is 0; None likewise.
    """

    value: float
    half: float | None
    seeds: int
    p_value: float | None

    @property
    def side(self) -> int:
        """1 where the interval lies above 0, -1 where below, 0 where it holds 0 or there is none."""
        if self.half is None or abs(self.value) <= self.half:
            return 0
        return 1 if self.value > 0 else -1


def mean_over_seeds(values: Sequence[float]) -> SeedMean:
    """The mean of independent runs, its interval from Student's t with one degree of freedom less than there are runs.

    Runs without any spread give an interval of no width.
    """
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) < 2:
        return SeedMean(float(sample.mean()) if len(sample) else math.nan, None, len(sample), None)
    value, error = float(sample.mean()), float(sample.std(ddof=1) / math.sqrt(len(sample)))
    freedom = len(sample) - 1
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    p_value = float(2 * stats.t.sf(abs(value) / error, freedom)) if error > 0 else float(value == 0)
    return SeedMean(value, half, len(sample), p_value)


def paired_difference(rows: Sequence[RunResult], baseline: Sequence[RunResult]) -> SeedMean:
    """Mean over the seeds that both have of bits per byte of ``rows`` less that of ``baseline``.

    Runs of one seed see the same windows in the same order, so that the luck of the data cancels.
    """
    theirs = {row.seed: row.bits_per_byte for row in baseline}
    return mean_over_seeds([row.bits_per_byte - theirs[row.seed] for row in rows if row.seed in theirs])


def holm(p_values: Sequence[float]) -> list[bool]:
    """Which hypotheses are refuted such that one true one among them is with a chance of 5% at most.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    refuted = [False] * len(p_values)
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        if p_values[at] > (1 - LEVEL) / (len(p_values) - rank):
            break
        refuted[at] = True
    return refuted
