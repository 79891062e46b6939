"""Whose folder it is, and files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from toolkit.scaling import ResultsTable, StudyFolder

SETTINGS = "grid:\n  seeds: 2\nmodel:\n  top_k: 2\n"


def test_a_new_folder_is_made_and_says_whose_it_is(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "some" / "where")
    folder.claim(SETTINGS)
    assert folder.settings.read_text() == SETTINGS
    assert [path.name for path in folder.path.iterdir()] == ["study.yaml"]


def test_the_same_settings_may_come_back(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    folder.claim(SETTINGS)
    before = folder.settings.stat().st_mtime_ns
    folder.claim(SETTINGS)
    assert folder.settings.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (SETTINGS.replace("top_k: 2", "top_k: 4"), "was 'top_k: 2', now 'top_k: 4'"),
        (SETTINGS + "  window: 8\n", "was '', now 'window: 8'"),
        ("grid:\n  seeds: 2\n", "was 'model:', now ''"),
    ],
)
def test_other_settings_are_refused_with_the_line_that_differs(tmp_path: Path, other: str, difference: str) -> None:
    folder = StudyFolder(tmp_path)
    folder.claim(SETTINGS)
    with pytest.raises(ValueError, match="out=.*: it must be another folder") as refusal:
        folder.claim(other)
    assert difference in str(refusal.value)
    assert folder.settings.read_text() == SETTINGS


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here first")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="out=.*: it must be a folder that can be made"):
            StudyFolder(path).claim(SETTINGS)
    assert (tmp_path / "file").read_text() == "here first"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root, who may write anywhere
    with pytest.raises(ValueError, match="out=.*: it must be a folder that can be written"):
        StudyFolder(tmp_path).claim(SETTINGS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="out=.*: it must be a folder"):
        StudyFolder(tmp_path / "study").claim(SETTINGS)
    with pytest.raises(ValueError, match="out=.*: it must be a folder"):
        StudyFolder(tmp_path).claim(SETTINGS)


def test_a_crash_while_claiming_leaves_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(descriptor: int) -> None:
        raise OSError("the machine stops here")

    monkeypatch.setattr(os, "fsync", crash)
    folder = StudyFolder(tmp_path)
    with pytest.raises(OSError, match="the machine stops here"):
        folder.claim(SETTINGS)
    assert not folder.settings.exists()
    monkeypatch.undo()
    folder.claim(SETTINGS)
    assert folder.settings.read_text() == SETTINGS


def test_what_is_where(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    assert isinstance(folder.table, ResultsTable)
    assert folder.table.path == tmp_path / "results.csv"
    assert folder.step_seconds == tmp_path / "step_seconds.json"
    assert folder.run("dense-dim8") == tmp_path / "runs" / "dense-dim8"


def test_one_sweep_at_a_time(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    with folder.alone(), pytest.raises(ValueError, match="no other sweep is at work in"), folder.alone():
        pass
    with folder.alone():  # and the next one may
        pass
