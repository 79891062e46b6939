"""One process at work in a run's folder."""

from __future__ import annotations

import fcntl
from pathlib import Path
from types import TracebackType
from typing import IO


class RunLock:
    """Keeps other runs out of a folder until the ``with`` block ends; the system lets go if the process is killed.

    Args:
        folder: the run's; it need not be there before :meth:`take`.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run.lock"
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Make the folder this process's, once.

        Raises:
            ValueError: if another run is at work in it.
        """
        if self._file is not None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            right = "a folder that no other run is at work in"
            raise ValueError(f"folder={str(self.path.parent)!r}: it must be {right}") from None
        self._file = file

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
