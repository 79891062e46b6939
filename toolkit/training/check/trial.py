"""A short run of a small model, step by step, with what the checks ask of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from toolkit.checks import require_positive
from toolkit.data import Corpus, TokenWindows, validation_windows
from toolkit.layers.recomputation import recompute_layers
from toolkit.models import Decoder
from toolkit.routing import update_balancers
from toolkit.training.config import TrainingConfig
from toolkit.training.optimizer import build_optimizer
from toolkit.training.precision import resolve_precision
from toolkit.training.schedule import learning_rate_factor
from toolkit.training.step import next_token_nll, training_loss


@dataclass(frozen=True)
class Trial:
    """What a short run showed.

    Attributes:
        losses: nats per token of each step, routers' losses left out.
        norms: of each step's gradient, before it was clipped.
        loading: seconds that each step's batch took to come.
        computing: seconds of each step beside that.
        not_finite: the first parameter whose gradient was not, or ``"loss"``; empty where all were. The run ends there.
        bits_per_byte: of validation at the end; nan if it ended early.
    """

    losses: tuple[float, ...]
    norms: tuple[float, ...]
    loading: tuple[float, ...]
    computing: tuple[float, ...]
    not_finite: str
    bits_per_byte: float


def run_trial(
    decoder: Decoder,
    training: TrainingConfig,
    corpus: Corpus,
    steps: int = 100,
    *,
    batches: Callable[[int], Tensor] | None = None,
    validation_count: int = 32,
) -> Trial:
    """Train ``decoder``, in place, on its own device, for ``steps`` steps of the schedule that ``training`` shapes.

    As ``fit`` does but without Lightning, checkpoints and logs. It is for one process.

    Args:
        decoder: freshly initialised.
        training: how; its ``steps`` and ``warmup_steps`` are not used.
        corpus: the text.
        steps: of the optimizer.
        batches: windows (batch, context + 1) of a step; by default the corpus' own.
        validation_count: windows to validate on.

    Raises:
        ValueError: if ``steps`` is not positive or the corpus does not fit the training.
    """
    require_positive(steps=steps)
    training = replace(training, steps=steps, warmup_steps=None)
    windows = TokenWindows(corpus.train, training.context, training.batch_size, training.seed)
    stepper = _Stepper(decoder, training)
    losses, norms, loading, computing = [], [], [], []
    for step in range(steps):
        started = time.perf_counter()
        batch = (batches or windows.batch)(step)
        came = time.perf_counter()
        loss, norm = stepper.step(batch)
        losses.append(loss)
        norms.append(norm)
        loading.append(came - started)
        computing.append(time.perf_counter() - came)
        if stepper.not_finite:
            break
    quality = math.nan
    if not stepper.not_finite:
        held_out = validation_windows(corpus.validation, training.context, validation_count, training.validation_block)
        quality = stepper.bits_per_byte(held_out, torch.from_numpy(corpus.tokenizer.byte_lengths))
    return Trial(tuple(losses), tuple(norms), tuple(loading), tuple(computing), stepper.not_finite, quality)


class _Stepper:
    """One optimizer step after another."""

    def __init__(self, decoder: Decoder, training: TrainingConfig) -> None:
        self.decoder, self.training, self.not_finite = decoder.train(), training, ""
        recompute_layers(decoder, training.recompute)
        self.optimizer = build_optimizer(decoder, training)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, training)
        )
        self.device = decoder.embedding.weight.device
        accelerator = "cpu" if self.device.type == "cpu" else "gpu"
        self.mixed = resolve_precision(training.precision, accelerator) == "bf16-mixed"

    def step(self, windows: Tensor) -> tuple[float, float]:
        """Loss and gradient norm; weights stay where one of them is not finite."""
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            loss, nll = training_loss(self.decoder, windows.to(self.device))
        loss.backward()
        self.not_finite = first_not_finite(self.decoder) if bool(loss.isfinite()) else "loss"
        norm = nn.utils.clip_grad_norm_(self.decoder.parameters(), self.training.gradient_clip)
        if not self.not_finite:
            self.optimizer.step()
            self.schedule.step()
            update_balancers(self.decoder)
        return nll.item(), norm.item()

    @torch.no_grad()
    def bits_per_byte(self, windows: Tensor, byte_lengths: Tensor) -> float:
        """Of validation windows (count, context + 1)."""
        self.decoder.eval()
        nll = 0.0
        for batch in windows.split(self.training.batch_size):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
                nll += next_token_nll(self.decoder, batch.to(self.device), reduction="sum").item()
        self.decoder.train()
        return nll / math.log(2.0) / float(byte_lengths[windows[:, 1:]].sum())


def first_not_finite(model: nn.Module) -> str:
    """The first parameter, in the model's order, whose gradient is infinite or NaN; empty if there is none."""
    bad = (
        name
        for name, each in model.named_parameters()
        if each.grad is not None and not bool(each.grad.isfinite().all())
    )
    return next(bad, "")
