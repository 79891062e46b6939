"""The experts of every MoE in a model, shared by the processes of a mesh."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from toolkit.checks import require
from toolkit.layers import MoE
from toolkit.layers.moe import LocalDispatcher
from toolkit.parallel.expert.dispatcher import AllToAllDispatcher, require_even
from toolkit.parallel.tensor.shares import distribute, shares
from toolkit.routing import SoftRouter


def expert_parallel(module: nn.Module, mesh: DeviceMesh, compute_dtype: torch.dtype | None = None) -> None:
    """Share the routed experts of every MoE in ``module`` among the processes of ``mesh``, in place.

    Every process keeps num_experts / processes of them, and their rows of every parameter, as DTensors: state dicts,
    clipping and ``torch.distributed.checkpoint`` see the whole. Routers, shared experts and experts without computation
    stay in every process. Nothing is sent; every process must hold the same weights, and then see other tokens.

    The rest of the model is averaged over the processes of ``mesh`` by data parallelism, which must leave the experts
    alone: their gradients are complete, and scaled to match (:func:`toolkit.parallel.expert.own.own_shards`).
    ``DistributedDataParallel`` around ``module`` itself knows; around a module that holds it, and for FSDP2,
    :func:`expert_parameters` says which they are.

    With a tensor dimension the processes of a tensor group have the same tokens, choose the same experts for them, and
    each sends them to the processes of its own place in the tensor groups, where its share of the hidden units is: what
    comes home is a partial sum, as of any layer under tensor parallelism, which is to be applied to the rest afterwards
    (:func:`toolkit.parallel.tensor.tensor_parallel`).

    Args:
        module: a MoE or anything with some in it, such as a decoder, of plain tensors.
        mesh: one dimension, whose processes share the experts; or two, ``("expert_data", "expert")``: the second shares
            them and the first holds copies. Their processes are all whose losses are averaged. Or three,
            ``("expert_data", "expert", "tensor")``: the third shares the hidden units of every expert.
        compute_dtype: what experts compute in where FSDP2's mixed precision gives them tokens in another dtype than
            their parameters', which it does not see; gradients are summed in the parameters' own. None: that.

    Raises:
        ValueError: if there is no MoE, experts or hidden units cannot be shared evenly, are shared already or are those
            of a soft router, which mixes slots for them here; or if a MoE has another dispatcher.
    """
    layers = {path: part for path, part in module.named_modules() if isinstance(part, MoE)}
    require(bool(layers), "module", type(module).__name__, "one with a MoE")
    right = "1, (expert,), 2, (expert_data, expert), or 3, (expert_data, expert, tensor)"
    require(mesh.ndim in (1, 2, 3), "mesh.ndim", mesh.ndim, right)
    dim = min(mesh.ndim - 1, 1)  # of the experts
    for path, moe in layers.items():
        _require_plain(path or "module", moe, mesh.size(dim))
        if mesh.ndim == 3:
            shares(moe.experts, mesh.size(2))  # refuses hidden units that cannot be shared
    for moe in layers.values():
        _share(moe.experts, mesh)
        moe.dispatcher = AllToAllDispatcher(mesh.get_group(dim), compute_dtype)
    ignore_in_data_parallel(module)


def expert_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters in ``module`` that :func:`expert_parallel` has shared, by their names in it.

    What data parallelism is to leave alone: ``fully_shard(..., ignored_params=set(expert_parameters(m).values()))``.
    """
    layers = [part for part in module.modules() if isinstance(part, MoE)]
    shared = [moe.experts for moe in layers if isinstance(moe.dispatcher, AllToAllDispatcher)]
    found = {id(parameter) for experts in shared for parameter in experts.parameters()}
    return {name: parameter for name, parameter in module.named_parameters() if id(parameter) in found}


def ignore_in_data_parallel(module: nn.Module) -> None:
    """Have ``DistributedDataParallel(module)`` leave the shared experts alone, besides what it was told to before."""
    known = getattr(module, "_ddp_params_and_buffers_to_ignore", ())
    names = list(dict.fromkeys([*known, *expert_parameters(module)]))
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)


def _share(experts: nn.Module, mesh: DeviceMesh) -> None:
    if mesh.ndim == 3:
        distribute(experts, mesh, shares(experts, mesh.size(2)), before=(Replicate(), Shard(0)))
        return
    placements = [*[Replicate()] * (mesh.ndim - 1), Shard(0)]
    for name, parameter in list(experts.named_parameters()):
        shared = distribute_tensor(parameter.detach(), mesh, placements, src_data_rank=None)
        experts.register_parameter(name, nn.Parameter(shared, requires_grad=parameter.requires_grad))


def _require_plain(path: str, moe: MoE, ranks: int) -> None:
    right = "one that chooses experts: a SoftRouter's slots are mixed in every process"
    require(not isinstance(moe.router, SoftRouter), f"{path}.router", type(moe.router).__name__, right)
    local = isinstance(moe.dispatcher, LocalDispatcher)
    require(local, f"{path}.dispatcher", type(moe.dispatcher).__name__, "LocalDispatcher, to be replaced")
    require_even(moe.num_experts, ranks)
    for name, parameter in moe.experts.named_parameters():
        plain = not isinstance(parameter, DTensor)
        require(plain, f"{path}.experts.{name}", "a DTensor", "a plain tensor: experts are shared in one way at a time")
