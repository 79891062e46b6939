"""How long one training step takes by itself, for several models in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from toolkit.models import Decoder, DecoderConfig
from toolkit.training.config import TrainingConfig
from toolkit.training.optimizer import build_optimizer
from toolkit.training.precision import resolve_precision
from toolkit.training.step import training_loss


def probe_step_seconds(
    configs: Sequence[tuple[DecoderConfig, TrainingConfig]], device: str = "cpu", rounds: int = 17, warmup: int = 3
) -> list[float]:
    """Median seconds of one step of each config; see :func:`time_steps`."""
    return [statistics.median(taken) for taken in time_steps(configs, device, rounds, warmup)]


def time_steps(
    configs: Sequence[tuple[DecoderConfig, TrainingConfig]], device: str = "cpu", rounds: int = 17, warmup: int = 3
) -> list[list[float]]:
    """Seconds of ``rounds`` steps (forward, backward, clipping, AdamW) of each config, on random tokens.

    The models take turns, one step each a round, so that a machine whose speed drifts treats them
    alike and the times of one round can be paired. Nothing is kept of what they learn.

    Args:
        configs: (model, training) pairs.
        device: where to run.
        rounds: timed steps of each.
        warmup: steps of each before those.
    """
    steps = [_stepper(model, training, torch.device(device)) for model, training in configs]
    times: list[list[float]] = [[] for _ in steps]
    for turn in range(warmup + rounds):
        for step, taken in zip(steps, times, strict=True):
            started = time.perf_counter()
            step()
            if turn >= warmup:
                taken.append(time.perf_counter() - started)
    return times


def _stepper(model: DecoderConfig, training: TrainingConfig, device: torch.device) -> Callable[[], None]:
    decoder = Decoder(model).to(device)
    optimizer = build_optimizer(decoder, training)
    shape = training.batch_size, training.context + 1
    windows = torch.randint(model.vocab_size, shape, generator=torch.Generator().manual_seed(0)).to(device)
    mixed = resolve_precision(training.precision, device.type) == "bf16-mixed"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            loss, _ = training_loss(decoder, windows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), training.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step
