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
from toolkit.training.check.validation import Floats, Validation
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
        validations: after a quarter and a half of the steps, and at the end; none that an early end left out.
    """

    losses: tuple[float, ...]
    norms: tuple[float, ...]
    loading: tuple[float, ...]
    computing: tuple[float, ...]
    not_finite: str
    validations: tuple[Validation, ...]


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
    held_out = validation_windows(corpus.validation, training.context, validation_count, training.validation_block)
    byte_lengths = torch.from_numpy(corpus.tokenizer.byte_lengths)
    losses, norms, loading, computing, validations = [], [], [], [], []
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
        if step + 1 in (math.ceil(steps / 4), math.ceil(steps / 2), steps):
            nll, text_bytes = stepper.validate(held_out, byte_lengths)
            validations.append(Validation(step + 1, nll, text_bytes))
    return Trial(tuple(losses), tuple(norms), tuple(loading), tuple(computing), stepper.not_finite, tuple(validations))


class _Stepper:
    """One optimizer step after another."""

    def __init__(self, decoder: Decoder, training: TrainingConfig) -> None:
        self.decoder, self.training, self.not_finite = decoder.train(), training, ""
        self.device = decoder.embedding.weight.device
        precision = resolve_precision(training.precision, "cpu" if self.device.type == "cpu" else "gpu")
        self.mixed = precision == "bf16-mixed"
        if precision == "64-true":
            decoder.double()
        recompute_layers(decoder, training.recompute)
        self.optimizer = build_optimizer(decoder, training)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, training)
        )

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
    def validate(self, windows: Tensor, byte_lengths: Tensor) -> tuple[Floats, Floats]:
        """Nats and bytes of each of the windows (count, context + 1), both (count,)."""
        self.decoder.eval()
        nll = []
        for batch in windows.split(self.training.batch_size):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
                each = next_token_nll(self.decoder, batch.to(self.device), reduction="none")
            nll.append(each.view(len(batch), -1).sum(dim=1, dtype=torch.float64).cpu())
        self.decoder.train()
        return torch.cat(nll).numpy(), byte_lengths[windows[:, 1:]].sum(dim=1, dtype=torch.float64).numpy()


def first_not_finite(model: nn.Module) -> str:
    """The first parameter, in the model's order, whose gradient is infinite or NaN; empty if there is none."""
    bad = (
        name
        for name, each in model.named_parameters()
        if each.grad is not None and not bool(each.grad.isfinite().all())
    )
    return next(bad, "")
