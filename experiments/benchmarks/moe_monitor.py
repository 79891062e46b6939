"""Training steps with and without what watches the routers, for :mod:`moe` beside it.

A step is ``LanguageModel``'s, taken without a Trainer, whose own cost would stand on both sides: loss, backward,
clipping, AdamW. What watches is called where the Trainer calls it: the guard against logits that are not finite before
every optimizer step, ``RouterMonitor``'s hooks around the batch. Every EVERY steps those record: statistics of every
layer, pairs, the flip rate's forward of one sequence, and TensorBoard's curves, which a thread of its own writes.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import Precision

from toolkit.layers import MoE
from toolkit.scaling import ModelShape
from toolkit.training import LanguageModel, RouterMonitor, TrainingConfig, training_loss

SHAPE, DIM = ModelShape(), 64
TRAINING = TrainingConfig(steps=1, context=256, batch_size=8, precision="32-true")
"""As in ``experiments/presets/laptop.yaml``, at a width from the middle of its grid."""
EVERY = TRAINING.log_every


class Watched:
    """A decoder in training; a call is one step.

    Args:
        guard: refuse logits that are not finite.
        monitor: a ``RouterMonitor``, given a stand-in for the Trainer that has what the hooks ask for.
        statistics: compute every layer's ``RoutingStats`` in every step, and read none.

    Attributes:
        watching: seconds spent in the monitor's hooks, step by step.
    """

    def __init__(self, guard: bool = True, monitor: RouterMonitor | None = None, statistics: bool = False) -> None:
        torch.manual_seed(0)
        self.module = LanguageModel(SHAPE.decoder("moe", DIM, 256), TRAINING)
        self.optimizer = self.module.configure_optimizers()["optimizer"]
        self.windows = torch.randint(256, (TRAINING.batch_size, TRAINING.context + 1))
        self.guard, self.monitor, self.statistics = guard, monitor, statistics
        logger = None if monitor is None else TensorBoardLogger(monitor.folder, name="", version="")
        self.trainer: Any = SimpleNamespace(
            global_step=0, is_global_zero=True, sanity_checking=False, precision_plugin=Precision(), logger=logger
        )
        self.watching: list[float] = []

    def __call__(self) -> None:
        """One step."""
        self._watch("on_train_batch_start")
        loss = self._loss()
        loss.backward()
        if self.guard:
            self.module.on_before_optimizer_step(self.optimizer)
        self.module.configure_gradient_clipping(self.optimizer, TRAINING.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.trainer.global_step += 1
        if self.statistics:
            for layer in self.module.decoder.modules():
                if isinstance(layer, MoE):
                    _ = layer.stats
        self.watching.append(self._watch("on_train_batch_end", None))

    def _loss(self) -> torch.Tensor:
        if self.guard:
            return self.module.training_step(self.windows, 0)
        return training_loss(self.module.decoder, self.windows)[0]

    def _watch(self, hook: str, *outputs: Any) -> float:
        start = time.perf_counter()
        if self.monitor is not None:
            getattr(self.monitor, hook)(self.trainer, self.module, *outputs, self.windows, 0)
        return time.perf_counter() - start


def contenders(folder: Path) -> dict[str, Watched]:
    """By what they have: the first nothing, the second the guard, which the others have too."""
    return {
        "nothing": Watched(guard=False),
        "guard": Watched(),
        "statistics every step": Watched(statistics=True),
        f"monitor every {EVERY} steps, no probe": Watched(monitor=RouterMonitor(folder / "plain", EVERY, probe=False)),
        f"monitor every {EVERY} steps": Watched(monitor=RouterMonitor(folder / "probed", EVERY)),
    }


def by_period(seconds: list[float]) -> list[float]:
    """Seconds of steps -> of every EVERY of them, each of which holds one record."""
    return [sum(seconds[start : start + EVERY]) for start in range(0, len(seconds), EVERY)]
