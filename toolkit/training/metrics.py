"""What a run writes down: one metrics table and TensorBoard curves over four axes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.distributed as dist
from lightning.fabric.utilities.throughput import get_available_flops
from torch import Tensor

from toolkit.files import write_atomically
from toolkit.training.board import board, tensorboard_logger
from toolkit.training.budget import ComputeBudget
from toolkit.training.exact_resume import validation_is_due

AXES = {"": "step", "_by_tokens": "tokens", "_by_gigaflops": "gigaflops", "_by_milliseconds": "milliseconds"}
"""Suffix of a TensorBoard tag, and what its horizontal axis then counts.

TensorBoard's axis is a whole number, so FLOPs are in units of 1e9 and seconds of 1e-3."""

LAYOUT = {
    "loss": {
        f"against {axis}": ["Multiline", [f"train/loss{suffix}", f"validation/bits_per_byte{suffix}"]]
        for suffix, axis in AXES.items()
    }
}


def places(step: int, tokens: int, flops: float, seconds: float) -> dict[str, int]:
    """Where a run stands on each of the axes, by the axis' name."""
    return {"step": step, "tokens": tokens, "gigaflops": round(flops / 1e9), "milliseconds": round(seconds * 1e3)}


def whole_rows(table: Path) -> list[str]:
    """The lines of ``metrics.jsonl``, none where there is no file; one torn by a kill is left out."""
    rows = table.read_text().splitlines() if table.exists() else []
    return [row for row in rows if row.endswith("}")]


class RunMetrics(lightning.Callback):
    """Writes ``metrics.jsonl`` and TensorBoard scalars: loss and bits per byte against four axes.

    Also fills TensorBoard's HParams tab: metrics are declared when training starts and set at each
    validation, so that runs can be compared there.

    Args:
        folder: the run's folder.
        budget: the callback that counts FLOPs and tokens.
        every: steps between two rows.
        hparams: flat settings by which runs are to be compared.
    """

    def __init__(self, folder: Path, budget: ComputeBudget, every: int, hparams: dict[str, Any]) -> None:
        self.folder, self.budget, self.every, self.hparams = folder, budget, every, hparams
        self.seconds = 0.0  # training time, validation and logging left out
        self.losses: list[tuple[int, float]] = []
        self._started = self._rate = 0.0

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Declare the HParams tab's metric, the layout of the curves, and why there is no MFU."""
        if trainer.is_global_zero:
            again = trainer.should_stop or validation_is_due(trainer)
            self._forget_after(trainer.global_step, validated_again=again)
            tensorboard_logger(trainer).log_hyperparams(self.hparams, {"hp/bits_per_byte": float("nan")})
            board(trainer).add_custom_scalars(LAYOUT)
            device = trainer.strategy.root_device
            if get_available_flops(device, torch.float32) is None:
                board(trainer).add_text(
                    "mfu", f"Not logged: Lightning's table has no peak FLOP/s of this {device.type}."
                )

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Tensor, batch_idx: int) -> None:
        """Start the clock; note the learning rate, which the schedule moves on at the step's end."""
        self._started = time.perf_counter()
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        """Stop the clock; every so often read the loss."""
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()  # a step has ended when its kernels have
        self.seconds += time.perf_counter() - self._started
        if trainer.global_step % self.every == 0 or trainer.global_step == 1:
            loss = _mean_over_processes(module.last_loss)
            self.losses.append((trainer.global_step, loss))
            self._write(trainer, {"train/loss": loss, "train/learning_rate": self._rate})

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Write the validation's bits per byte."""
        if trainer.sanity_checking:
            return
        self._write(trainer, {"validation/bits_per_byte": module.bits_per_byte})
        if trainer.is_global_zero:
            board(trainer).add_scalar("hp/bits_per_byte", module.bits_per_byte, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"seconds": self.seconds, "losses": self.losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.seconds, self.losses = state_dict["seconds"], [tuple(row) for row in state_dict["losses"]]

    def _forget_after(self, step: int, validated_again: bool) -> None:
        """Drop the rows a killed process wrote after the checkpoint this run goes on from.

        A validation of that very step goes too where it is done again, as at the end of a run that had ended.
        """
        table = self.folder / "metrics.jsonl"

        def stays(row: str) -> bool:
            again = validated_again and "validation/bits_per_byte" in row
            return bool(json.loads(row)["step"] <= step - again)

        write_atomically(table, "".join(row + "\n" for row in whole_rows(table) if stays(row)))

    def _write(self, trainer: lightning.Trainer, values: dict[str, float]) -> None:
        if not trainer.is_global_zero:
            return
        at = places(trainer.global_step, self.budget.tokens, self.budget.spent, self.seconds)
        for tag, value in values.items():
            for suffix, axis in AXES.items():
                board(trainer).add_scalar(tag + suffix, value, at[axis])
        with (self.folder / "metrics.jsonl").open("a") as table:
            table.write(json.dumps({**at, "flops": self.budget.spent, **values}) + "\n")


def _mean_over_processes(value: Tensor) -> float:
    if dist.is_available() and dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return value.item()
