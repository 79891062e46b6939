"""Losses of sequences whose tokens lie on several ranks, and the gradients they give every rank's copy of the weights.

One convention, that of DDP and FSDP: the gradient of the whole is the ranks' mean. So every rank's loss is the whole's,
and its gradient that of n times this rank's share.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import functional as F

from toolkit.checks import require
from toolkit.models.decoder import IGNORED
from toolkit.parallel.context.split import context_group
from toolkit.routing.reduce import all_reduce


def context_cross_entropy(
    logits: Tensor, labels: Tensor, group: dist.ProcessGroup | DeviceMesh, ignore_index: int = IGNORED
) -> Tensor:
    """The mean cross-entropy over the labelled tokens of all ranks: sum over sum, the same on every rank.

    Shapes: logits (..., vocab_size), labels int64 (...), this rank's parts -> scalar, 0 where no token has a label. A
    rank may hold none. Averaging the ranks' gradients gives the whole's.

    Raises:
        ValueError: if labels are of another shape than logits' tokens.
    """
    require(labels.shape == logits.shape[:-1], "labels.shape", tuple(labels.shape), f"{tuple(logits.shape[:-1])}")
    group = context_group(group)
    total = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=ignore_index, reduction="sum")
    count = all_reduce((labels != ignore_index).sum(), group)
    mean: Tensor = _SumOverRanks.apply(total / count.clamp(min=1), group)
    return mean


class _SumOverRanks(torch.autograd.Function):
    """The sum on every rank; backward, the sum of the ranks' gradients of it, which are alike."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.ranks = group.size()
        return all_reduce(x, group)

    @staticmethod
    def backward(ctx: Any, d_sum: Tensor) -> tuple[Tensor, None]:
        return d_sum * ctx.ranks, None


@torch.no_grad()
def average_gradients(model: nn.Module, group: dist.ProcessGroup | DeviceMesh) -> None:
    """Replace each parameter's gradient by the ranks' mean, in place: what DDP or FSDP over the group would do.

    A parameter without a gradient on this rank (an expert that none of its tokens chose) counts as 0, unless no rank
    has one. One message for each dtype.
    """
    group = context_group(group)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        return
    has = torch.tensor([parameter.grad is not None for parameter in parameters], device=parameters[0].device)
    known = all_reduce(has.int(), group).tolist()
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter, holders in zip(parameters, known, strict=True):
        if holders:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_dtype.values():
        mean = all_reduce(torch.cat([gradient.flatten() for gradient in gradients]), group) / group.size()
        for gradient, fresh in zip(gradients, mean.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(fresh.view_as(gradient))
