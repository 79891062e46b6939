"""A cache folder is whole or absent: after exceptions, kills and races."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.data.token_cache import open_tokens, publish, save_tokens, tokens_file

TOKENS = np.arange(1000, dtype=np.uint16)


def write(folder: Path) -> None:
    with publish(folder) as temporary:
        save_tokens(temporary, "train", TOKENS)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def in_child(*targets: Callable[[], Any]) -> list[int | None]:
    """Run functions in forked processes at the same time; give their exit codes."""
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=target) for target in targets]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    return [child.exitcode for child in children]


def test_what_is_written_is_mapped_read_only(tmp_path: Path) -> None:
    folder = tmp_path / "cache/deep/digest"
    write(folder)
    tokens = open_tokens(folder, "train")
    assert isinstance(tokens, np.memmap)
    assert not tokens.flags.writeable
    assert tokens.dtype == TOKENS.dtype
    np.testing.assert_array_equal(tokens, TOKENS)
    assert names(folder.parent) == ["digest"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_after_an_exception_while_writing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), publish(tmp_path / "digest") as temporary:
        save_tokens(temporary, "train", TOKENS)
        assert not (tmp_path / "digest").exists()
        raise error
    assert names(tmp_path) == []


def test_nothing_is_left_when_the_rename_fails_and_a_rerun_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Path, target: Path) -> None:
        assert tokens_file(self, "train").stat().st_size > TOKENS.nbytes  # all is written by now
        raise OSError("disk gone")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(OSError, match="disk gone"):
            write(tmp_path / "digest")
    assert names(tmp_path) == []
    write(tmp_path / "digest")
    np.testing.assert_array_equal(open_tokens(tmp_path / "digest", "train"), TOKENS)


def test_a_killed_process_leaves_nothing_taken_for_finished_and_a_rerun_works(tmp_path: Path) -> None:
    def killed() -> None:
        with publish(tmp_path / "digest") as temporary:
            save_tokens(temporary, "train", TOKENS)
            os._exit(9)

    assert in_child(killed) == [9]
    assert not (tmp_path / "digest").exists()
    assert [name.endswith(".partial") for name in names(tmp_path)] == [True]
    write(tmp_path / "digest")
    np.testing.assert_array_equal(open_tokens(tmp_path / "digest", "train"), TOKENS)


def test_of_two_that_publish_at_once_both_end_with_the_whole_folder(tmp_path: Path) -> None:
    ready = multiprocessing.get_context("fork").Barrier(2)

    def racer() -> None:
        with publish(tmp_path / "digest") as temporary:
            save_tokens(temporary, "train", TOKENS)
            ready.wait(30)  # both have written, neither has renamed
        os._exit(0 if np.array_equal(open_tokens(tmp_path / "digest", "train"), TOKENS) else 1)

    assert in_child(racer, racer) == [0, 0]
    assert names(tmp_path) == ["digest"]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cache_dir='.*file'.*written to"):
        write(tmp_path / "file/digest")

    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError("denied")

    monkeypatch.setattr(Path, "mkdir", denied)  # the tests may run as root, whom no mode stops
    with pytest.raises(ValueError, match=r"cache_dir=.*written to.*denied"):
        write(tmp_path / "digest")


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "digest")
    path = tokens_file(tmp_path / "digest", "train")
    data = path.read_bytes()
    for damage in (data[:-1], data[:40], b"", b"text"):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=r"train\.npy is damaged.*delete"):
            open_tokens(tmp_path / "digest", "train")
    path.unlink()
    with pytest.raises(ValueError, match=r"train\.npy is damaged"):
        open_tokens(tmp_path / "digest", "train")
