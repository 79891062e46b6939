"""Preparing a corpus: the tokens are the documents, the cache is used, and the digest follows the content."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.data import corpus as module
from toolkit.data.corpus import Corpus, CorpusConfig, prepare_corpus

TEXTS = {f"{number:02d}.txt": f"text number {number}, naïve 日本 " * (number + 1) for number in range(20)}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "blank.txt").write_text(" \n", encoding="utf-8")
    (folder / "copy.md").write_text(TEXTS["03.txt"].upper(), encoding="utf-8")
    return folder


@pytest.fixture
def config(texts: Path) -> CorpusConfig:
    return CorpusConfig(paths=(str(texts),), validation_share=0.3)


def bpe(config: CorpusConfig) -> CorpusConfig:
    return replace(config, tokenizer="bpe", vocab_size=270)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def texts_of(corpus: Corpus, tokens: Any) -> list[str]:
    text = corpus.tokenizer.decode(tokens)
    assert text.endswith("\0")
    return text[:-1].split("\0")


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_the_tokens_are_the_documents_that_the_report_names(
    config: CorpusConfig, tmp_path: Path, tokenizer: str
) -> None:
    corpus = prepare_corpus(config if tokenizer == "bytes" else bpe(config), tmp_path / "cache")
    named: list[str] = []
    for tokens, report in (
        (corpus.train, corpus.report.train),
        (corpus.validation, corpus.report.validation),
    ):
        expected = [TEXTS[name.removeprefix("texts/")] for name in report.documents]
        assert texts_of(corpus, tokens) == expected
        assert np.count_nonzero(tokens == corpus.tokenizer.separator) == len(expected)
        assert corpus.tokenizer.byte_lengths[tokens].sum() == report.bytes
        assert report.bytes == sum(len(text.encode()) + 1 for text in expected)
        assert report.tokens == len(tokens)
        assert isinstance(tokens, np.memmap)
        named += report.documents
    assert sorted(named) == [f"texts/{name}" for name in TEXTS]
    dropped = [(one.name, one.reason, one.repeats) for one in corpus.report.dropped]
    assert dropped == [
        ("texts/blank.txt", "empty", None),
        ("texts/copy.md", "repeats another", "texts/03.txt"),
    ]


def test_both_tokenizers_have_the_same_split_and_bytes(config: CorpusConfig, tmp_path: Path) -> None:
    one, other = prepare_corpus(config, tmp_path), prepare_corpus(bpe(config), tmp_path)
    assert one.report.train.documents == other.report.train.documents
    assert one.report.validation.bytes == other.report.validation.bytes
    assert (one.train.dtype, other.train.dtype) == (np.uint8, np.uint16)
    assert one.digest != other.digest


def test_bpe_is_trained_on_the_training_split_alone(config: CorpusConfig, texts: Path, tmp_path: Path) -> None:
    before = prepare_corpus(bpe(config), tmp_path / "cache")
    held_out = before.report.validation.documents[0]
    (texts.parent / held_out).write_text("zqzqzqzq " * 500, encoding="utf-8")
    after = prepare_corpus(bpe(config), tmp_path / "cache")
    assert after.report.validation.documents == before.report.validation.documents
    assert after.digest != before.digest
    trained = [tmp_path / "cache" / one.digest / "tokenizer.json" for one in (before, after)]
    assert trained[0].read_bytes() == trained[1].read_bytes()


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_the_second_time_nothing_is_tokenised_or_written(
    config: CorpusConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: str
) -> None:
    config = config if tokenizer == "bytes" else bpe(config)
    first = prepare_corpus(config, tmp_path / "cache")
    before = files(tmp_path / "cache")

    def never(*args: object) -> None:
        raise AssertionError("the cache was not used")

    monkeypatch.setattr(module, "_write", never)
    second = prepare_corpus(config, tmp_path / "cache")
    assert second.digest == first.digest
    assert second.report == first.report
    np.testing.assert_array_equal(second.train, first.train)
    assert files(tmp_path / "cache") == before


def test_the_digest_follows_the_content_and_not_the_place(config: CorpusConfig, texts: Path, tmp_path: Path) -> None:
    first = prepare_corpus(config, tmp_path / "cache").digest
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = texts.rename(elsewhere / "texts")
    config = replace(config, paths=(str(moved),))
    assert prepare_corpus(config, tmp_path / "other cache").digest == first
    (moved / "blank.txt").unlink()  # it was dropped, so it decides nothing
    assert prepare_corpus(config, tmp_path / "cache").digest == first
    changed = [replace(config, validation_share=0.35), bpe(config), replace(bpe(config), vocab_size=271)]
    digests = {prepare_corpus(one, tmp_path / "cache").digest for one in changed}
    (moved / "00.txt").write_text(TEXTS["00.txt"] + "!", encoding="utf-8")
    digests.add(prepare_corpus(config, tmp_path / "cache").digest)
    (moved / "00.txt").rename(moved / "000.txt")
    digests.add(prepare_corpus(config, tmp_path / "cache").digest)
    assert len(digests | {first}) == 6


def test_adding_documents_moves_none(config: CorpusConfig, texts: Path, tmp_path: Path) -> None:
    before = prepare_corpus(config, tmp_path / "cache").report
    for number in range(20):
        (texts / f"added {number}.md").write_text(f"added {number}", encoding="utf-8")
    after = prepare_corpus(config, tmp_path / "cache").report
    assert set(before.train.documents) < set(after.train.documents)
    assert set(before.validation.documents) < set(after.validation.documents)


def test_a_crash_before_the_rename_leaves_nothing_finished_and_a_rerun_works(
    config: CorpusConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare_corpus(config, tmp_path / "whole")

    def crash(self: Path, target: Path) -> None:
        raise OSError("crash")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash)
        with pytest.raises(OSError, match="crash"):
            prepare_corpus(config, tmp_path / "cache")
    assert names(tmp_path / "cache") == []
    prepare_corpus(config, tmp_path / "cache")
    assert files(tmp_path / "cache") == files(tmp_path / "whole")
    assert names(tmp_path / "cache") == [whole.digest]


def test_two_processes_that_prepare_at_once_both_end_with_the_whole_corpus(
    config: CorpusConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = prepare_corpus(config, tmp_path / "alone")
    context = multiprocessing.get_context("fork")
    both_found_nothing = context.Barrier(2)
    write = module._write

    def together(*args: Any) -> None:
        both_found_nothing.wait(30)
        write(*args)

    def child() -> None:
        corpus = prepare_corpus(config, tmp_path / "cache")
        same = np.array_equal(corpus.train, expected.train) and corpus.report == expected.report
        os._exit(0 if same else 1)

    monkeypatch.setattr(module, "_write", together)
    children = [context.Process(target=child) for _ in range(2)]
    for one in children:
        one.start()
    for one in children:
        one.join(60)
    assert [one.exitcode for one in children] == [0, 0]
    assert files(tmp_path / "cache") == files(tmp_path / "alone")


def test_the_standard_library_is_prepared_once_and_opened_fast(tmp_path: Path) -> None:
    first = prepare_corpus(CorpusConfig(), tmp_path)
    start = time.process_time()
    second = prepare_corpus(CorpusConfig(), str(tmp_path))
    assert time.process_time() - start < 1
    assert second.digest == first.digest
    assert len(first.train) > 7_000_000
    assert len(first.validation) > 200_000
    assert "dropped: " in first.report.summary()
    assert {one.reason for one in first.report.dropped} >= {"empty"}


def test_epochs_is_the_share_of_the_training_split(config: CorpusConfig, tmp_path: Path) -> None:
    corpus = prepare_corpus(config, tmp_path / "cache")
    assert corpus.epochs(len(corpus.train)) == 1
    assert corpus.epochs(2.5 * len(corpus.train)) == 2.5
    with pytest.raises(ValueError, match="tokens=-1"):
        corpus.epochs(-1)


def test_a_jsonl_corpus(tmp_path: Path) -> None:
    path = tmp_path / "web.jsonl"
    path.write_text("".join(f'{{"t": "document {number}"}}\n' for number in range(30)), encoding="utf-8")
    config = CorpusConfig(paths=(str(path),), jsonl_field="t", validation_share=0.5)
    corpus = prepare_corpus(config, tmp_path / "cache")
    both = texts_of(corpus, corpus.train) + texts_of(corpus, corpus.validation)
    assert sorted(both) == sorted(f"document {number}" for number in range(30))


def test_the_cache_dir_that_cannot_be_written_to_is_named(config: CorpusConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cache_dir='.*file'"):
        prepare_corpus(config, tmp_path / "file")


def test_a_damaged_cache_is_refused(config: CorpusConfig, tmp_path: Path) -> None:
    corpus = prepare_corpus(config, tmp_path / "cache")
    (tmp_path / "cache" / corpus.digest / "validation.npy").unlink()
    with pytest.raises(ValueError, match=r"validation\.npy is damaged"):
        prepare_corpus(config, tmp_path / "cache")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"paths": "notes"}, "paths='notes'"),
        ({"jsonl_field": "text"}, "jsonl_field='text'"),
        ({"paths": ("a",), "stdlib_tests": True}, "stdlib_tests=True"),
        ({"tokenizer": "words"}, "tokenizer='words'.*'bytes', 'bpe'"),
        ({"vocab_size": 512}, "vocab_size=512.*256"),
        ({"tokenizer": "bpe"}, "vocab_size=256.*at least 257"),
        ({"validation_share": 0.0}, "validation_share=0.0"),
        ({"validation_share": 1.0}, "validation_share=1.0"),
    ],
)
def test_a_setting_that_is_wrong_or_without_effect_is_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        CorpusConfig(**settings)


def test_an_empty_side_is_refused_with_the_shares_that_would_do(config: CorpusConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"validation_share=1e-09.*above 0\.\d+ and at most 0\.\d+"):
        prepare_corpus(replace(config, validation_share=1e-9), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
