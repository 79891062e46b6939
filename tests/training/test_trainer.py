"""Lightning's Trainer as a run wants it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from training_cases import training

from toolkit.parallel import ParallelConfig
from toolkit.training.checkpoints.store import CheckpointStore
from toolkit.training.trainer import build_trainer


def test_under_slurm_lightning_does_not_requeue_on_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    parallel, store = ParallelConfig(accelerator="cpu"), CheckpointStore(tmp_path)
    trainer = build_trainer(tmp_path, training(), parallel, "32-true", [], False, store)
    connector = trainer._signal_connector
    before = {each: signal.getsignal(each) for each in (signal.SIGUSR1, signal.SIGTERM)}
    connector.register_signal_handlers()
    try:
        assert signal.getsignal(signal.SIGUSR1) == before[signal.SIGUSR1]
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
