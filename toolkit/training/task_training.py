"""Training a decoder on a synthetic task: one plain loop, whose every batch is a function of its step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from toolkit.checks import require, require_positive
from toolkit.compute import cost
from toolkit.data.examples import Examples
from toolkit.data.synthetic import Task
from toolkit.models import Decoder, DecoderConfig
from toolkit.training.config import TrainingConfig
from toolkit.training.optimizer import build_optimizer
from toolkit.training.schedule import learning_rate_factor
from toolkit.training.step import training_loss

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class TaskRun:
    """What a run on a task spent and where its loss ended.

    Attributes:
        steps, tokens: trained on.
        flops: spent, in the ``exact`` convention.
        loss: nats per asked token, mean over the last tenth of the steps.
        seconds: wall-clock.
    """

    steps: int
    tokens: int
    flops: float
    loss: float
    seconds: float


def step_flops(model: DecoderConfig, config: TrainingConfig) -> float:
    """Training FLOPs of one step, ``exact`` convention."""
    return cost(model, config.context).training_flops["exact"] * config.tokens_per_step


def with_budget(config: TrainingConfig, model: DecoderConfig, flops: float) -> TrainingConfig:
    """The same with as many steps as come nearest to ``flops``: within half a step's.

    Raises:
        ValueError: if ``flops`` is not positive, or less than half a step's.
    """
    require_positive(flops=flops)
    step = step_flops(model, config)
    steps = round(flops / step)
    require(steps > 0, "flops", flops, f"at least one step's {step:g}")
    return replace(config, steps=steps)


def train_on_task(
    decoder: Decoder,
    task: Task,
    config: TrainingConfig,
    *,
    report: Callable[[int, int], None] | None = None,
    board: SummaryWriter | None = None,
) -> TaskRun:
    """Train ``decoder`` in place, on the device and in the dtype of its parameters.

    Step s is trained on rows s * batch_size and on of (task, config.seed), so that the same decoder, task and config
    give the same weights. No Lightning, no checkpoints, one process: for models of seconds or minutes.

    Args:
        decoder: the model; what is random in its initialisation is the caller's.
        task: what it learns; its length must be the config's ``context``.
        config: steps, batch size, schedule, optimizer, gradient clip, seed; ``log_every`` is of the curves. Its
            precision, validation and checkpoints are of no use here. See :func:`with_budget`.
        report: called with (step, steps) after every ``log_every`` steps.
        board: where the loss and the learning rate are written.

    Raises:
        ValueError: if the context is not the task's length, or the decoder's vocabulary smaller than the task's.
        FloatingPointError: the loss is not finite.
    """
    require(config.context == task.length, "context", config.context, f"the task's length={task.length}")
    known = decoder.config.vocab_size
    require(known >= task.vocab_size, "vocab_size", known, f"at least the task's {task.vocab_size}")
    optimizer = build_optimizer(decoder, config)
    losses: list[float] = []
    start = time.perf_counter()
    decoder.train()
    for step in range(config.steps):
        rate = config.learning_rate * learning_rate_factor(step, config)
        losses.append(_step(decoder, task, config, step, optimizer, rate))
        if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
            _write(board, losses[-config.log_every :], rate, step + 1)
            if report is not None:
                report(step + 1, config.steps)
    seconds = time.perf_counter() - start
    tail = losses[-max(1, config.steps // 10) :]
    spent = step_flops(decoder.config, config) * config.steps
    return TaskRun(config.steps, config.tokens_per_step * config.steps, spent, sum(tail) / len(tail), seconds)


def _step(
    decoder: Decoder, task: Task, config: TrainingConfig, step: int, optimizer: torch.optim.Optimizer, rate: float
) -> float:
    """One step at this learning rate; the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    device = decoder.embedding.weight.device
    rows = task.sample(config.batch_size, config.seed, first_row=step * config.batch_size)
    loss, nll = training_loss(decoder, Examples(rows.input_ids.to(device), rows.labels.to(device)))
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss of step {step} is {float(loss.detach())}")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(decoder.parameters(), config.gradient_clip)
    optimizer.step()
    return float(nll)


def _write(board: SummaryWriter | None, losses: list[float], rate: float, step: int) -> None:
    if board is not None:
        board.add_scalar("train/loss", sum(losses) / len(losses), step)
        board.add_scalar("train/learning_rate", rate, step)
