"""A run's checkpoints: which is used, what is kept when one cannot be written, and that a crash leaves a whole one."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from toolkit.training import checkpoints
from toolkit.training.checkpoints import (
    CheckpointNotSaved,
    CheckpointStore,
    CorruptCheckpoint,
    problems,
    read_checkpoint,
    write_checkpoint,
)
from toolkit.training.checkpoints.publish import remove


def state(step: int) -> dict[str, Any]:
    return {"state_dict": {"x": torch.full((50,), float(step))}, "global_step": step}


def step_of(path: Path) -> int:
    return int(read_checkpoint(path)["global_step"])


def store_with(folder: Path, *steps: int, sharded: bool = False) -> CheckpointStore:
    store = CheckpointStore(folder)
    for step in steps:
        write_checkpoint(state(step), store.last, before=store.previous, sharded=sharded)
    return store


def spoil(path: Path) -> None:
    file = path / "rest.pt" if path.is_dir() else path
    file.write_bytes(file.read_bytes()[:-1])


def test_the_one_before_the_last_stays(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    assert store.newest() is None
    for step in (1, 2, 3):
        store.save_checkpoint(state(step), store.last)
        assert step_of(store.last) == step
        assert not store.previous.exists() if step == 1 else step_of(store.previous) == step - 1
    store.save_checkpoint(state(3), tmp_path / "checkpoints" / "step3.ckpt")
    assert step_of(store.previous) == 2
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"last.ckpt", "step3.ckpt"}


@pytest.mark.parametrize("sharded", [False, True])
def test_a_corrupt_last_one_is_named_and_the_one_before_it_used_and_kept(tmp_path: Path, sharded: bool) -> None:
    store = store_with(tmp_path, 1, 2, sharded=sharded)
    assert store.newest() == store.last
    spoil(store.last)
    store = CheckpointStore(tmp_path)
    wrong = "rest.pt" if sharded else "last.ckpt"
    with pytest.warns(UserWarning, match=rf"last\.ckpt is corrupt: {wrong}.*goes on from .*previous\.ckpt"):
        assert store.newest() == store.previous
    assert store.load_checkpoint(store.previous)["global_step"] == 1
    store.save_checkpoint(state(5), store.last)  # must not put the corrupt one in the place of the whole one
    assert (step_of(store.last), step_of(store.previous)) == (5, 1)
    store.save_checkpoint(state(6), store.last)
    assert (step_of(store.last), step_of(store.previous)) == (6, 5)


def test_if_none_is_whole_both_are_named(tmp_path: Path) -> None:
    store = store_with(tmp_path, 1, 2)
    spoil(store.last)
    spoil(store.previous)
    with pytest.raises(
        CorruptCheckpoint, match=r"last\.ckpt is corrupt.*previous\.ckpt is corrupt.*none to go on from"
    ):
        CheckpointStore(tmp_path).newest()


def test_a_kept_one_that_is_corrupt_is_refused(tmp_path: Path) -> None:
    store, path = CheckpointStore(tmp_path), tmp_path / "checkpoints" / "step4.ckpt"
    store.save_checkpoint(state(4), path)
    spoil(path)
    with pytest.raises(CorruptCheckpoint, match=r"step4\.ckpt"):
        store.load_checkpoint(path)


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


WRITERS: dict[str, tuple[Any, str]] = {
    "torch.save": (torch, "save"),
    "seal": (checkpoints.folder, "seal"),
    "publish": (checkpoints.folder, "publish"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_leaves_the_last_one_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    store = store_with(tmp_path, 1, 2)
    monkeypatch.setattr(*WRITERS[writer], full)
    words = r"checkpoints/last\.ckpt could not be saved: .*No space left on device; .*last\.ckpt is as it was"
    with pytest.raises(CheckpointNotSaved, match=words):
        store.save_checkpoint(state(3), store.last)
    monkeypatch.undo()
    assert (step_of(store.last), step_of(store.previous)) == (2, 1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]  # nothing half-written


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """/dev/full fails every write as a full disk does, within torch's own writer."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with pytest.raises(OSError, match="bytes free"):
        checkpoints.folder._save(state(1), Path("/dev/full"))


def test_the_first_one_that_cannot_be_saved_says_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointNotSaved, match="there is none before it"):
        store.save_checkpoint(state(1), store.last)


class Crash(BaseException):
    """Stands for the end of the process: nothing after it is done."""


@pytest.mark.filterwarnings("ignore:.*is missing.*goes on from")
@pytest.mark.parametrize("sharded", [False, True])
def test_wherever_a_crash_cuts_publishing_a_whole_one_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharded: bool
) -> None:
    """Dies before the n-th change of the file system, for every n."""
    reached = 0
    for crash_at in range(1, 40):
        folder = tmp_path / str(crash_at)
        store, changes = store_with(folder, 1, 2, sharded=sharded), 0

        def counted(real: Callable[..., Any], at: int = crash_at) -> Callable[..., Any]:
            def change(*arguments: Any, **settings: Any) -> Any:
                nonlocal changes
                changes += 1
                if changes >= at:
                    raise Crash
                return real(*arguments, **settings)

            return change

        with monkeypatch.context() as patch:
            for owner, name in ((os, "rename"), (os, "replace"), (os, "unlink"), (shutil, "rmtree"), (os, "fsync")):
                patch.setattr(owner, name, counted(getattr(owner, name)))
            try:
                write_checkpoint(state(3), store.last, before=store.previous, sharded=sharded)
            except Crash:
                reached = crash_at
        newest = CheckpointStore(folder).newest()
        assert newest is not None
        assert step_of(newest) in (2, 3)
        store_with(folder, 4, sharded=sharded)  # what was left in the way does no harm
        assert step_of(store.last) == 4
        if changes < crash_at:
            break
    assert reached >= 4  # there were such moments
    assert problems(store.last) == []


@pytest.mark.parametrize(("first", "second"), [(False, True), (True, False)])
def test_a_folder_takes_a_file_s_place_and_back(tmp_path: Path, first: bool, second: bool) -> None:
    store = store_with(tmp_path, 1, 2, sharded=first)
    for step in (3, 4):
        write_checkpoint(state(step), store.last, before=store.previous, sharded=second)
        assert (step_of(store.last), step_of(store.previous)) == (step, step - 1)
    write_checkpoint(state(5), store.last, sharded=first)
    assert step_of(store.last) == 5
    assert not list(tmp_path.rglob(".*"))
    remove(store.last)
    assert not store.last.exists()
