"""From documents to tokens: read, drop repeats, split, tokenise once, and open from the cache after that."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.checks import require, require_choice
from toolkit.data.bpe import SMALLEST_VOCABULARY, BPETokenizer, library
from toolkit.data.documents import Document, Dropped, Source
from toolkit.data.report import CorpusReport, SplitReport
from toolkit.data.selection import drop_repeats, split
from toolkit.data.standard_library import StandardLibrary
from toolkit.data.text_files import TextFiles
from toolkit.data.token_cache import open_tokens, publish, save_tokens
from toolkit.data.tokenizer import ByteTokenizer, Tokenizer, Tokens, token_dtype

FORMAT_VERSION = 1
DOCUMENTS_AT_ONCE = 1024
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class CorpusConfig:
    """Which text to train on, and how it becomes tokens.

    Args:
        paths: files and folders of text; none means the Python standard library's source.
        jsonl_field: the field of ``.jsonl`` files that holds the text.
        stdlib_tests: read the standard library's tests too (31 MB instead of 12 MB).
        tokenizer: ``"bytes"``, or ``"bpe"`` trained on the training split.
        vocab_size: token ids, for ``"bpe"`` at least 257; ``"bytes"`` has 256.
        validation_share: the expected share of the documents that is held out.

    Raises:
        ValueError: a value is out of range, or a setting is given that the others leave without effect.
    """

    paths: tuple[str, ...] = ()
    jsonl_field: str | None = None
    stdlib_tests: bool = False
    tokenizer: str = "bytes"
    vocab_size: int = 256
    validation_share: float = 0.1

    def __post_init__(self) -> None:
        require(not isinstance(self.paths, str), "paths", self.paths, "a sequence of paths, not one string")
        right = "None unless paths are given: the standard library has no .jsonl"
        require(bool(self.paths) or self.jsonl_field is None, "jsonl_field", self.jsonl_field, right)
        right = "False when paths are given: the standard library is not read then"
        require(not (self.paths and self.stdlib_tests), "stdlib_tests", self.stdlib_tests, right)
        require_choice("tokenizer", self.tokenizer, ("bytes", "bpe"))
        if self.tokenizer == "bytes":
            require(self.vocab_size == 256, "vocab_size", self.vocab_size, "256 with tokenizer='bytes'")
        else:
            right = f"at least {SMALLEST_VOCABULARY} with tokenizer='bpe': 256 bytes and the separator"
            require(self.vocab_size >= SMALLEST_VOCABULARY, "vocab_size", self.vocab_size, right)
        right = "between 0 and 1, both excluded"
        require(0 < self.validation_share < 1, "validation_share", self.validation_share, right)


@dataclass(frozen=True)
class Corpus:
    """A tokenised corpus.

    Attributes:
        train: token ids (tokens,), memory-mapped; each document is followed by the tokenizer's separator.
        validation: the same, of the documents held out.
        tokenizer: what made them.
        digest: SHA-256, in hex, of all that determines the tokens: two runs with one digest saw one corpus.
        report: what went in and what was dropped.
        config: the settings that :func:`prepare_corpus` read it by; None where it was made otherwise.
    """

    train: Tokens
    validation: Tokens
    tokenizer: Tokenizer
    digest: str
    report: CorpusReport
    config: CorpusConfig | None = None

    def epochs(self, tokens: float) -> float:
        """Say how often training on so many tokens goes through the training split.

        Raises:
            ValueError: tokens is negative.
        """
        require(tokens >= 0, "tokens", tokens, "at least 0")
        return tokens / len(self.train)


def prepare_corpus(config: CorpusConfig, cache_dir: str | Path) -> Corpus:
    """Read the documents, and tokenise them unless ``cache_dir`` already has them tokenised.

    The documents are read, hashed and split at each call, and held in memory meanwhile; what is cached is the
    tokens and the trained BPE, in a folder named by the digest of all that determines them.

    Raises:
        ValueError: bad documents (see ``TextFiles``), a side of the split is empty, ``vocab_size`` is more
            than the text supports, ``cache_dir`` cannot be written to, or the cache is damaged.
        ImportError: ``tokenizer="bpe"`` without the ``tokenizers`` library.
    """
    reading = _source(config).read()
    kept, repeats = drop_repeats(reading.documents)
    train, validation = split(kept, config.validation_share)
    digest = _digest(config, kept)
    folder = Path(cache_dir) / digest
    if not folder.is_dir():
        with publish(folder) as temporary:
            _write(config, train, validation, temporary)
    dropped = sorted((*reading.dropped, *repeats), key=lambda one: one.name)
    return _open(folder, config, (train, validation), dropped)


def _source(config: CorpusConfig) -> Source:
    if config.paths:
        return TextFiles(tuple(config.paths), config.jsonl_field)
    return StandardLibrary(config.stdlib_tests)


def _digest(config: CorpusConfig, documents: Sequence[Document]) -> str:
    settings = [FORMAT_VERSION, config.tokenizer, config.vocab_size, config.validation_share]
    if config.tokenizer == "bpe":
        settings.append(library().__version__)  # which decides between pairs that are equally frequent
    hasher = hashlib.sha256(repr(settings).encode())
    for document in documents:
        for part in (document.name.encode("utf-8", "backslashreplace"), document.text.encode()):
            hasher.update(len(part).to_bytes(8, "big"))
            hasher.update(part)
    return hasher.hexdigest()


def _write(config: CorpusConfig, train: Sequence[Document], validation: Sequence[Document], folder: Path) -> None:
    tokenizer: Tokenizer = ByteTokenizer()
    if config.tokenizer == "bpe":
        trained = BPETokenizer.train((document.text for document in train), config.vocab_size)
        trained.save(folder / TOKENIZER_FILE)
        tokenizer = trained
    save_tokens(folder, "train", tokenise(tokenizer, train))
    save_tokens(folder, "validation", tokenise(tokenizer, validation))


def tokenise(tokenizer: Tokenizer, documents: Sequence[Document]) -> Tokens:
    """Encode documents into one array (tokens,) in which each is followed by the separator."""
    dtype = token_dtype(tokenizer.vocab_size)
    separator = np.array([tokenizer.separator], dtype=dtype)
    pieces: list[Tokens] = [np.empty(0, dtype=dtype)]
    for start in range(0, len(documents), DOCUMENTS_AT_ONCE):
        texts = [document.text for document in documents[start : start + DOCUMENTS_AT_ONCE]]
        for tokens in tokenizer.encode_batch(texts):
            pieces += (tokens, separator)
    return np.concatenate(pieces)


def _open(
    folder: Path,
    config: CorpusConfig,
    sides: tuple[Sequence[Document], Sequence[Document]],
    dropped: Iterable[Dropped],
) -> Corpus:
    bpe = config.tokenizer == "bpe"
    tokenizer: Tokenizer = BPETokenizer.load(folder / TOKENIZER_FILE) if bpe else ByteTokenizer()
    train, validation = open_tokens(folder, "train"), open_tokens(folder, "validation")
    report = CorpusReport(_report(sides[0], train), _report(sides[1], validation), tuple(dropped))
    return Corpus(train, validation, tokenizer, folder.name, report, config)


def _report(documents: Sequence[Document], tokens: Tokens) -> SplitReport:
    size = sum(len(document.text.encode()) + 1 for document in documents)
    return SplitReport(tuple(document.name for document in documents), size, len(tokens))
