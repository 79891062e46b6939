"""A process's own experts as plain tensors, whose gradients become those of the whole batch's mean loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial

from toolkit.checks import require
from toolkit.routing.reduce import all_reduce

TENSOR = 2
"""The dimension of the experts' mesh, where it has one, whose processes share hidden units: see `expert_parallel`."""


def own_shards(experts: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """By name, this process's part of every parameter of ``experts``; gradients flow to the parameters.

    Every process has a loss L_r, the mean over its tokens. Data parallelism averages the trunk's gradients over the N
    processes, whose gradient is thus that of L = (1 / N) sum_r L_r. An expert is fed by all processes of its group and
    so receives the *sum* of dL_r / dW over them; the copies in other groups receive the rest. The gradient of L is
    therefore the sum over copies, times 1 / N, with N the processes of the experts' mesh; those of a tensor group have
    one loss, and are counted once.

    Of a mesh with a tensor dimension the processes' outputs are added up. So what every process of it has whole, a bias
    behind a product, is given as its 1 / tensor, and the gradients of these are summed.

    Args:
        experts: with parameters of any shape, DTensors.
        dtype: what to give them in; gradients are still summed, and kept, in the parameters' own. None: their own.

    Raises:
        ValueError: if a parameter is not shared over a mesh.
    """
    own = {name: _own_shard(name, parameter) for name, parameter in experts.named_parameters()}
    return own if dtype is None else {name: shard.to(dtype) for name, shard in own.items()}


def _own_shard(name: str, parameter: nn.Parameter) -> Tensor:
    shared = isinstance(parameter, DTensor)
    require(shared, f"experts.{name}", type(parameter).__name__, "shared over processes: see expert_parallel")
    assert isinstance(parameter, DTensor), "it was required"
    mesh, placements = parameter.device_mesh, list(parameter.placements)
    copied = [dim for dim, placement in enumerate(placements) if placement.is_replicate() and dim != TENSOR]
    # What looks like a step to nowhere sums the copies' gradients in the backward pass.
    partial = [Partial() if dim in copied else placement for dim, placement in enumerate(placements)]
    own = parameter.redistribute(placements=placements).to_local(grad_placements=partial)
    tensor = mesh.size(TENSOR) if mesh.ndim > TENSOR else 1
    losses = mesh.size() // tensor
    if own.requires_grad:
        own.register_hook(lambda gradient: gradient / losses)
    if tensor == 1 or not placements[TENSOR].is_replicate():
        return own
    if own.requires_grad:
        own.register_hook(lambda gradient: all_reduce(gradient, mesh.get_group(TENSOR)))
    return own / tensor
