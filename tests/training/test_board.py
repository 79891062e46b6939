"""The writer behind a trainer's logger."""

from __future__ import annotations

from pathlib import Path

import lightning
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from toolkit.training.board import board, tensorboard_logger


def test_it_is_the_logger_s_own(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    trainer = lightning.Trainer(accelerator="cpu", logger=logger, enable_checkpointing=False)
    assert tensorboard_logger(trainer) is logger
    assert board(trainer) is logger.experiment


@pytest.mark.parametrize("logger", [False, "csv"])
def test_another_logger_is_refused(tmp_path: Path, logger: bool | str) -> None:
    other = CSVLogger(tmp_path) if logger == "csv" else False
    trainer = lightning.Trainer(accelerator="cpu", logger=other, enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"logger=.*: it must be a TensorBoardLogger"):
        board(trainer)
