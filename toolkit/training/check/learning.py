"""Checks of a short run: is the loss falling smoothly, are gradients finite, does data come in time."""

from __future__ import annotations

import math
import statistics

from toolkit.checks import require_positive
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


def check_loading(trial: Trial, compute_ratio: float = 1.0) -> Finding:
    """Whether batches come in a small share of a step's time, by medians; nothing is read ahead.

    Where the trial's model is smaller than the one that is meant, data that keep up with the small one keep up. Where
    they do not, the large one's time is taken to grow as its FLOPs, which a large model, being run more efficiently,
    stays below: so it can fail, or warn, but not pass.

    Args:
        trial: the short run.
        compute_ratio: FLOPs of one step of the model that is meant, of one of the trial's.

    Raises:
        ValueError: if ``compute_ratio`` is not positive.
    """
    require_positive(compute_ratio=compute_ratio)
    loading, computing = statistics.median(trial.loading), statistics.median(trial.computing)
    share, grown = (loading / (loading + ratio * computing) for ratio in (1.0, compute_ratio))
    status = "pass" if share <= LOADING[0] else graded(grown, -1.0, LOADING[1])
    figure = f"{1e3 * loading:.2f} ms a batch beside {1e3 * computing:.1f} ms of computing: {share:.1%} of a step"
    if compute_ratio > 1:
        figure += f", at least {grown:.1%} of one of the whole model's, of {compute_ratio:.3g} times the FLOPs"
    return Finding("loading", status, f"{figure} (pass up to {LOADING[0]:.0%})")
