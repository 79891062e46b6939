"""Positions as callers give them: for all rows at once, or for each row of the batch its own."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.checks import require


def per_row(positions: Tensor, batch: int, length: int, max_position: int | None, within: int | None = None) -> Tensor:
    """positions (length,), (batch, length) or (batch, 1, length) int64 or int32 -> (batch or 1, length).

    Values are looked at on the CPU only: on a GPU that would wait for the device at every call, and under
    ``torch.compile`` there are none to look at. There a negative position turns backwards, and none is too large.

    Raises:
        ValueError: naming ``positions`` if their dtype or shape is another, one is negative, or one is above
            ``max_position``; naming ``seq_len`` if one is above ``within``, the last position of the current length.
    """
    require(isinstance(positions, Tensor), "positions", positions, "a tensor of integers")
    integral = positions.dtype in (torch.int64, torch.int32)
    require(integral, "positions.dtype", positions.dtype, "torch.int64, or torch.int32")
    shape = tuple(positions.shape)
    right = f"({length},), ({batch}, {length}) or ({batch}, 1, {length})"
    fits = shape in ((length,), (1, length), (batch, length), (1, 1, length), (batch, 1, length))
    require(fits, "positions.shape", shape, right)
    _check_values(positions, max_position, within)
    return positions.reshape(-1, length) if length else positions.reshape(shape[0] if len(shape) > 1 else 1, 0)


def _check_values(positions: Tensor, max_position: int | None, within: int | None) -> None:
    if positions.device.type != "cpu" or not positions.numel() or torch.compiler.is_compiling():
        return
    smallest, largest = (int(end) for end in torch.aminmax(positions))
    require(smallest >= 0, "positions", smallest, "0 or more")
    require(
        max_position is None or largest <= max_position, "positions", largest, f"at most max_position={max_position}"
    )
    if within is not None:
        require(largest <= within, "seq_len", within + 1, f"above the largest position, {largest}")
