"""What any launcher does: run a sweep's runs somewhere, as many at once as it has room for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from toolkit.scaling.plan import PlannedRun
from toolkit.training.termination import AskedToEnd

LAUNCHERS = ("local", "slurm")


@dataclass(frozen=True)
class Ended:
    """A run whose worker has ended; the table says whether the run is finished.

    Attributes:
        run: which.
        killed: the worker was killed from outside, by the scheduler, a failed machine or for its memory; else it ended
            by itself, the run recorded or found at work elsewhere.
    """

    run: PlannedRun
    killed: bool = False


class Launcher(Protocol):
    """Runs :class:`toolkit.scaling.launch.work.SweepWork` on one run after the other.

    What it starts claims its run and appends the row itself, so that a launcher may die, be started again, or have
    others beside it.
    """

    @property
    def room(self) -> int:
        """Runs that may be started now."""

    def start(self, run: PlannedRun) -> None:
        """Begin the work on ``run``; call it only where there is room."""

    def wait(self, timeout: float) -> list[Ended]:
        """Those that ended since, at the latest after ``timeout`` seconds or a launcher's own longer pause.

        Raises:
            RuntimeError: if a run failed, naming it.
        """

    def __enter__(self) -> Launcher: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End; on ``AskedToEnd`` (:mod:`toolkit.training.termination`) when the runs that would end too have saved."""


@contextmanager
def named(run: PlannedRun) -> Iterator[None]:
    """Say which run failed: by now its settings have been checked, so that it is no user's error.

    One that was asked to end, and has saved, has not failed: the process ends with its code.
    """
    try:
        yield
    except AskedToEnd:
        raise
    except SystemExit:  # how Lightning passes on Ctrl-C
        raise KeyboardInterrupt from None
    except Exception as error:
        raise RuntimeError(f"run {run.name} failed; finished runs are kept") from error
