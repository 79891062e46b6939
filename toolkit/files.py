"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a file beside ``path`` to write, which is brought to the disk and takes its name unless there is an error.

    A reader, or a crash, finds all of what was written or the file as it was before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # whoever wrote it may have kept it to himself
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` so that a reader, or a crash, finds all of it or the file as it was before.

    Written to a file beside, brought to the disk, then renamed into place.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
