"""Learning-rate schedules, as factors of the peak."""

from __future__ import annotations

import math

from toolkit.training.config import TrainingConfig


def learning_rate_factor(step: int, config: TrainingConfig) -> float:
    """The factor of the peak learning rate at ``step``, counted from 0; 1 right after the warmup.

    Of ``"wsd"`` with the warmup in steps, the factor up to the decay does not depend on how long the run is.

    Source: cosine: Loshchilov and Hutter 2016 (arXiv 1608.03983), one half period; WSD: Hu et al.
    2024, MiniCPM (arXiv 2404.06395), with a linear decay.
    """
    warmup = config.warmup
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "cosine":
        return _down(0.5 * (1 - math.cos(math.pi * _share(step, warmup, config.steps))), config.final_share)
    return _down(_share(step, config.decay_start, config.steps), config.final_share)


def _share(step: int, start: int, stop: int) -> float:
    """How much of start..stop has passed, within [0, 1]."""
    return min(max((step - start) / max(stop - start, 1), 0.0), 1.0)


def _down(progress: float, final: float) -> float:
    """From 1 to ``final`` as progress goes from 0 to 1."""
    return 1.0 - (1.0 - final) * progress
