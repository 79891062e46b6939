"""The folder a study lives in: what is where, and whose it is."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from toolkit.checks import require
from toolkit.files import write_atomically
from toolkit.scaling.growth import grows
from toolkit.scaling.table import ResultsTable


@dataclass(frozen=True)
class StudyFolder:
    """``path`` holds study.yaml, results.csv, step_seconds.json, runs/<run>/, claims/, report.md and its figures."""

    path: Path

    @property
    def settings(self) -> Path:
        """The resolved settings that its results belong to."""
        return self.path / "study.yaml"

    @property
    def table(self) -> ResultsTable:
        """One row for each finished run."""
        return ResultsTable(self.path / "results.csv")

    @property
    def step_seconds(self) -> Path:
        """Isolated seconds of a step, by cell; measured once a study."""
        return self.path / "step_seconds.json"

    @property
    def step_load(self) -> Path:
        """The machine's load average (1 minute) when the timing of steps began: 1 or less where it was alone."""
        return self.path / "step_load.json"

    @property
    def claims(self) -> Path:
        """Who is at work on which run, see :class:`toolkit.scaling.launch.RunClaims`."""
        return self.path / "claims"

    @property
    def jobs(self) -> Path:
        """What a cluster's jobs were given and printed."""
        return self.path / "jobs"

    def run(self, name: str) -> Path:
        """One run's own folder."""
        return self.path / "runs" / name

    def claim(self, settings: str) -> None:
        """Make the folder this study's, or see that it already is, or that of a smaller one.

        Args:
            settings: everything that determines the results, as text.

        Raises:
            ValueError: if the folder cannot be written, or holds the results of other settings than these, or of more
                runs (:mod:`toolkit.scaling.growth`).
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"out={str(self.path)!r}: it must be a folder that can be made ({error})") from None
        require(os.access(self.path, os.W_OK), "out", str(self.path), "a folder that can be written")
        before = self.settings.read_text() if self.settings.exists() else ""
        changed = _first_difference(before, settings)
        if before and changed:
            right = f"another folder: this one holds a study with other settings ({changed})"
            require(grows(before, settings), "out", str(self.path), right)
        if changed:
            write_atomically(self.settings, settings)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other sweeps out of the folder meanwhile; the system lets go if this process is killed.

        Raises:
            ValueError: if another sweep is at work in it.
        """
        with (self.path / "sweep.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                right = "a folder that no other sweep is at work in"
                raise ValueError(f"out={str(self.path)!r}: it must be {right}") from None
            yield


def _first_difference(old: str, new: str) -> str:
    """The first line that differs, as ``"was ..., now ..."``; empty if none does."""
    before, after = old.splitlines(), new.splitlines()
    length = max(len(before), len(after))
    padded = zip(before + [""] * (length - len(before)), after + [""] * (length - len(after)), strict=True)
    return next((f"was '{a.strip()}', now '{b.strip()}'" for a, b in padded if a != b), "")
