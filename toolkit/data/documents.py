"""What a source of text gives: documents with stable names, and an account of what it left out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

NOT_UTF8 = "not UTF-8"
NUL_BYTE = "holds a NUL byte"


@dataclass(frozen=True)
class Document:
    """One text and its name: the path below the source's folder, with ``/`` on every system."""

    name: str
    text: str


@dataclass(frozen=True)
class Dropped:
    """A document or file that is not in the corpus, why, and the document it repeats if that is why."""

    name: str
    reason: str
    repeats: str | None = None


@dataclass(frozen=True)
class Reading:
    """The documents of a source in the order of their names, and what the source left out."""

    documents: tuple[Document, ...]
    dropped: tuple[Dropped, ...] = ()


class Source(Protocol):
    """Anything that reads documents."""

    def read(self) -> Reading:
        """Read every document, in the order of their names."""
        ...


class UnreadableError(ValueError):
    """The bytes are not text that a tokenizer can take; ``reason`` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode(data: bytes) -> str:
    """Decode UTF-8 bytes without a leading byte-order mark.

    Raises:
        UnreadableError: the bytes are not UTF-8, or hold byte 0, which separates documents.

    >>> decode("é".encode())
    'é'
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError(NOT_UTF8) from error
    if "\0" in text:
        raise UnreadableError(NUL_BYTE)
    return text


def walk(folder: Path, skip: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Yield each file below ``folder`` and each link to a folder, which is not followed (it may be a loop).

    Folders whose name is in ``skip`` are not entered. The order is the file system's: sort the result.
    """
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in skip]
        yield from (Path(parent, name) for name in files)
        yield from (Path(parent, name) for name in folders if Path(parent, name).is_symlink())
