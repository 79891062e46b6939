"""Checkpoints of chosen steps, which stay beside the last one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from toolkit.checks import require
from toolkit.training.branch import checkpoint_of
from toolkit.training.exact_resume import step_is_done


class KeptCheckpoints(Checkpoint):
    """Saves the run when each of ``steps`` is done, as ``checkpoints/step<N>.ckpt``.

    As a ``Checkpoint`` it comes after the callbacks that count, so that what it saves includes the step. A step that a
    run has behind it when it goes on from a checkpoint is not saved again.

    Args:
        folder: the run's folder.
        steps: after which to save.
        last: the run's last step.

    Raises:
        ValueError: if a step is not one of the run's.
    """

    def __init__(self, folder: Path, steps: Sequence[int], last: int) -> None:
        for step in steps:
            require(0 < step <= last, "keep_at", step, f"between 1 and steps={last}")
        self.folder, self.steps = folder, frozenset(steps)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        """Save, if it is time to."""
        if step_is_done(trainer, batch_idx) and trainer.global_step in self.steps:
            trainer.save_checkpoint(checkpoint_of(self.folder, trainer.global_step))
