"""Watches every router of a model while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import numpy as np
from torch import Tensor

from toolkit.layers import MoE
from toolkit.routing import RoutingStats
from toolkit.training.board import board


class RouterMonitor(lightning.Callback):
    """Logs, per MoE layer, load, token entropy, MaxVio and dropped share, and a heat map of the load.

    Figures are of the global batch: every process's counts are added. The heat map (experts x time,
    perfect balance grey, twice its share white) is drawn when training ends; ``load.npz`` in the run's
    folder holds the numbers.

    Args:
        folder: the run's folder.
        every: steps between two records.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self.steps: list[int] = []
        self.loads: dict[str, list[list[float]]] = {}
        self.last: dict[str, RoutingStats] = {}

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        """Every so often, record how the step's tokens were routed."""
        if trainer.global_step % self.every and trainer.global_step != 1:
            return
        self.last = {name: moe.stats.all_reduce() for name, moe in moe_layers(module)}
        self.steps.append(trainer.global_step)
        for name, stats in self.last.items():
            self.loads.setdefault(name, []).append(stats.load.tolist())
            if trainer.is_global_zero:
                _log(trainer, name, stats)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Draw the heat maps and save the loads."""
        if not (trainer.is_global_zero and self.loads):
            return
        loads = {name: np.array(rows) for name, rows in self.loads.items()}
        arrays: dict[str, Any] = {"steps": np.array(self.steps), **loads}
        np.savez(self.folder / "load.npz", **arrays)
        for name, load in loads.items():
            image = np.clip(load.T * load.shape[1] / 2, 0, 1)  # (experts, records)
            pixels = np.kron(image, np.ones((8, 4)))[None]
            board(trainer).add_image(f"router/{name}/load_heat_map", pixels, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"steps": self.steps, "loads": self.loads, "last": {name: x.pack() for name, x in self.last.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.steps, self.loads = state_dict["steps"], state_dict["loads"]
        self.last = {name: RoutingStats.unpack(packed) for name, packed in state_dict["last"].items()}


def moe_layers(module: Any) -> list[tuple[str, MoE]]:
    """Every MoE of a LanguageModel with a short name: ``layer0``, ``layer1``, ..."""
    blocks = module.decoder.blocks
    return [(f"layer{i}", block.feed_forward) for i, block in enumerate(blocks) if isinstance(block.feed_forward, MoE)]


def _log(trainer: lightning.Trainer, name: str, stats: RoutingStats) -> None:
    writer, step = board(trainer), trainer.global_step
    writer.add_scalar(f"router/{name}/token_entropy", stats.entropy, step)
    writer.add_scalar(f"router/{name}/max_violation", stats.max_violation, step)
    writer.add_scalar(f"router/{name}/dropped_share", stats.dropped, step)
    for expert, share in enumerate(stats.load.tolist()):
        writer.add_scalar(f"router/{name}/load/expert{expert}", share, step)
