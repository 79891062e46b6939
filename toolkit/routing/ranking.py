"""Queues: the place of each item among those that want the same thing, without waiting for the device."""

from __future__ import annotations

from fractions import Fraction
from typing import TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", int, Tensor)


def rank_within(queue: Tensor, priority: Tensor) -> Tensor:
    """int64 (..., n): how many items of the same queue stand before each, the highest priority first; ties keep order.

    Shapes: queue int64 (..., n), which queue of its row each item is in; priority (..., n), any real dtype. Two
    stable sorts of the rows, static shapes, no host synchronisation.

    >>> rank_within(torch.tensor([0, 1, 0, 0]), torch.tensor([0.1, 0.5, 0.7, 0.1])).tolist()
    [1, 0, 0, 2]
    """
    order = torch.argsort(priority, dim=-1, descending=True, stable=True)
    sorted_queue, by_queue = torch.sort(queue.gather(-1, order), dim=-1, stable=True)
    order = order.gather(-1, by_queue)
    place = torch.arange(queue.shape[-1], device=queue.device).expand_as(order)
    first = torch.ones_like(sorted_queue, dtype=torch.bool)
    first[..., 1:] = sorted_queue[..., 1:] != sorted_queue[..., :-1]
    start = torch.cummax(torch.where(first, place, 0), dim=-1).values
    return torch.empty_like(order).scatter_(-1, order, place - start)


def share(count: Number, factor: float, num_experts: int) -> Number:
    """ceil(factor * count / num_experts), exactly: ``factor`` is taken as the decimal it was written as.

    >>> share(10, 1.1, 11)
    1
    >>> share(torch.tensor([10, 11]), 1.1, 11)
    tensor([1, 2])
    """
    ratio = Fraction(str(factor)) / num_experts
    return -(-count * ratio.numerator // ratio.denominator)
