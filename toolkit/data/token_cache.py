"""Tokens on disk: written whole or not at all, and opened as memory-mapped arrays."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from toolkit.data.tokenizer import Tokens


@contextmanager
def publish(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``folder`` to write into, which becomes ``folder`` at the end.

    ``folder`` appears in one step, with its files already on the disk: a process killed at any time leaves
    either the whole folder or none, and at most a ``.partial`` folder that nobody reads. Where another
    process published first, its folder stands and ours is discarded. After an exception nothing is left.

    Raises:
        ValueError: the folder above ``folder``, the cache's, cannot be written to.
    """
    cache = folder.parent
    temporary = cache / f".{folder.name[:16]}.{uuid.uuid4().hex}.partial"
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"cache_dir={str(cache)!r}: it must be a folder that can be written to ({error})") from error
    try:
        yield temporary
        for written in (*temporary.iterdir(), temporary):
            _synchronise(written)
        _rename(temporary, folder)
        _synchronise(cache)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename(temporary: Path, folder: Path) -> None:
    try:
        temporary.rename(folder)
    except OSError:
        # A folder that is not empty is never replaced: here is another process's, just as whole.
        if not folder.is_dir():
            raise


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tokens_file(folder: Path, split: str) -> Path:
    """Where a split's tokens are."""
    return folder / f"{split}.npy"


def save_tokens(folder: Path, split: str, tokens: Tokens) -> None:
    """Write a split's tokens, (tokens,), as a numpy file."""
    np.save(tokens_file(folder, split), tokens, allow_pickle=False)


def open_tokens(folder: Path, split: str) -> Tokens:
    """Map a split's tokens, (tokens,), into memory, read-only.

    Raises:
        ValueError: the file is missing, cut short or not a numpy file.
    """
    path = tokens_file(folder, split)
    try:
        tokens: Tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete its folder to have it prepared again") from error
    return tokens
