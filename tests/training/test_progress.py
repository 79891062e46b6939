"""When a run reports how far it is, by a clock that is made up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from toolkit.training import progress
from toolkit.training.progress import ReportProgress


def reports(monkeypatch: pytest.MonkeyPatch, times: list[float], main: bool = True) -> list[tuple[int, int]]:
    """What is reported when steps 1, 2, ... end at these times."""
    seen: list[tuple[int, int]] = []
    callback = ReportProgress(lambda step, steps: seen.append((step, steps)), steps=9, seconds=0.5)
    for step, now in enumerate(times, start=1):
        monkeypatch.setattr(progress.time, "monotonic", lambda now=now: now)
        trainer: Any = SimpleNamespace(is_global_zero=main, global_step=step)
        callback.on_train_batch_end(trainer, None, None, torch.zeros(1), 0)
    return seen


def test_no_more_often_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reports(monkeypatch, [10.0, 10.2, 10.4, 10.6, 10.7, 11.2]) == [(1, 9), (4, 9), (6, 9)]


def test_the_main_process_alone_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reports(monkeypatch, [10.0, 20.0], main=False) == []
