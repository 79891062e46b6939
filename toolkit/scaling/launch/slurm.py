"""Launcher on a SLURM cluster, through submitit: a job for each run, on whichever machine there is room."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from toolkit.checks import require
from toolkit.scaling.launch.launcher import Ended, named
from toolkit.scaling.launch.settings import SlurmSettings
from toolkit.scaling.launch.work import SweepWork
from toolkit.scaling.plan import PlannedRun

PAUSE_SECONDS = 2.0
"""Between two looks at the jobs; what they mean for the scheduler is submitit's affair."""


@dataclass(frozen=True)
class SlurmJob:
    """What a job does: the work on one run, and being requeued when the cluster takes its machine away.

    Attributes:
        work: of the sweep.
        device: that the study was planned for and timed on, ``"gpu"`` or ``"cpu"``.
    """

    work: SweepWork
    device: str

    def __call__(self, run: PlannedRun) -> None:
        """Train and record ``run``.

        Raises:
            ValueError: if this machine has another device than the study was planned for.
        """
        found = self.work.settings.parallel.device
        right = f"{self.device!r} where the jobs run, as it was where the sweep was started"
        require(found == self.device, "accelerator", found, right)
        self.work(run, self.work.corpus())

    def checkpoint(self, run: PlannedRun) -> Any:
        """What submitit is to requeue when the time is up or the job is preempted: the same, from the last checkpoint.

        Training writes its checkpoints as it goes, so that there is nothing to save here.
        """
        return import_module("submitit.helpers").DelayedSubmission(self, run)


class SlurmLauncher:
    """Submits a job for each run, as many at once as the settings allow, and watches them.

    Jobs go on when this process ends, and record their runs; the same command, given again, watches those that are at
    work and submits the others. A job that was still in the queue then finds its run at work or finished, and ends.

    Args:
        work: what to do with each run.
        settings: of the jobs.
        folder: for submitit's files and the jobs' output; on a file system that all machines see.

    Raises:
        ImportError: without submitit.
        ValueError: if this is no machine of a cluster.
    """

    def __init__(self, work: SweepWork, settings: SlurmSettings, folder: Path) -> None:
        require_submitit(settings)
        self._submitit: Any = import_module("submitit")
        self._room = settings.jobs_at_once
        self._task = SlurmJob(work, work.settings.parallel.device)
        self._executor = self._submitit.AutoExecutor(folder=folder, cluster=settings.cluster)
        self._executor.update_parameters(**settings.parameters(work.settings.threads))
        self._jobs: dict[str, tuple[PlannedRun, Any]] = {}

    @property
    def room(self) -> int:
        """Jobs that may be submitted now."""
        return self._room - len(self._jobs)

    def start(self, run: PlannedRun) -> None:
        """Submit a job for ``run``."""
        with import_module("submitit.helpers").clean_env():  # we may be in a job ourselves
            self._jobs[run.name] = run, self._executor.submit(self._task, run)

    def wait(self, timeout: float) -> list[Ended]:
        """The runs whose jobs have ended, after ``PAUSE_SECONDS`` or ``timeout`` if that is longer.

        Raises:
            RuntimeError: if a job raised an error, with submitit's account of it; the others go on.
        """
        time.sleep(max(timeout, PAUSE_SECONDS))
        return [self._end(name) for name, (_, job) in list(self._jobs.items()) if job.done()]

    def _end(self, name: str) -> Ended:
        run, job = self._jobs.pop(name)
        error = job.exception()
        # submitit calls a job that raised failed, a kind of uncompleted; one that left no word was killed
        killed = isinstance(error, self._kind("UncompletedJobError")) and not isinstance(
            error, self._kind("FailedJobError")
        )
        if error is not None and not killed:
            with named(run):
                raise error
        return Ended(run, killed)

    def _kind(self, name: str) -> type[BaseException]:
        kind: type[BaseException] = getattr(import_module("submitit.core.utils"), name)
        return kind

    def __enter__(self) -> SlurmLauncher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._jobs:
            ids = " ".join(str(job.job_id) for _, job in self._jobs.values())
            Console(stderr=True).print(
                f"jobs that go on without this process; to end them: scancel {ids}", soft_wrap=True
            )


def require_submitit(settings: SlurmSettings) -> None:
    """See that jobs can be submitted from here.

    Raises:
        ImportError: without submitit.
        ValueError: without SLURM's commands.
    """
    try:
        import_module("submitit")
    except ImportError as error:
        raise ImportError('launcher="slurm" needs submitit: pip install "sparse-toolkit[slurm]"') from error
    right = "'local' where there is no SLURM: neither sbatch nor srun was found"
    found = all(shutil.which(command) for command in ("sbatch", "srun"))
    require(settings.cluster != "slurm" or found, "slurm.cluster", settings.cluster, right)
