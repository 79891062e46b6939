"""Stops a run when its compute is spent."""

from __future__ import annotations

from typing import Any

import lightning
from torch import Tensor

from toolkit.checks import require_positive
from toolkit.data import Examples, as_examples
from toolkit.training.strategy import token_parts


class ComputeBudget(lightning.Callback):
    """Counts the FLOPs a run spends and ends it at the step that comes nearest to ``flops``.

    Counted are the tokens of the batches that were really trained on, over all devices, each at the
    model's training FLOPs in the ``exact`` convention. The count is part of the checkpoint.

    Args:
        flops: the budget, in training FLOPs of the ``exact`` convention.

    Raises:
        ValueError: if ``flops`` is not positive, or less than half of the first step's.
    """

    def __init__(self, flops: float) -> None:
        require_positive(flops=flops)
        self.flops, self.spent, self.tokens = flops, 0.0, 0

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """A run resumed from its last step has nothing left to do."""
        step = module.flops_per_batch * trainer.world_size
        if self.spent + step / 2 > self.flops and self.spent > 0:
            trainer.should_stop = True

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: Any, batch: Tensor | Examples, batch_idx: int
    ) -> None:
        """Refuse a budget that does not reach one step."""
        step = self._flops(trainer, module, batch)
        if self.spent == 0 and step > 2 * self.flops:
            raise ValueError(f"flops={self.flops:g}: it must be at least one step's {step:g}")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Tensor | Examples, batch_idx: int
    ) -> None:
        """Add the batch; stop if one more would end farther from the budget."""
        step = self._flops(trainer, module, batch)
        self.spent += step
        self.tokens += self._tokens(trainer, batch)
        if self.spent + step / 2 > self.flops:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"spent": self.spent, "tokens": self.tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.spent, self.tokens = state_dict["spent"], state_dict["tokens"]

    def _flops(self, trainer: lightning.Trainer, module: Any, batch: Tensor | Examples) -> float:
        return float(self._tokens(trainer, batch) * module.flops_per_token["exact"])

    @staticmethod
    def _tokens(trainer: lightning.Trainer, batch: Tensor | Examples) -> int:
        return as_examples(batch).input_ids.numel() * token_parts(trainer)
