"""Sums over the processes that share a batch."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def distributed() -> bool:
    """Whether there is a process group to sum over."""
    return dist.is_available() and dist.is_initialized()


_batch_groups: list[dist.ProcessGroup] = []
"""The group that shares a batch, if it is not the default one."""


def set_batch_group(group: dist.ProcessGroup | None) -> None:
    """Have what counts tokens (balance losses, balancers, thresholds, statistics) sum over ``group`` from now on.

    For processes whose tokens differ: not those that share a layer's heads, nor those that hold other layers. It is
    the process's, as torch's default group is, so that models stay free of groups, which can be neither copied nor
    pickled. None, the beginning: the default group.
    """
    _batch_groups[:] = [] if group is None else [group]


def all_reduce(values: Tensor, group: dist.ProcessGroup | None = None, largest: bool = False) -> Tensor:
    """values of any shape -> their sum (or ``largest``) over ``group``, by default that of :func:`set_batch_group`.

    A collective that leaves its argument alone; without a process group it gives it back as it is.
    """
    if not distributed():
        return values
    total = values.clone()
    if group is None and _batch_groups:
        group = _batch_groups[0]
    dist.all_reduce(total, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM, group=group)
    return total
