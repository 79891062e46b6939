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
from toolkit.parallel.traffic import SHARES


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


def sharded_bytes(
    layers: int, others: int, *, processes: int, copies: int = 1, zero: int = 3, gather_itemsize: int = 4
) -> dict[str, float]:
    """What each process sends in a training step of :func:`shard_layers`, by the collective; gradients are in fp32.

    Each gathers its part of a layer before the forward, and with ``zero=3`` before the backward again; it scatters the
    sums of gradients, and averages its own part over the copies.

    Args:
        layers: numbers that a process keeps of the layers' parameters; it sends as many as the one with the most rows.
        others: of the embedding, last norm and head.
        processes: that a copy is cut over.
        copies: of what is cut.
        zero, gather_itemsize: see ``ParallelConfig``; bytes of a gathered number.

    Source: Rajbhandari et al. 2020 (arXiv 1910.02054), section 7.
    """
    gathers = 2 if zero == 3 else 1
    return {
        "all_gather": SHARES["all_gather"](processes) * gather_itemsize * (gathers * layers + others),
        "reduce_scatter": SHARES["reduce_scatter"](processes) * 4 * processes * (layers + others),
        "all_reduce": SHARES["all_reduce"](copies) * 4 * (layers + others),
    }


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
