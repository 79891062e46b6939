"""The sha256 by which a checkpoint that was cut off or changed is known from a whole one.

A file ends with the digest of all that is before it, as the comment of the zip archive that torch writes: file and
digest take their name together. One without, as earlier versions wrote, is held against the archive's own CRC-32s.
A folder holds ``manifest.json``, written last: size and digest of every other file.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.checks import require

MANIFEST = "manifest.json"
LABEL = b"sha256:"
COMMENT = len(LABEL) + 64
"""Bytes of the archive's comment: the label and the digest in hexadecimal."""
END_OF_ARCHIVE = b"PK\x05\x06"
"""Opens a zip archive's last record, of 22 bytes when there is no comment; its length is the record's last field."""
RECORD = 22
BLOCK = 1 << 22


class CorruptCheckpoint(ValueError):
    """A checkpoint that is not what was written: a file is missing, cut off or changed."""


def seal(path: Path, digests: Mapping[str, str] | None = None) -> None:
    """Give a checkpoint its checksums and bring it to the disk; the last thing that is written to it.

    Args:
        path: a file that ``torch.save`` wrote, or a folder.
        digests: of the folder's files that are known already, by name; the others are read.

    Raises:
        ValueError: if the file is not an archive that torch wrote, or is sealed already.
    """
    if path.is_dir():
        _seal_folder(path, digests or {})
    else:
        _seal_file(path)


def problems(path: Path) -> list[str]:
    """What is wrong with a checkpoint, each with the name of its file; empty if it is whole.

    Reads all of it.
    """
    if path.is_dir():
        return _problems_of_folder(path)
    if not path.exists():
        return [f"{path.name} is missing"]
    return _problem_of_file(path)


def require_whole(path: Path) -> None:
    """Refuse a checkpoint that is not whole.

    Raises:
        CorruptCheckpoint: naming the checkpoint and its files that are wrong.
    """
    if found := problems(path):
        raise CorruptCheckpoint(f"checkpoint={str(path)!r}: it must be whole, but {'; '.join(found)}")


def digest_of(path: Path, stop: int | None = None) -> str:
    """sha256 of a file, or of its first ``stop`` bytes, in hexadecimal."""
    digest, left = hashlib.sha256(), path.stat().st_size if stop is None else stop
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(BLOCK, left))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Bring a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _seal_file(path: Path) -> None:
    size = path.stat().st_size
    require(_is_unsealed(path), "path", str(path), "a file that torch.save wrote, not sealed yet")
    with path.open("r+b") as file:
        file.seek(size - 2)
        file.write(struct.pack("<H", COMMENT))
        file.flush()
        file.seek(size)
        file.write(LABEL + digest_of(path).encode())
        file.flush()
        os.fsync(file.fileno())


def _is_unsealed(path: Path) -> bool:
    """Whether the file ends as an archive without a comment does."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - RECORD))
        record = file.read()
    return record.startswith(END_OF_ARCHIVE) and record.endswith(b"\0\0")


def _problem_of_archive(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        return [f"{path.name} is no whole archive: {error}"]
    return [] if bad is None else [f"{path.name} does not have the CRC-32 it was written with, in {bad}"]


def _problem_of_file(path: Path) -> list[str]:
    end = path.stat().st_size - COMMENT
    if _is_unsealed(path):
        return _problem_of_archive(path)
    if end < RECORD:
        return [f"{path.name} is cut off: it has {end + COMMENT} bytes"]
    with path.open("rb") as file:
        file.seek(end)
        comment = file.read()
    if not comment.startswith(LABEL):
        return [f"{path.name} does not end with its checksum"]
    same = comment[len(LABEL) :] == digest_of(path, end).encode()
    return [] if same else [f"{path.name} does not have the sha256 it was written with"]


def _seal_folder(folder: Path, digests: Mapping[str, str]) -> None:
    files = {}
    for path in sorted(path for path in folder.iterdir() if path.name != MANIFEST):
        sync(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": digests.get(path.name) or digest_of(path)}
    body = {"files": files}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({**body, "sha256": _digest_of_body(body)}, indent=1), encoding="utf-8")
    sync(manifest)
    sync(folder)


def _digest_of_body(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _problems_of_folder(folder: Path) -> list[str]:
    files = _listed(folder / MANIFEST)
    if files is None:
        return [f"{MANIFEST} is missing, cut off or changed"]
    found = []
    for name, facts in files.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != facts["bytes"]:
            found.append(f"{name} has {path.stat().st_size} bytes of {facts['bytes']}")
        elif digest_of(path) != facts["sha256"]:
            found.append(f"{name} does not have the sha256 it was written with")
    return found


def _listed(manifest: Path) -> dict[str, Any] | None:
    """The files of a manifest; None if it is not what was written."""
    try:
        body = json.loads(manifest.read_text(encoding="utf-8"))
        sealed = body.pop("sha256")
        return dict(body["files"]) if sealed == _digest_of_body(body) else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
