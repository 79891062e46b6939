"""The norm of a gradient that is spread over processes, and its clipping."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from toolkit.checks import require, require_positive

Spread = tuple[DeviceMesh | None, tuple[int, ...]]
"""A mesh, and the dimensions of it along which a tensor is cut; (None, ()) for a plain tensor."""


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[nn.Parameter], max_norm: float, pipeline: dist.ProcessGroup | None = None
) -> Tensor:
    """Scale all gradients by min(1, max_norm / (norm + 1e-6)), in place; the norm before, a scalar.

    The norm is that of the whole model's gradient, as :func:`torch.nn.utils.clip_grad_norm_` takes it in one process.
    See :func:`gradient_norm`.

    Raises:
        ValueError: if ``max_norm`` is not positive.
    """
    require_positive(max_norm=max_norm)
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    norm = gradient_norm(parameters, pipeline)
    gradients = [_local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    if gradients:
        torch._foreach_mul_(gradients, scale.to(gradients[0].device))
    return norm


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter], pipeline: dist.ProcessGroup | None = None) -> Tensor:
    """The 2-norm of the gradient of ``parameters``, whatever meshes they are spread over; a scalar in every process.

    Squares are added in each process over the tensors that are cut along the same dimensions of the same mesh, then
    over the processes of those dimensions: what is copied is counted once, and no operator meets two meshes. A
    collective call: as many sums as there are ways to be cut, whether or not a process has a gradient for each
    parameter.

    Args:
        parameters: the same in every process of a mesh; plain ones hold the same gradient wherever they are.
        pipeline: the processes that hold the other layers; None if there are none.

    Raises:
        ValueError: if a gradient is spread otherwise than its parameter: a partial sum, say, has no norm yet.
    """
    norms: dict[Spread, list[Tensor]] = {}
    device = torch.device("cpu")
    for parameter in parameters:
        kept, device = norms.setdefault(_spread(parameter), []), parameter.device
        if parameter.grad is not None:
            _require_alike(parameter, parameter.grad)
            kept.append(_local(parameter.grad))
    totals = [_norm_over(spread, gradients, device) for spread, gradients in norms.items()]
    total = totals[0] if len(totals) == 1 else torch.zeros((), device=device)
    if len(totals) > 1:
        total = torch.linalg.vector_norm(torch.stack(totals))
    return total if pipeline is None else _summed_squares(total, [pipeline])


def _spread(parameter: Tensor) -> Spread:
    if not isinstance(parameter, DTensor):
        return None, ()
    cut = tuple(dim for dim, placement in enumerate(parameter.placements) if not placement.is_replicate())
    return parameter.device_mesh, cut


def _require_alike(parameter: Tensor, gradient: Tensor) -> None:
    here, right = (each.placements if isinstance(each, DTensor) else None for each in (gradient, parameter))
    require(here == right, "gradient.placements", here, f"its parameter's, {right}")


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _norm_over(spread: Spread, gradients: list[Tensor], device: torch.device) -> Tensor:
    """The norm of the tensors that are spread so, over the processes that share them."""
    filled = [gradient for gradient in gradients if gradient.numel()]
    norms = torch._foreach_norm(filled) if filled else ()
    norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros((), device=device)
    mesh, cut = spread
    groups = [mesh.get_group(dim) for dim in cut if mesh.size(dim) > 1] if mesh is not None else []
    return _summed_squares(norm, groups) if groups else norm


def _summed_squares(norm: Tensor, groups: list[dist.ProcessGroup]) -> Tensor:
    """The root of the sum of the processes' squares; in fp64, so that a process without gradients needs no dtype."""
    square = norm.double().square()
    for group in groups:
        dist.all_reduce(square, group=group)
    return square.sqrt()
