"""Tells whoever started a run how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning
from torch import Tensor


class ReportProgress(lightning.Callback):
    """Calls ``report(step, steps)`` about twice a second, from the main process only.

    Args:
        report: takes the steps done and the steps planned.
        steps: the steps planned.
        seconds: least time between two calls.
    """

    def __init__(self, report: Callable[[int, int], None], steps: int, seconds: float = 0.5) -> None:
        self.report, self.steps, self.seconds = report, steps, seconds
        self._last = 0.0

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        """Report, if it is time to."""
        now = time.monotonic()
        if trainer.is_global_zero and now - self._last >= self.seconds:
            self._last = now
            self.report(trainer.global_step, self.steps)
