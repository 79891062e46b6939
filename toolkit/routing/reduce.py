"""Sums over the processes that share a batch."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def distributed() -> bool:
    """Whether there is a process group to sum over."""
    return dist.is_available() and dist.is_initialized()


def all_reduce(values: Tensor, group: dist.ProcessGroup | None = None, largest: bool = False) -> Tensor:
    """values of any shape -> their sum (or ``largest``) over ``group``, the default group if None.

    A collective that leaves its argument alone; without a process group it gives it back as it is.
    """
    if not distributed():
        return values
    total = values.clone()
    dist.all_reduce(total, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM, group=group)
    return total
