"""What a family reaches in a given time, read off between its runs at several budgets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.checks import require_positive
from toolkit.scaling.results import RunResult
from toolkit.scaling.seeds import SeedMean, mean_over_seeds

_ROUNDING = 1e-9  # of log seconds: nearer to a run than this is that run


@dataclass(frozen=True)
class TimedLoss:
    """Bits per byte after a given time, by seed.

    Attributes:
        by_seed: of each seed that can be read off.
        extrapolated: the time lies outside that of the family's runs.
    """

    by_seed: dict[int, float]
    extrapolated: bool

    @property
    def mean(self) -> SeedMean:
        """Over seeds; nan where there are none."""
        return mean_over_seeds(list(self.by_seed.values()))

    def less(self, baseline: TimedLoss) -> SeedMean:
        """The mean over seeds that both have of this less ``baseline``'s."""
        both = [seed for seed in self.by_seed if seed in baseline.by_seed]
        return mean_over_seeds([self.by_seed[seed] - baseline.by_seed[seed] for seed in both])


def loss_in_time(rows: Sequence[RunResult], seconds: float) -> TimedLoss:
    """What one family at one width reaches in ``seconds`` of isolated steps.

    Every budget was trained with a learning rate schedule of its own, so that each run is what its family reaches in
    the run's time; a longer run's loss on the way there is not, as its learning rate has yet to fall. Between two
    runs log loss is linear in log seconds, as for a power law; outside them the nearest two's line goes on. A seed of
    one budget is known at that run's own time only.

    Args:
        rows: finished runs, of any budgets and seeds, with finite losses.
        seconds: the time.

    Raises:
        ValueError: if ``seconds`` is not positive.
    """
    require_positive(seconds=seconds)
    found, outside, at = {}, False, math.log(seconds)
    for seed in sorted({row.seed for row in rows}):
        mine = sorted((row for row in rows if row.seed == seed), key=lambda row: row.seconds)
        time = np.log([row.seconds for row in mine])
        loss = np.log([row.bits_per_byte for row in mine])
        nearest = int(np.abs(time - at).argmin())
        if abs(time[nearest] - at) <= _ROUNDING:
            found[seed] = mine[nearest].bits_per_byte
        elif len(mine) > 1:
            after = min(max(int(np.searchsorted(time, at)), 1), len(mine) - 1)
            slope = (loss[after] - loss[after - 1]) / (time[after] - time[after - 1])
            found[seed] = math.exp(loss[after] + slope * (at - time[after]))
            outside |= not time[0] <= at <= time[-1]
    return TimedLoss(found, outside)
