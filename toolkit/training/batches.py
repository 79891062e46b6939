"""The data as Lightning reads it: batches addressed by step, so that a resumed run goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from toolkit.checks import require
from toolkit.data import Examples, TaskMixture, TokenWindows, validation_windows
from toolkit.training.config import TrainingConfig
from toolkit.training.strategy import MeshStrategy, batch_reader


class StepBatches(lightning.LightningDataModule):
    """Training batches from the trainer's own step count, and the fixed validation windows.

    Nothing about the data needs to be in a checkpoint: batch = f(step, reader, readers, seed). Where the trainer
    accumulates gradients over n batches, ``batch_size`` is one micro-batch's and step s has those from
    s * n on.

    Args:
        train, validation: tokens of each split, (n,).
        config: context, batch size and seed.
        validation_count: windows to validate on, the same for every run.
        mixture: rows of a task in the place of some of the training windows.
    """

    def __init__(
        self,
        train: np.ndarray,
        validation: np.ndarray,
        config: TrainingConfig,
        validation_count: int = 256,
        mixture: TaskMixture | None = None,
    ) -> None:
        super().__init__()
        self.train, self.config, self.mixture = train, config, mixture
        self.windows = validation_windows(validation, config.context, validation_count, config.validation_block)

    def train_dataloader(self) -> _FromStep:
        """An endless stream of (batch / readers, context + 1), or of Examples with a mixture."""
        trainer = self._attached()
        rank, count = batch_reader(trainer)
        size, seed = self.config.batch_size, self.config.seed
        windows = TokenWindows(self.train, self.config.context, size, seed, rank=rank, world_size=count)
        return _FromStep(windows, trainer, seed, self.mixture)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """This process's share of the validation windows, in batches.

        It draws from a generator of its own, since a loader takes a number whenever it is iterated: how often a run
        is validated would otherwise change the dropout and the router noise that it trains with.

        Raises:
            ValueError: if the model is spread over processes and they would differ in how many windows they have: they
                would wait for one another; or if a pipeline's cannot be cut into its micro-batches.
        """
        trainer = self._attached()
        rank, count = batch_reader(trainer)
        strategy = getattr(trainer, "strategy", None)
        if isinstance(strategy, MeshStrategy):
            parts = count * strategy.parallel.micro_batch_count
            sizes = "data * shard" if parts == count else "data * shard * micro_batches"
            even = len(self.windows) % parts == 0
            require(even, "validation_count", len(self.windows), f"a multiple of {sizes} = {parts}")
        batches = self.windows[rank::count].split(self.config.batch_size // count)
        return DataLoader(batches, batch_size=None, generator=torch.Generator())

    def _attached(self) -> lightning.Trainer:
        if self.trainer is None:
            raise ValueError("trainer=None: pass this data module to a Trainer, which says which batches are its own")
        return self.trainer


class _FromStep:
    """Iterates from the trainer's global step, whatever it is when iteration starts.

    Where gradients are accumulated over several batches, a step is as many batches of the stream.
    """

    def __init__(
        self, windows: TokenWindows, trainer: lightning.Trainer, seed: int, mixture: TaskMixture | None
    ) -> None:
        self.windows, self.trainer, self.seed, self.mixture = windows, trainer, seed, mixture

    def __iter__(self) -> Iterator[Tensor | Examples]:
        rank, count = batch_reader(self.trainer)
        index = self.trainer.global_step * self.trainer.accumulate_grad_batches
        while True:
            windows = self.windows.batch(index)
            mixture = self.mixture
            yield windows if mixture is None else mixture.mix(windows, index, self.seed, rank, count)
            index += 1
