"""What the processes of the tests of clipping do: one model's gradients, spread over meshes that differ."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from toolkit.parallel import clip_gradients, gradient_norm

SHAPES = ((6, 4), (5, 3), (3,), (8, 2), (4, 4), (7,))


def gradients(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """The whole model's, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]


def spread(dtype: torch.dtype) -> list[nn.Parameter]:
    """Parameters with those gradients, cut in every way there is: unevenly, copied, twice, along other meshes."""
    world = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "shard"))
    experts = init_device_mesh("cpu", (1, 4), mesh_dim_names=("expert_data", "expert"))
    ways = [
        (world, [Replicate(), Shard(0)]),
        (world, [Replicate(), Shard(0)]),
        (world, [Replicate(), Replicate()]),
        (experts, [Replicate(), Shard(0)]),
        (world, [Shard(1), Shard(0)]),
    ]
    parameters = []
    for (mesh, placements), gradient in zip(ways, gradients(dtype), strict=False):
        parameter = nn.Parameter(distribute_tensor(torch.zeros_like(gradient), mesh, placements))
        parameter.grad = distribute_tensor(gradient, mesh, placements)
        parameters.append(parameter)
    plain = nn.Parameter(torch.zeros(SHAPES[-1], dtype=dtype))
    plain.grad = gradients(dtype)[-1]
    return [*parameters, plain]


def clipped(dtype: torch.dtype, max_norm: float) -> tuple[float, list[list[float]]]:
    """The norm, and the gradients after, whole."""
    parameters = spread(dtype)
    norm = clip_gradients(parameters, max_norm).item()
    whole = [
        parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
        for parameter in parameters
    ]
    return norm, [gradient.flatten().tolist() for gradient in whole if gradient is not None]


def norm_with_absent() -> float:
    """Where one process has no gradient for an expert, the others still have theirs."""
    parameters = spread(torch.float64)
    if dist.get_rank() == 0:
        parameters[3].grad = None
    return gradient_norm(parameters).item()


def norm_of_stages() -> float:
    """Each process has the layers of its own stage."""
    mine = nn.Parameter(torch.zeros(SHAPES[dist.get_rank()], dtype=torch.float64))
    mine.grad = gradients()[dist.get_rank()]
    return gradient_norm([mine], pipeline=dist.group.WORLD).item()


def of_partial_sums() -> str:
    mesh = init_device_mesh("cpu", (2,))
    parameter = nn.Parameter(distribute_tensor(torch.zeros(4), mesh, [Replicate()]))
    # As an operator of DTensors may give it: torch checks shapes, not placements, where a gradient is set.
    parameter.grad = DTensor.from_local(torch.ones(4), mesh, [Partial()])
    try:
        gradient_norm([parameter])
    except ValueError as error:
        return str(error)
    return ""
