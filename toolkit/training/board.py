"""The TensorBoard writer of a trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning
from lightning.pytorch.loggers import TensorBoardLogger

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def tensorboard_logger(trainer: lightning.Trainer) -> TensorBoardLogger:
    """The trainer's TensorBoard logger.

    Raises:
        ValueError: if the trainer logs elsewhere.
    """
    if not isinstance(trainer.logger, TensorBoardLogger):
        raise ValueError(f"logger={trainer.logger!r}: it must be a TensorBoardLogger, which these callbacks write to")
    return trainer.logger


def board(trainer: lightning.Trainer) -> SummaryWriter:
    """Its writer: ``add_scalar(tag, value, step)`` and the like."""
    return tensorboard_logger(trainer).experiment
