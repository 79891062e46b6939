"""The processes of a run as meshes: who holds which part of the model, and who sees which tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from toolkit.checks import require
from toolkit.parallel.config import DIMENSIONS, ParallelConfig

EXPERT_DIMENSIONS = ("pipeline", "expert_data", "expert", "tensor")
"""Of the experts' mesh: the same ranks, where data, shard and context are folded and split anew."""


@dataclass(frozen=True, eq=False)
class Meshes:
    """Two views of the same processes, rank by rank in the order of :data:`DIMENSIONS`.

    Attributes:
        config: the sizes.
        world: (pipeline, data, shard, context, tensor), for everything but routed experts.
        experts: (pipeline, expert_data, expert, tensor), for routed experts: ``expert`` processes share those of a
            layer, and ``expert_data`` such groups hold copies; None without expert parallelism.
    """

    config: ParallelConfig
    world: DeviceMesh
    experts: DeviceMesh | None

    @property
    def batch_count(self) -> int:
        """Readers of different sequences: data * shard."""
        return self.config.batch_count

    @property
    def batch_rank(self) -> int:
        """Which of the ``batch_count`` readers this process is, or reads the same sequences as.

        Processes that differ in ``tensor`` and ``pipeline`` only see the same tokens; those that differ in ``context``
        read the same sequences, and each takes its own part of them.
        """
        return self.rank_in("data") * self.config.shard + self.rank_in("shard")

    def rank_in(self, dimension: str) -> int:
        """This process's place in one dimension of the world."""
        return self.world.get_local_rank(dimension)

    @property
    def tensor(self) -> DeviceMesh:
        """This process's tensor group."""
        return self.world["tensor"]

    @property
    def expert(self) -> DeviceMesh:
        """("expert_data", "expert"): the groups that share, and that copy, the experts this process is among.

        With ``tensor`` above 1 that is a third dimension, whose processes share the hidden units of each expert.

        Raises:
            ValueError: without expert parallelism.
        """
        if self.experts is None:
            raise ValueError("expert=1: it must be above 1 for a mesh of experts")
        names = EXPERT_DIMENSIONS[1:] if self.config.tensor > 1 else EXPERT_DIMENSIONS[1:3]
        return self.experts[names]

    @cached_property
    def sharding(self) -> DeviceMesh:
        """What FSDP2 shards over: ("shard",) alone, or ("data", "shard") for copies of shards (HSDP).

        Processes of one context group hold gradients of different tokens like those of different batches do, so that
        ``context`` is folded into ``shard``.
        """
        if self.config.context > 1:
            shard = self.world["shard", "context"]._flatten("shard_context")
            return shard if self.config.data == 1 else self.world["data", "shard_context"]
        return self.world["shard"] if self.config.data == 1 else self.world["data", "shard"]

    @cached_property
    def tokens(self) -> dist.ProcessGroup:
        """The processes of this pipeline stage whose tokens differ: what counts of tokens are summed over."""
        return self.world["data", "shard", "context"]._flatten("tokens").get_group()


def build_mesh(config: ParallelConfig, device_type: str = "cpu") -> Meshes:
    """The meshes of the default process group; a collective call.

    Args:
        config: the sizes.
        device_type: ``"cpu"`` or ``"cuda"``.

    Raises:
        ValueError: if the group has another number of processes than the sizes multiply to.
    """
    launched = dist.get_world_size()
    sizes = " * ".join(DIMENSIONS)
    right = f"{launched}, the processes of the default group"
    require(launched == config.world_size, sizes, config.world_size, right)
    world = init_device_mesh(device_type, config.shape, mesh_dim_names=DIMENSIONS)
    if config.expert == 1:
        return Meshes(config, world, None)
    shape = config.pipeline, -1, config.expert, config.tensor
    ranks = torch.arange(launched).view(shape)
    return Meshes(config, world, DeviceMesh(device_type, ranks, mesh_dim_names=EXPERT_DIMENSIONS))
