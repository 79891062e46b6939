"""How a sweep's runs are executed, and what its jobs ask of SLURM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.checks import require, require_choice, require_positive
from toolkit.data import CorpusConfig
from toolkit.parallel import ParallelConfig
from toolkit.scaling.folder import StudyFolder
from toolkit.scaling.launch.launcher import LAUNCHERS

CLUSTERS = ("slurm", "local", "debug")


@dataclass(frozen=True)
class SlurmSettings:
    """One job a run; used with ``launcher="slurm"``.

    Attributes:
        partition: to submit to; empty for the cluster's own.
        minutes: a job's time limit. A run that takes longer is requeued and goes on from its last checkpoint.
        gpus_per_task: GPUs of a job: 1, or 0 on a CPU.
        memory_gb: memory of a job; 0 for the cluster's own.
        jobs_at_once: submitted and not ended, at most.
        options: any others of ``sbatch``, by their long names: ``{account: mine, constraint: a100}``.
        cluster: ``"slurm"``, or to try things out ``"local"`` (submitit's processes on this machine) or ``"debug"``
            (this process).

    Raises:
        ValueError: if a number is not positive, or a choice unknown.
    """

    partition: str = ""
    minutes: int = 240
    gpus_per_task: int = 1
    memory_gb: int = 0
    jobs_at_once: int = 8
    options: Mapping[str, str] = field(default_factory=dict)
    cluster: str = "slurm"

    def __post_init__(self) -> None:
        require_positive(minutes=self.minutes, jobs_at_once=self.jobs_at_once)
        require(self.gpus_per_task in (0, 1), "gpus_per_task", self.gpus_per_task, "0 or 1: a run has one device")
        require(self.memory_gb >= 0, "memory_gb", self.memory_gb, "0 (the cluster's own) or more")
        require_choice("cluster", self.cluster, CLUSTERS)

    def parameters(self, threads: int) -> dict[str, object]:
        """These for submitit's ``AutoExecutor.update_parameters``.

        Args:
            threads: CPU threads of a run.
        """
        asked = {
            "name": "sweep",
            "timeout_min": self.minutes,
            "cpus_per_task": threads,
            "mem_gb": self.memory_gb,
            "slurm_partition": self.partition,
            "slurm_gpus_per_task": self.gpus_per_task,
            "slurm_additional_parameters": dict(self.options),
            # before torch is imported there, which sets up its threads once
            "slurm_setup": [f"export OMP_NUM_THREADS={threads} OMP_WAIT_POLICY=PASSIVE"],
        }
        return {name: value for name, value in asked.items() if value}


@dataclass(frozen=True)
class SweepSettings:
    """How runs are executed; none of it changes what a model learns.

    Attributes:
        folder: the study's.
        corpus: the text.
        cache: folder of tokenised corpora.
        parallel: processes of one run.
        workers: runs at once, each in a process of its own; 1 runs them in this process.
        threads: CPU threads of each run.
        validation_count: validation windows, the same for every run.
        code: version of the code that trains, as the rows tell it.
        branch: begin runs that are the beginning of a longer one from that one's checkpoint, see
            :func:`toolkit.scaling.plan.branches.branches`. Each is what it would have been from step 0, but for
            dropout and router noise, which are drawn anew from there on.
        launcher: ``"local"``, this machine, or ``"slurm"``.
        slurm: what jobs ask of the cluster.

    Raises:
        ValueError: if the launcher is unknown.
    """

    folder: StudyFolder
    corpus: CorpusConfig
    cache: Path
    parallel: ParallelConfig
    workers: int
    threads: int
    validation_count: int
    code: str = ""
    branch: bool = False
    launcher: str = "local"
    slurm: SlurmSettings = field(default_factory=SlurmSettings)

    def __post_init__(self) -> None:
        require_choice("launcher", self.launcher, LAUNCHERS)

    @property
    def at_once(self) -> int:
        """Runs at once."""
        return self.slurm.jobs_at_once if self.launcher == "slurm" else self.workers
