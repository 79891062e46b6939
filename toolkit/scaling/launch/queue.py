"""Hands a sweep's runs to a launcher until the table has them all, whoever trained them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from toolkit.scaling.beginnings import Beginnings
from toolkit.scaling.folder import StudyFolder
from toolkit.scaling.launch.claim import RunClaims
from toolkit.scaling.launch.launcher import Ended, Launcher
from toolkit.scaling.plan import PlannedRun
from toolkit.scaling.progress import SweepProgress
from toolkit.training.termination import AskedToEnd, TermNote

POLL_SECONDS = 0.2

LOOK_SECONDS = 5.0
"""Between two looks at the table for what others have finished."""

STOPPED = "asked to end: finished runs are kept, others have saved; the same command goes on with them"

RESTARTS = 5
"""Times that a run whose worker was killed is started again by one launcher."""


class SweepQueue:
    """The runs of a sweep that are not finished.

    Args:
        todo: these, in the order they are to be started, trunks before their branches.
        folder: of the study; its table tells what is finished, and its claims what others are at.
        beginnings: the checkpoints that branches begin from: a branch waits until its trunk is in the table.
        progress: is told of every run that the table receives.
    """

    def __init__(
        self, todo: Sequence[PlannedRun], folder: StudyFolder, beginnings: Beginnings, progress: SweepProgress
    ) -> None:
        self._unfinished = {run.name: run for run in todo}
        self._running: dict[str, PlannedRun] = {}
        self._elsewhere: set[str] = set()
        self._kills: Counter[str] = Counter()
        self._folder, self._beginnings, self._progress = folder, beginnings, progress
        self._claims = RunClaims(folder.claims)
        self._looked = time.monotonic()

    def work_off(self, launcher: Launcher) -> None:
        """Return when every run is in the table.

        A run whose worker was killed is started again, and so is one that another launcher had and gave up. It goes on
        from its last checkpoint.

        On SIGTERM no other is started, and those that would end with this process save.

        Raises:
            AskedToEnd: on SIGTERM.
            RuntimeError: if a run failed, or its worker was killed more than ``RESTARTS`` times.
        """
        with TermNote() as term, launcher:
            while self._unfinished or self._running:
                if term.asked:
                    raise AskedToEnd(STOPPED)
                self._start(launcher)
                ended = launcher.wait(POLL_SECONDS)
                if ended or time.monotonic() - self._looked > LOOK_SECONDS:
                    self._look()
                for each in ended:
                    self._take_back(each)

    def _start(self, launcher: Launcher) -> None:
        while launcher.room > 0:
            free = [run for name, run in self._unfinished.items() if name not in {*self._running, *self._elsewhere}]
            run = self._beginnings.next(free, [run for run in self._unfinished.values() if run not in free])
            if run is None:
                return
            if self._claims.owner(run.name) is not None:
                self._elsewhere.add(run.name)
                continue
            self._running[run.name] = run
            launcher.start(run)

    def _look(self) -> None:
        """See what has been finished, here and elsewhere."""
        self._looked = time.monotonic()
        self._elsewhere.clear()
        rows = {row.run: row for row in self._folder.table.read()}
        for name in [name for name in self._unfinished if name in rows]:
            self._progress.finished(self._unfinished.pop(name), rows[name])
        self._beginnings.discard(rows)

    def _take_back(self, ended: Ended) -> None:
        name = ended.run.name
        del self._running[name]
        if name not in self._unfinished or not ended.killed:
            return
        self._kills[name] += 1
        if self._kills[name] > RESTARTS:
            raise RuntimeError(f"run {name} was killed {self._kills[name]} times; finished runs are kept")
