"""Bootstrap resamples of runs: whole groups drawn with replacement, as weights of the runs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from toolkit.scaling.laws.surface import Floats

Strings = npt.NDArray[np.str_]


def resampled(group: Strings, resamples: int, generator: np.random.Generator) -> Floats:
    """How often each run is drawn, (resamples, runs): of each resample as many groups as there are, each whole.

    Runs of a group share their errors; drawn one by one they would seem to tell more than they do (Efron and Tibshirani
    1993, An Introduction to the Bootstrap, chapter 8).

    Args:
        group: labels of the runs, (runs,).
        resamples: how many.
        generator: what they are drawn by.
    """
    groups, of_run = np.unique(group, return_inverse=True)
    even = np.full(len(groups), 1 / len(groups))
    return generator.multinomial(len(groups), even, resamples)[:, of_run].astype(np.float64)


def resampled_within(family: Strings, group: Strings, resamples: int, generator: np.random.Generator) -> Floats:
    """The same within each family, so that none vanishes: (resamples, runs)."""
    weights = np.zeros((resamples, len(family)))
    for name in dict.fromkeys(family.tolist()):
        members = np.flatnonzero(family == name)
        weights[:, members] = resampled(group[members], resamples, generator)
    return weights
