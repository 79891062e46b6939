"""Turns at a file that several processes write, on one machine or on many."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, flags: int, lock: int) -> Iterator[int]:
    """Open a file under ``flock``, which the kernel lets go of even if the process is killed.

    Between machines it holds where the file system carries such locks: NFS from Linux 2.6.12 on unless mounted with
    ``nolock`` or ``local_lock=flock`` (flock(2)), Lustre if mounted with ``flock``. Where it does not, machines do not
    see each other's locks.

    Args:
        path: the file.
        flags: of ``os.open``; for an exclusive lock over NFS they must allow writing.
        lock: ``fcntl.LOCK_EX`` or ``fcntl.LOCK_SH``.

    Yields:
        the file's descriptor.
    """
    descriptor = os.open(path, flags, 0o644)
    try:
        fcntl.flock(descriptor, lock)
        yield descriptor
    finally:
        os.close(descriptor)
