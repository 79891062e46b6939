"""Which rows each program multiplies: tiles that never cross from one expert to the next, counted on the device."""

from __future__ import annotations

import torch
from torch import Tensor


def row_tiles(ends: Tensor, n: int, block_m: int) -> Tensor:
    """The tiles of at most ``block_m`` sorted rows: int32 (tiles, 3), each an expert, its first row and its stop.

    Shapes: ends int32 (experts,), as in :class:`toolkit.routing.ExpertRows`, of n rows. How many tiles there are is
    known to the device alone, so there is room for the most there can be, and surplus tiles, the last, stop before
    they start. Nothing waits for the device.
    """
    experts = len(ends)
    starts = torch.nn.functional.pad(ends, (1, 0))[:-1]
    counts = torch.div(ends - starts + (block_m - 1), block_m, rounding_mode="floor")
    stops = counts.cumsum(0, dtype=torch.int32)
    number = torch.arange(most_tiles(n, experts, block_m), dtype=torch.int32, device=ends.device)
    expert = torch.searchsorted(stops, number, right=True, out_int32=True).clamp(max=experts - 1)
    first = starts[expert] + (number - (stops - counts)[expert]) * block_m
    return torch.stack([expert, first, torch.minimum(first + block_m, ends[expert])], 1)


def most_tiles(n: int, experts: int, block_m: int) -> int:
    """The most tiles that n rows of so many experts can fill: every expert that has rows may leave one part empty."""
    return n // block_m + min(experts, n)
