"""A decoder spread over processes as a config says: the plans in the order they must be applied."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from toolkit.checks import require
from toolkit.models import Decoder
from toolkit.parallel.context import context_parallel
from toolkit.parallel.expert import expert_parallel, expert_parameters
from toolkit.parallel.mesh import Meshes
from toolkit.parallel.sharded import shard_layers
from toolkit.parallel.tensor import tensor_parallel
from toolkit.routing.reduce import set_batch_group


def parallelize(decoder: Decoder, meshes: Meshes) -> nn.Module:
    """Spread ``decoder`` over the processes of ``meshes``; every process must hold the same weights.

    First what shares the insides of layers: routed experts (expert), heads and hidden units (tensor), the tokens of a
    sequence (context); then what cuts or copies the rest over the processes whose tokens differ, which are also those
    that routers count over from now on. Returns what is to be called: the decoder itself, changed in place, or it
    within ``DistributedDataParallel`` where every process holds all of it.

    Args:
        decoder: of plain tensors, on this process's device. With ``context`` above 1 it takes this process's part of
            every sequence, see :func:`toolkit.parallel.context.context_parallel`.
        meshes: of all processes.

    Raises:
        ValueError: if a layer cannot be shared so, as :func:`toolkit.parallel.tensor.tensor_parallel`,
            :func:`toolkit.parallel.context.context_parallel` and :func:`toolkit.parallel.expert.expert_parallel` say;
            or with ``pipeline`` above 1: see :class:`toolkit.parallel.pipeline.PipelineTrainer`.
    """
    config = meshes.config
    right = "1 here; toolkit.parallel.pipeline.PipelineTrainer runs a pipeline's stages in a plain loop"
    require(config.pipeline == 1, "pipeline", config.pipeline, right)
    set_batch_group(None if config.is_replicated else meshes.tokens)
    if config.is_replicated:
        return decoder if config.world_size == 1 else DistributedDataParallel(decoder)
    if config.expert > 1:
        expert_parallel(decoder, meshes.expert, torch.bfloat16 if config.gather_dtype == "bf16" else None)
    if config.tensor > 1:
        tensor_parallel(decoder, meshes.tensor, config.sequence_parallel)
    if config.context > 1:
        context_parallel(decoder, meshes.world["context"], method=config.context_method)
    if config.gathers:
        shard_layers(decoder, meshes.sharding, config, expert_parameters(decoder).values())
    return decoder
