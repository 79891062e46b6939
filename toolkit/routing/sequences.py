"""Sequences of a batch told apart by their ids, without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor


def in_order(sequence_ids: Tensor) -> Tensor:
    """int64 (tokens,): 0, 1, ... for the runs of equal ids, whatever the ids are; fewer than tokens of them.

    >>> in_order(torch.tensor([7, 7, -1, 3])).tolist()
    [0, 0, 1, 2]
    """
    changes = torch.zeros_like(sequence_ids)
    changes[1:] = sequence_ids[1:] != sequence_ids[:-1]
    return changes.cumsum(0)
