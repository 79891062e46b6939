"""How many processes train one model, and how they share the work."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from toolkit.checks import require, require_choice, require_positive

ACCELERATORS = ("auto", "cpu", "gpu")
STRATEGIES = ("auto", "ddp")


@dataclass(frozen=True)
class ParallelConfig:
    """The processes of one training run.

    Attributes:
        devices: processes on each node, one a GPU; on a CPU they talk through gloo.
        num_nodes: nodes.
        accelerator: ``"auto"`` takes CUDA GPUs where there are any, else the CPU.
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
    def device(self) -> str:
        """``"gpu"`` or ``"cpu"``: what ``accelerator`` comes to on this machine; GPUs are CUDA's.

        Raises:
            ValueError: if GPUs are asked for, or taken, and there are fewer than ``devices``.
        """
        gpus = torch.cuda.device_count()
        if self.accelerator == "cpu" or (self.accelerator == "auto" and gpus == 0):
            return "cpu"
        require(self.devices <= gpus, "devices", self.devices, f"at most {gpus}, the CUDA GPUs of this machine")
        return "gpu"

    @property
    def lightning_strategy(self) -> str:
        """The strategy's name for Lightning's Trainer."""
        return "ddp" if self.strategy == "ddp" or self.world_size > 1 else "auto"

    def check_launch(self) -> None:
        """See that a launcher (torchrun, say) started as many processes as these settings mean.

        Raises:
            ValueError: if it did not.
        """
        launched = int(os.environ.get("WORLD_SIZE", self.world_size))
        require(
            launched == self.world_size,
            "devices",
            self.devices,
            f"such that devices * num_nodes = {launched}, the processes that were launched",
        )

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
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    # Lightning's own launcher gives its children a LOCAL_RANK; inside an allocation they inherit SLURM's too.
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    if "LOCAL_RANK" in os.environ or node != "0":
        return node == "0" and os.environ.get("LOCAL_RANK", "0") == "0"
    return os.environ.get("SLURM_PROCID", "0") == "0"
