"""Sharded data parallelism: parameters, gradients and optimizer state cut over processes (FSDP2)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from toolkit.models import Decoder
from toolkit.parallel.config import ParallelConfig


def shard_layers(
    decoder: Decoder, mesh: DeviceMesh, config: ParallelConfig, ignored: Collection[nn.Parameter] = ()
) -> None:
    """Cut the parameters of ``decoder`` over the processes of ``mesh``, in place.

    Each layer is gathered as one before it runs, the embedding, last norm and head as another, and a layer's gradients
    are averaged over ``mesh``, each process keeping its part, when its backward pass is done. With ``zero=3`` a layer's
    parameters are given back after its forward; with ``zero=2`` they stay until its backward pass. Routers' losses
    ride on the layers' outputs, so that their gradients arrive before a layer is given back.

    Args:
        decoder: parameters are plain tensors, or DTensors of another dimension of the same processes (tensor).
        mesh: one dimension to cut over, or two: copies of what is cut, averaged over the first, cut over the second.
        config: ``zero``, ``gather_dtype`` and ``offload``.
        ignored: parameters that are left alone and whose gradients are not averaged, such as routed experts that
            have a mesh of their own.

    Source: Zhao et al. 2023 (arXiv 2304.11277); ZeRO stages: Rajbhandari et al. 2020 (arXiv 1910.02054), section 5.
    """
    settings: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": _mixed_precision(config),
        "offload_policy": _offload(config, mesh),
        "ignored_params": set(ignored) or None,
    }
    for block in decoder.blocks:
        fully_shard(block, reshard_after_forward=config.zero == 3, **settings)
    # What the root holds is needed first in the backward pass: it is not given back in between.
    fully_shard(decoder, reshard_after_forward=False, **settings)


def reshard(model: nn.Module) -> None:
    """Give back what FSDP2 still holds of others' parts, so that ``model``'s parameters are the optimizer's again.

    After a forward without a backward, such as a validation's, layers that are not given back are still whole.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _mixed_precision(config: ParallelConfig) -> MixedPrecisionPolicy:
    if config.gather_dtype == "parameter":
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def _offload(config: ParallelConfig, mesh: DeviceMesh) -> OffloadPolicy:
    if not config.offload:
        return OffloadPolicy()
    return CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu")
