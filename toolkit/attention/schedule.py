"""Which keys each block of queries visits: the one plan behind the CPU path and the FLOP count."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from toolkit.attention.patterns import Pattern, query_positions

BLOCK = 128
"""Query rows in one block: larger ones compute more masked pairs, smaller ones make more calls."""


@dataclass(frozen=True)
class QueryBlock:
    """Rows ``start:stop`` of the queries visit columns ``first:last`` of the keys.

    Every one of the rows sees every column of ``core_first:core_last``; only the columns beside that
    core need a mask. ``blind`` says that some of the rows see nothing at all.
    """

    start: int
    stop: int
    first: int
    last: int
    core_first: int
    core_last: int
    blind: bool = False

    @property
    def full(self) -> bool:
        """Whether every pair of the rectangle is visible."""
        return (self.core_first, self.core_last) == (self.first, self.last)

    @property
    def masked(self) -> tuple[slice, ...]:
        """The columns beside the core, counted from ``first``."""
        sides = (self.first, self.core_first), (self.core_last, self.last)
        return tuple(slice(low - self.first, high - self.first) for low, high in sides if low < high)


@dataclass(frozen=True)
class Bias:
    """What to add to the scores of some columns of a block: 0 where visible, -inf where not.

    Attributes:
        columns: which, counted from the block's first.
        values: (rows, columns).
    """

    columns: slice
    values: Tensor


@lru_cache(maxsize=256)
def schedule(
    pattern: Pattern, q_len: int, kv_len: int, q_start: int | None = None, kv_start: int = 0, block: int = BLOCK
) -> tuple[QueryBlock, ...]:
    """The blocks of at most ``block`` query rows that see a key at all, in order of their rows.

    Costs O(q_len) time and memory, and is cached per pattern and shape.
    """
    query = query_positions(pattern, q_len, kv_len, q_start, kv_start)
    first, last = pattern.span(query)
    first = first.clamp(min=kv_start) - kv_start
    last = last.clamp(max=kv_start + kv_len - 1) - kv_start + 1  # one past the last
    blocks = []
    for start in range(0, q_len, block):
        rows = slice(start, min(start + block, q_len))
        found = _rectangle(first[rows], last[rows])
        if found is not None:
            blocks.append(QueryBlock(rows.start, rows.stop, *found))
    return tuple(blocks)


def _rectangle(first: Tensor, last: Tensor) -> tuple[int, int, int, int, bool] | None:
    """first, last, core_first, core_last, blind of rows that see ``first:last`` each; None if none sees any."""
    seen = last > first
    if not bool(seen.any()):
        return None
    low, high = int(first[seen].min()), int(last[seen].max())
    core_low, core_high = int(first.max()), int(last.min())
    blind = not bool(seen.all())
    if core_low >= core_high or blind:
        return low, high, high, high, blind  # no core: the columns beside it are all of them
    return low, high, core_low, core_high, False


@lru_cache(maxsize=64)
def block_biases(
    pattern: Pattern,
    q_len: int,
    kv_len: int,
    q_start: int | None,
    kv_start: int,
    device: torch.device,
    dtype: torch.dtype,
    block: int = BLOCK,
) -> tuple[tuple[Bias, ...], ...]:
    """For each scheduled block the biases of the columns beside its core: none if all of it is visible."""
    query = query_positions(pattern, q_len, kv_len, q_start, kv_start, device)
    key = torch.arange(kv_start, kv_start + kv_len, device=device)

    def bias(part: QueryBlock, columns: slice) -> Bias:
        keys = key[part.first : part.last][columns]
        seen = pattern.visible(query[part.start : part.stop, None], keys[None])
        return Bias(columns, torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf))

    blocks = schedule(pattern, q_len, kv_len, q_start, kv_start, block)
    return tuple(tuple(bias(part, columns) for columns in part.masked) for part in blocks)


def visited(pattern: Pattern, q_len: int, kv_len: int, q_start: int | None = None, kv_start: int = 0) -> int:
    """Pairs in the visited rectangles, masked ones included: what the blockwise path computes."""
    blocks = schedule(pattern, q_len, kv_len, q_start, kv_start)
    return sum((part.stop - part.start) * (part.last - part.first) for part in blocks)
