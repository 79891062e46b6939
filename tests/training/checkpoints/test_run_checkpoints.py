"""Runs whose checkpoints are damaged, cannot be written, or belong to a run that is at work."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from training_cases import MODEL, WINDOWS, budget, corpus, metrics, training

from toolkit.training import Fitted, fit, run
from toolkit.training.checkpoints import CheckpointNotSaved, CorruptCheckpoint, read_checkpoint
from toolkit.training.progress import ReportProgress
from toolkit.training.run_lock import RunLock

CONFIG = training(steps=16, checkpoint_minutes=1e-7)


class Killed(Exception):
    """Stands for the end of the process."""


def fit_in(folder: Path, at: Callable[[int], None] = lambda step: None, **settings: Any) -> Fitted:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "ReportProgress", functools.partial(ReportProgress, seconds=0.0))
        return fit(
            MODEL, CONFIG, corpus(), folder, budget(CONFIG), validation_count=WINDOWS,
            report=lambda step, _: at(step), **settings,
        )  # fmt: skip


def kill(step: int) -> Callable[[int], None]:
    def at(done: int) -> None:
        if done == step:
            raise Killed

    return at


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, asdict(fit_in(folder))


@pytest.mark.parametrize("damage", [cut, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_run_goes_on_from_the_one_before_to_the_same_end(
    unbroken: tuple[Path, dict[str, float]], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    with pytest.raises(Killed):
        fit_in(tmp_path, kill(9))
    last, previous = tmp_path / "checkpoints" / "last.ckpt", tmp_path / "previous.ckpt"
    assert [read_checkpoint(path)["global_step"] for path in (previous, last)] == [7, 8]
    damage(last)
    seen: list[int] = []
    with pytest.warns(UserWarning, match=r"last\.ckpt is corrupt: last\.ckpt.*goes on from .*previous\.ckpt"):
        reached = fit_in(tmp_path, seen.append)
    assert seen[0] == 8
    assert asdict(reached) | {"seconds": 0} == unbroken[1] | {"seconds": 0}
    assert metrics(tmp_path) == metrics(unbroken[0])


def test_a_run_none_of_whose_checkpoints_is_whole_does_not_begin_anew(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        fit_in(tmp_path, kill(9))
    cut(tmp_path / "checkpoints" / "last.ckpt")
    cut(tmp_path / "previous.ckpt")
    with pytest.raises(CorruptCheckpoint, match="none to go on from"):
        fit_in(tmp_path)


def test_a_full_disk_ends_the_run_which_goes_on_when_there_is_room(
    unbroken: tuple[Path, dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(step: int) -> None:
        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        if step == 9:
            monkeypatch.setattr(torch, "save", full)

    with pytest.raises(CheckpointNotSaved, match=r"No space left on device; .*last\.ckpt is as it was"):
        fit_in(tmp_path, fill)
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] in (8, 9)
    assert asdict(fit_in(tmp_path)) | {"seconds": 0} == unbroken[1] | {"seconds": 0}


@pytest.mark.parametrize("ended", [False, True])
def test_a_validation_that_was_cut_off_is_done_when_the_run_goes_on(
    unbroken: tuple[Path, dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    """Killed in it, or just after: the step's checkpoint is of before it either way."""

    def killed(self: Any, trainer: Any, module: Any) -> None:
        if trainer.global_step == 8:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run.RouterMonitor, "on_validation_epoch_start", killed)
        if ended:
            patch.undo()
            patch.setattr(run.ExactResume, "on_validation_end", killed, raising=False)
        with pytest.raises(Killed):
            fit_in(tmp_path)
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 8
    assert asdict(fit_in(tmp_path)) | {"seconds": 0} == unbroken[1] | {"seconds": 0}
    assert metrics(tmp_path) == metrics(unbroken[0])


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run") as lock:
        lock.take()
        lock.take()  # it is this run's already
        with pytest.raises(ValueError, match=r"folder='.*run': it must be a folder that no other run is at work in"):
            fit_in(tmp_path / "run")
        assert not (tmp_path / "run" / "run.json").exists()
    with RunLock(tmp_path / "run") as again:
        again.take()
