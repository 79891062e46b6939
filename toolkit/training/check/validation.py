"""Check of the measure itself: whether validation can tell the effect sought from noise, and whose noise it is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import stats

from toolkit.checks import require, require_positive
from toolkit.training.check.finding import Finding, graded

Floats = npt.NDArray[np.float64]

LEVEL = 0.05
"""Of the two-sided test that a difference of two means must pass."""

RESAMPLES = 1000
"""Of the windows, with replacement."""


@dataclass(frozen=True)
class Validation:
    """One validation of one model, window by window.

    Attributes:
        step: how many steps the model was trained for.
        nll: nats of each window, (windows,).
        text_bytes: of each window's targets, (windows,).
    """

    step: int
    nll: Floats
    text_bytes: Floats

    @property
    def bits_per_byte(self) -> float:
        """Of all windows together."""
        return float(self.nll.sum() / self.text_bytes.sum() / math.log(2.0))


def check_validation(
    courses: Sequence[Sequence[Validation]], effect: float, seeds: int, run_steps: int | None = None
) -> Finding:
    """Whether as many seeds as are planned tell the effect sought from noise.

    What is estimated is the scatter of trials that differ in the seed alone, at their end. The smallest difference of
    two means over ``seeds`` runs that a two-sided test at 5% finds is t sd sqrt(2 / seeds), t with the trials' degrees
    of freedom. Part of the scatter is the finite validation set's (:func:`window_variance`): more windows lessen that
    part, more seeds both; the finding says which is larger.

    Seeds of a hardly trained model scatter more than those of a trained one. Where the run is longer than the trials
    and the scatter fell at every validation along them, what is found is an upper bound, and no more than a warning,
    unless the windows' part alone would fail. Runs paired by seed and data may find less too.

    Args:
        courses: of each trial its validations, first to last, on the same windows at the same steps.
        effect: bits per byte that a difference is expected to be.
        seeds: runs of each kind that will be compared.
        run_steps: of the run that the trials stand for; None where they are the run.

    Raises:
        ValueError: if there are fewer than two trials, trials without a validation, or a number is not positive.
    """
    require(len(courses) > 1, "courses", len(courses), "of two trials at least")
    require(all(len(course) > 0 for course in courses), "courses", "one of no validation", "of one validation at least")
    require_positive(effect=effect, seeds=seeds)
    last = [course[-1] for course in courses]
    reached = [each.bits_per_byte for each in last]
    if not all(map(math.isfinite, reached)):
        return Finding("validation", "fail", f"not finite: {tuple(reached)}")
    scatter = [statistics.stdev(each.bits_per_byte for each in at) for at in zip(*courses, strict=True)]
    detectable = float(stats.t.ppf(1 - LEVEL / 2, len(courses) - 1)) * math.sqrt(2 / seeds)
    of_windows = min(math.sqrt(window_variance(last)), scatter[-1])
    short = run_steps is not None and run_steps > last[0].step
    falling = short and len(scatter) > 1 and all(later < before for before, later in pairwise(scatter))
    status = graded(detectable * scatter[-1], effect, 2 * effect)
    if falling and status == "fail":
        status = graded(detectable * of_windows, effect, 2 * effect).replace("pass", "warn")
    bound = " at most, as the scatter still fell: more --trial-steps tell" if falling and status != "pass" else ""
    return Finding(
        "validation",
        status,
        f"{_scatter_words(courses, scatter, of_windows, run_steps)}; with {_runs(seeds)} a difference of "
        f"{detectable * scatter[-1]:.4f} is found{bound}, sought {effect:g}",
    )


def window_variance(validations: Sequence[Validation], seed: int = 0) -> float:
    """The part of the trials' variance that is the finite validation set's: another set's means would differ by it.

    By a bootstrap over windows, paired: every resample takes the same windows of every trial, so that what makes a
    window easy or hard for all of them alike does not count. It takes windows for independent; neighbours of one
    document are less so, and then it is too small.

    Args:
        validations: one of each trial, on the same windows.
        seed: of the resamples.

    Returns:
        variance of one trial's bits per byte, (bits per byte)^2.
    """
    nll, text_bytes = np.stack([each.nll for each in validations]), validations[0].text_bytes
    windows = len(text_bytes)
    draws = np.random.default_rng(seed).multinomial(windows, np.full(windows, 1 / windows), size=RESAMPLES)
    resampled = draws @ nll.T / (draws @ text_bytes)[:, None] / math.log(2.0)
    moved = resampled - [each.bits_per_byte for each in validations]
    return float(moved.var(axis=1, ddof=1).mean())


def _scatter_words(
    courses: Sequence[Sequence[Validation]], scatter: Sequence[float], of_windows: float, run_steps: int | None
) -> str:
    """What the scatter is an estimate of, and what it is made of."""
    steps = [each.step for each in courses[0]]
    of_run = "" if run_steps is None or run_steps <= steps[-1] else f" of {run_steps:,}"
    before = ", ".join(f"{sd:.4f} after {step}" for step, sd in zip(steps[:-1], scatter[:-1], strict=True))
    share = (of_windows / scatter[-1]) ** 2 if scatter[-1] else 0.0
    whose = f"of which {share:.0%} of the variance is that of {len(courses[0][-1].nll)} windows, "
    whose += "which dominate: take more of them" if share > 0.5 else "so seeds dominate"
    return (
        f"{len(courses)} seeds scatter by {scatter[-1]:.4f} bits per byte after {steps[-1]}{of_run} steps"
        f"{f' ({before})' if before else ''}, {whose}"
    )


def _runs(seeds: int) -> str:
    return "1 run of each kind" if seeds == 1 else f"{seeds} runs of each kind"
