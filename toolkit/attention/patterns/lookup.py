"""Reading the tables that tensor patterns hold, one for all batch rows and heads or one for each."""

from __future__ import annotations

import torch
from torch import Tensor


def lookup(table: Tensor, *index: Tensor, axes: int, shared: bool) -> Tensor:
    """``table`` at ``index``, without waiting for the device.

    Shapes: index int64 (n_1, ..., n_axes), broadcast together, or with leading (batch, 1) axes; table
    (sizes of the index, ...) when it is ``shared`` by all batch rows and heads, else (batch | 1, heads | 1,
    sizes of the index, ...) -> (..., n_1, ..., n_axes, ...) with leading axes (batch | 1, heads | 1) when the
    table or the index has them.
    """
    if shared:
        return table[index]
    batch, head = (torch.arange(size, device=table.device) for size in table.shape[:2])
    ones = (1,) * axes
    return table[(batch.view(-1, 1, *ones), head.view(-1, *ones), *index)]
