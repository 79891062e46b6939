"""What a sweep's jobs ask of SLURM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from toolkit.checks import require, require_choice, require_positive

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
