"""Checks of a short run: is the loss falling smoothly, are gradients finite, does data come in time, is noise small."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy import stats

from toolkit.checks import require, require_positive
from toolkit.training.check.finding import Finding, graded
from toolkit.training.check.trial import Trial

SPIKES = (0.15, 0.5)
"""Of a step's loss above the median of those before it, as a share of what was learned: what passes, and what warns."""

LOADING = (0.05, 0.2)
"""Of a batch's time, as a share of the step's: what passes, and what warns."""

BEFORE = 9
"""Losses before a step that it is compared with."""


def check_loss(trial: Trial) -> Finding:
    """Whether the loss falls, and smoothly.

    The last fifth must lie below the first by more than both scatter, else it fails. A spike is how far a step's loss
    is above the median of the nine before it, as a share of all that was learned.
    """
    losses = trial.losses
    if len(losses) < 2 * BEFORE or not all(map(math.isfinite, losses)):
        return Finding("loss", "fail", f"{len(losses)} steps, the last with a loss of {losses[-1]:g}")
    fifth = len(losses) // 5
    first, last = losses[:fifth], losses[-fifth:]
    learned = statistics.mean(first) - statistics.mean(last)
    scatter = math.hypot(*(statistics.stdev(part) / math.sqrt(fifth) for part in (first[1:], last)))
    words = f"{statistics.mean(first):.3f} -> {statistics.mean(last):.3f} nats per token in {len(losses)} steps"
    if learned <= 2 * scatter:
        return Finding("loss", "fail", f"{words}: no less than the scatter, {scatter:.3f}")
    spike = max(losses[i] - statistics.median(losses[i - BEFORE : i]) for i in range(BEFORE, len(losses)))
    share = max(0.0, spike) / learned
    figure = f"{words}; the worst spike is {share:.0%} of what was learned (pass up to {SPIKES[0]:.0%})"
    return Finding("loss", graded(share, *SPIKES), figure)


def check_gradients(trial: Trial) -> Finding:
    """Whether every loss and gradient was finite; it names the first parameter whose was not."""
    steps = len(trial.norms)
    if trial.not_finite:
        return Finding("gradients", "fail", f"not finite at step {steps}: {trial.not_finite}")
    return Finding("gradients", "pass", f"finite in {steps} steps; norms up to {max(trial.norms):.3g}")


def check_loading(trial: Trial) -> Finding:
    """Whether batches come in a small share of a step's time, by medians; nothing is read ahead."""
    loading, computing = statistics.median(trial.loading), statistics.median(trial.computing)
    share = loading / (loading + computing)
    figure = f"{1e3 * loading:.2f} ms a batch beside {1e3 * computing:.1f} ms of computing: {share:.1%} of a step"
    return Finding("loading", graded(share, *LOADING), f"{figure} (pass up to {LOADING[0]:.0%})")


def check_validation(bits_per_byte: Sequence[float], effect: float, seeds: int) -> Finding:
    """Whether as many seeds as are planned tell the effect sought from noise.

    The smallest difference of two means over ``seeds`` runs that a two-sided test at 5% finds is
    t sd sqrt(2 / seeds), with sd and t's degrees of freedom from the trials. Runs paired by seed and data may find
    less; so may longer ones, whose seeds scatter less than those of short trials.

    Args:
        bits_per_byte: of validation, trials that differ in the seed alone.
        effect: bits per byte that a difference is expected to be.
        seeds: runs of each kind in the study.

    Raises:
        ValueError: if there are fewer than two trials or a number is not positive.
    """
    require(len(bits_per_byte) > 1, "bits_per_byte", tuple(bits_per_byte), "of two trials at least")
    require_positive(effect=effect, seeds=seeds)
    if not all(map(math.isfinite, bits_per_byte)):
        return Finding("validation", "fail", f"not finite: {tuple(bits_per_byte)}")
    noise = statistics.stdev(bits_per_byte)
    found = float(stats.t.ppf(0.975, len(bits_per_byte) - 1)) * noise * math.sqrt(2 / seeds)
    figure = f"seeds scatter by {noise:.4f} bits per byte (of {len(bits_per_byte)} trials); {seeds} seeds find a "
    return Finding(
        "validation", graded(found, effect, 2 * effect), f"{figure}difference of {found:.4f}, sought {effect:g}"
    )
