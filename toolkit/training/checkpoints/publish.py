"""How a checkpoint takes its name: when it is whole, and not before the one in its place has another."""

from __future__ import annotations

import shutil
from pathlib import Path

from toolkit.training.checkpoints.seal import sync


def temporary_for(path: Path) -> Path:
    """Where the checkpoint ``path`` is written before it is whole: the same in every process."""
    return path.with_name(f".{path.name}.tmp")


def publish(temporary: Path, path: Path, before: Path | None = None) -> None:
    """Rename a sealed checkpoint into place.

    At every moment ``path`` or ``before`` is a whole checkpoint, if one of them was.

    Args:
        temporary: file or folder, beside ``path``.
        path: its name.
        before: the name that what ``path`` was so far takes, on the same file system; None to have it overwritten.
    """
    if path.exists():
        if before is not None:
            _move(path, before)
        elif path.is_dir() or temporary.is_dir():
            _move(path, _old(path))
    temporary.rename(path)
    sync(path.parent)
    remove(_old(path))


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _move(path: Path, target: Path) -> None:
    """Rename ``path`` to ``target``, in whose place a folder may stand, which no rename replaces."""
    if target.is_dir() or (target.exists() and path.is_dir()):
        old = _old(target)
        remove(old)
        target.rename(old)
        path.rename(target)
        remove(old)
    else:
        path.replace(target)
    sync(target.parent)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")
