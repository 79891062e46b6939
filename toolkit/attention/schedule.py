"""Which keys each block of queries visits: the one plan behind the CPU path and the FLOP count."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from toolkit.attention.patterns import Pattern, query_positions

BLOCK = 128
"""Query rows in one block: on two CPU cores larger blocks waste causal work, smaller ones call overhead."""


@dataclass(frozen=True)
class QueryBlock:
    """Rows ``start:stop`` of the queries visit columns ``first:last`` of the keys.

    ``full`` says that every pair in that rectangle is visible, so no mask is needed.
    """

    start: int
    stop: int
    first: int
    last: int
    full: bool


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
        found = _hull(first[rows], last[rows])
        if found is not None:
            blocks.append(QueryBlock(rows.start, rows.stop, *found))
    return tuple(blocks)


def _hull(first: Tensor, last: Tensor) -> tuple[int, int, bool] | None:
    seen = last > first
    if not bool(seen.any()):
        return None
    low, high = int(first[seen].min()), int(last[seen].max())
    full = bool((first == low).all() and (last == high).all())
    return low, high, full


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
) -> tuple[Tensor | None, ...]:
    """For each scheduled block what to add to its scores, (rows, columns): 0 where visible and -inf
    where not; None where all of it is visible."""
    query = query_positions(pattern, q_len, kv_len, q_start, kv_start, device)
    key = torch.arange(kv_start, kv_start + kv_len, device=device)

    def bias(part: QueryBlock) -> Tensor:
        seen = pattern.visible(query[part.start : part.stop, None], key[None, part.first : part.last])
        return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf)

    blocks = schedule(pattern, q_len, kv_len, q_start, kv_start, block)
    return tuple(None if part.full else bias(part) for part in blocks)


def visited(pattern: Pattern, q_len: int, kv_len: int, q_start: int | None = None, kv_start: int = 0) -> int:
    """Pairs in the visited rectangles, masked ones included: what the blockwise path computes."""
    blocks = schedule(pattern, q_len, kv_len, q_start, kv_start)
    return sum((part.stop - part.start) * (part.last - part.first) for part in blocks)
