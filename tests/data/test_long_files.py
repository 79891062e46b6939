"""Whole long files, on the side of the split that the corpus has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.data import CorpusConfig, StandardLibrary, TextFiles, long_files, prepare_corpus


def test_the_library_has_long_files_on_both_sides_and_they_are_the_files() -> None:
    files = long_files()
    assert files == long_files()
    documents = {document.name: document.text for document in StandardLibrary().read().documents}
    for side in (files.train, files.validation):
        assert [one.name for one in side] == sorted(one.name for one in side)
        for one in side:
            assert one.text == documents[one.name]
            assert len(one.text.encode()) >= 65536
    assert not {one.name for one in files.train} & {one.name for one in files.validation}
    names = {name for name, text in documents.items() if len(text.encode()) >= 65536}
    assert {one.name for one in files.train + files.validation} <= names


def test_sides_are_the_corpuss_and_lengths_are_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02d}.txt").write_text("é" * (number + 1) + str(number), encoding="utf-8")
    (folder / "copy.txt").write_text("é" * 30 + "29", encoding="utf-8")
    corpus = prepare_corpus(CorpusConfig(paths=(str(folder),), validation_share=0.4), tmp_path / "cache")
    files = long_files(40, 0.4, TextFiles((str(folder),)))
    long = {f"texts/{number:02d}.txt" for number in range(30) if 2 * (number + 1) + len(str(number)) >= 40}
    for side, report in ((files.train, corpus.report.train), (files.validation, corpus.report.validation)):
        assert [one.name for one in side] == [name for name in report.documents if name in long]
    assert len(files.train) + len(files.validation) == len(long)


def test_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="min_bytes=1000000000.*no training file"):
        long_files(10**9)
    with pytest.raises(ValueError, match="min_bytes=-1"):
        long_files(-1)
