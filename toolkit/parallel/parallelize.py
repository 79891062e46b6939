"""A decoder spread over processes as a config says: the plans in the order they must be applied."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from toolkit.models import Decoder
from toolkit.parallel.mesh import Meshes
from toolkit.parallel.sharded import shard_layers
from toolkit.parallel.tensor import tensor_parallel


def parallelize(decoder: Decoder, meshes: Meshes, ignored: Collection[nn.Parameter] = ()) -> nn.Module:
    """Spread ``decoder`` over the processes of ``meshes``; every process must hold the same weights.

    Tensor parallelism first, then what cuts or copies over data. Returns what is to be called: the decoder itself,
    changed in place, or it within ``DistributedDataParallel`` where every process holds all of it.

    Args:
        decoder: of plain tensors, on this process's device.
        meshes: of all processes.
        ignored: parameters that neither is to touch, see :func:`toolkit.parallel.sharded.shard_layers`.

    Raises:
        ValueError: as :func:`toolkit.parallel.tensor.tensor_parallel`.
    """
    config = meshes.config
    if config.is_replicated:
        return decoder if config.world_size == 1 else DistributedDataParallel(decoder)
    if config.tensor > 1:
        tensor_parallel(decoder, meshes.tensor, config.sequence_parallel)
    if meshes.sharding.size() > 1:
        shard_layers(decoder, meshes.sharding, config, ignored)
    return decoder
