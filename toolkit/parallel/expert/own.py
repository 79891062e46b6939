"""A process's own experts as plain tensors, whose gradients become those of the whole batch's mean loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial

from toolkit.checks import require


def own_shards(experts: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """By name, this process's part of every parameter of ``experts``; gradients flow to the parameters.

    Every process has a loss L_r, the mean over its tokens. Data parallelism averages the trunk's gradients over the N
    processes, whose gradient is thus that of L = (1 / N) sum_r L_r. An expert is fed by all processes of its group and
    so receives the *sum* of dL_r / dW over them; the copies in other groups receive the rest. The gradient of L is
    therefore the sum over copies, times 1 / N, with N the processes of the experts' mesh.

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
    # What looks like a step to nowhere sums the copies' gradients in the backward pass.
    partial = [Partial() if placement.is_replicate() else placement for placement in parameter.placements]
    own = parameter.redistribute(placements=parameter.placements).to_local(grad_placements=partial)
    if own.requires_grad:
        processes = parameter.device_mesh.size()
        own.register_hook(lambda gradient: gradient / processes)
    return own
