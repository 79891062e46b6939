"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from toolkit.files import replacing, write_atomically


def test_it_writes_and_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    for text in ("first: é\n", "second\n", ""):
        write_atomically(tmp_path / "file", text)
        assert (tmp_path / "file").read_text(encoding="utf-8") == text
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_crash_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    write_atomically(tmp_path / "file", "before")

    def crash(*arguments: object) -> None:
        raise OSError("the machine stops here")

    monkeypatch.setattr(*((os, "fsync") if fails == "fsync" else (Path, "replace")), crash)
    with pytest.raises(OSError, match="the machine stops here"):
        write_atomically(tmp_path / "file", "after")
    assert (tmp_path / "file").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_was_written_before_an_error_is_gone(tmp_path: Path) -> None:
    def half() -> None:
        with replacing(tmp_path / "file") as path:
            path.write_bytes(b"half")
            raise RuntimeError("the writer stops here")

    with pytest.raises(RuntimeError, match="the writer stops here"):
        half()
    assert not list(tmp_path.iterdir())


def test_it_is_on_the_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append("fsync"), fsync(descriptor))[1])
    monkeypatch.setattr(Path, "replace", lambda path, target: (done.append("replace"), replace(path, target))[1])
    write_atomically(tmp_path / "file", "text")
    assert done == ["fsync", "replace"]
