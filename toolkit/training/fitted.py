"""What a run reached, read off its callbacks when it is over."""

from __future__ import annotations

import math
from dataclasses import dataclass

import lightning

from toolkit.training.budget import ComputeBudget
from toolkit.training.language_model import LanguageModel
from toolkit.training.metrics import RunMetrics
from toolkit.training.router_monitor import RouterMonitor


@dataclass(frozen=True)
class Fitted:
    """What a run reached.

    Attributes:
        steps, tokens: trained on, over all devices.
        flops: spent, in the ``exact`` convention.
        bits_per_byte: of the last validation; not finite if the run diverged.
        train_loss: nats per token, mean over the last tenth of the steps, or the last recorded.
        seconds: wall-clock of the training steps, this process's.
        max_violation, token_entropy, dropped_share: of the last recorded step, mean over layers; nan
            (dropped_share: 0) where there is no MoE.
    """

    steps: int
    tokens: int
    flops: float
    bits_per_byte: float
    train_loss: float
    seconds: float
    max_violation: float
    token_entropy: float
    dropped_share: float


def read_fitted(
    trainer: lightning.Trainer,
    module: LanguageModel,
    counter: ComputeBudget,
    metrics: RunMetrics,
    monitor: RouterMonitor,
) -> Fitted:
    """Of a run whose trainer has ended."""
    tail = [loss for step, loss in metrics.losses if step > 0.9 * trainer.global_step]
    layers = list(monitor.last.values())

    def mean(values: list[float], empty: float) -> float:
        return sum(values) / len(values) if values else empty

    return Fitted(
        steps=trainer.global_step,
        tokens=counter.tokens,
        flops=counter.spent,
        bits_per_byte=module.bits_per_byte if module.bits_per_byte is not None else math.nan,
        train_loss=mean(tail or [loss for _, loss in metrics.losses[-1:]], math.nan),
        seconds=metrics.seconds,
        max_violation=mean([stats.max_violation for stats in layers], math.nan),
        token_entropy=mean([stats.entropy for stats in layers], math.nan),
        dropped_share=mean([stats.dropped for stats in layers], 0.0),
    )
