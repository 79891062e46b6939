"""Where a sweep's runs begin: at step 0, or as branches from checkpoints that their trunks keep for them."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.scaling.folder import StudyFolder
from toolkit.scaling.plan import PlannedRun
from toolkit.scaling.plan.branches import BranchPoint
from toolkit.training.branch import checkpoint_of
from toolkit.training.checkpoints.publish import remove


@dataclass(frozen=True)
class Beginnings:
    """The checkpoints between trunks and branches.

    Attributes:
        folder: the study's.
        points: where runs leave their trunks, by run name; see :func:`toolkit.scaling.plan.branches.branches`.
    """

    folder: StudyFolder
    points: Mapping[str, BranchPoint]

    def next(self, waiting: Sequence[PlannedRun], running: Sequence[PlannedRun]) -> PlannedRun | None:
        """The first of ``waiting`` whose trunk, if it has one, neither waits nor runs; None if all must wait."""
        unfinished = {run.name for run in (*waiting, *running)}
        return next((run for run in waiting if self._trunk(run) not in unfinished), None)

    def keep_at(self, run: PlannedRun) -> list[int]:
        """Steps of ``run`` that others begin from."""
        return sorted({point.step for point in self.points.values() if point.trunk == run.name})

    def checkpoint(self, run: PlannedRun) -> Path | None:
        """What ``run`` begins from; None for step 0, of which a branch warns: its trunk was trained without others."""
        if run.name not in self.points:
            return None
        checkpoint = self._checkpoint(run.name)
        if checkpoint.exists():
            return checkpoint
        warnings.warn(f"{run.name} is trained from step 0: there is no {checkpoint}", stacklevel=2)
        return None

    def discard(self, done: Collection[str]) -> None:
        """Delete the checkpoints that only runs in ``done`` begin from; each is as large as a run's last."""
        needed = {self._checkpoint(name) for name in self.points if name not in done}
        for checkpoint in {self._checkpoint(name) for name in self.points} - needed:
            remove(checkpoint)

    def _trunk(self, run: PlannedRun) -> str | None:
        return self.points[run.name].trunk if run.name in self.points else None

    def _checkpoint(self, name: str) -> Path:
        point = self.points[name]
        return checkpoint_of(self.folder.run(point.trunk), point.step)
