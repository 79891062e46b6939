"""How many processes train one model, and how they share the work."""

from __future__ import annotations

import os
from dataclasses import dataclass

from toolkit.checks import require, require_choice, require_positive

ACCELERATORS = ("auto", "cpu", "gpu")
STRATEGIES = ("auto", "ddp")


@dataclass(frozen=True)
class ParallelConfig:
    """The processes of one training run.

    Attributes:
        devices: processes on each node, one a GPU; on a CPU they talk through gloo.
        num_nodes: nodes.
        accelerator: ``"auto"`` takes GPUs where there are any.
        strategy: ``"ddp"`` keeps a whole model in every process, each with its share of the batch;
            ``"auto"`` is ddp for more than one process.

    Raises:
        ValueError: if a count is not positive or a choice unknown.
    """

    devices: int = 1
    num_nodes: int = 1
    accelerator: str = "auto"
    strategy: str = "auto"

    def __post_init__(self) -> None:
        require_positive(devices=self.devices, num_nodes=self.num_nodes)
        require_choice("accelerator", self.accelerator, ACCELERATORS)
        require_choice("strategy", self.strategy, STRATEGIES)

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.devices * self.num_nodes

    @property
    def lightning_strategy(self) -> str:
        """The strategy's name for Lightning's Trainer."""
        return "ddp" if self.world_size > 1 else "auto"

    def local_batch(self, batch_size: int) -> int:
        """Sequences of a global batch that each process takes.

        Raises:
            ValueError: if the batch cannot be shared evenly.
        """
        require(
            batch_size % self.world_size == 0,
            "batch_size",
            batch_size,
            f"a multiple of devices * num_nodes = {self.devices} * {self.num_nodes} = {self.world_size}",
        )
        return batch_size // self.world_size


def is_main_process() -> bool:
    """Whether this process has rank 0, as launchers (Lightning's, torchrun, SLURM) set it before anything runs."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"
