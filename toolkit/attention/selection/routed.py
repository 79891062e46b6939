"""Attention to blocks of keys that each query has chosen: blocks are experts, and queries are routed to them.

Every (query, block) pair becomes a row, a copy of the query. Rows sorted by block see the same keys as their
neighbours, so they are attended to as dense tiles by the function that computes every other pattern, and the
rows of a query are merged by their log-sum-exp. Nothing is padded: sorted rows touch at most one tile more
for each block than rows padded to whole tiles would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from toolkit.attention.patterns.blocks import KeyRanges

SCORES = 2**22
"""Scores of (query, block) pairs held at once while blocks are chosen."""


def choose(scores: Tensor, allowed: Tensor, count: int) -> Tensor:
    """The ``count`` allowed blocks of the highest score; which of equal ones is not defined.

    Shapes: scores (..., q_len, blocks), allowed bool (q_len, blocks) -> int64 (..., q_len, count), -1 where
    fewer are allowed.
    """
    best = scores.masked_fill(~allowed, -torch.inf).topk(min(count, scores.shape[-1]), dim=-1)
    blocks = best.indices.masked_fill(best.values == -torch.inf, -1)
    return F.pad(blocks, (0, count - blocks.shape[-1]), value=-1)


def by_chunks(chosen: Callable[[int, int], Tensor], q_len: int, width: int) -> Tensor:
    """``chosen(first, stop)`` (..., stop - first, slots) over chunks of the queries, joined: (..., q_len, slots).

    A chunk has so many queries that it needs about ``SCORES`` scores, each query needing ``width``.
    """
    step = max(1, SCORES // max(1, width))
    return torch.cat([chosen(first, min(first + step, q_len)) for first in range(0, q_len, step)], dim=-2)


def grouped(x: Tensor, kv_heads: int) -> Tensor:
    """(batch, heads, ...) -> (batch * kv_heads, group, ...): one key head for each entry of the first axis."""
    return rearrange(x, "b (h g) ... -> (b h) g ...", h=kv_heads)


def none_chosen(queries: Tensor) -> Tensor:
    """No blocks for queries (batch, group, q_len, head_dim): int64 (batch, group, q_len, 0)."""
    return torch.empty(*queries.shape[:3], 0, dtype=torch.int64, device=queries.device)


def attend_blocks(
    nearby: tuple[Tensor, Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chosen: Tensor,
    block: int,
    attend: Callable[..., Any],
    **settings: Any,
) -> tuple[Tensor, Tensor]:
    """What is attended to already, and the chosen blocks beside it, under one softmax.

    Args:
        nearby: out (batch, heads, q_len, value_dim) and lse (batch, heads, q_len) over other keys; no row of
            it may be empty.
        q: (batch, heads, q_len, head_dim).
        k, v: (batch, kv_heads, kv_len, head_dim | value_dim).
        chosen: int64 (batch * kv_heads, group | 1, q_len, slots): different blocks, whole ones (the last key
            of each exists), for each query head of a group or for all of them; -1 for none.
        block: keys in a block.
        attend: :func:`toolkit.attention.attention`, or what stands in for it.
        settings: of ``attend``, such that they do not depend on where a query stands.

    Returns:
        out and lse, shaped as nearby's; differentiable in all but ``chosen``, without atomic additions. Takes
        memory of ``slots`` times that of q and of out.

    Sources: sorting by expert as in dropless MoE (Gale et al. 2023, arXiv 2211.15841); merging by
    log-sum-exp, Dao et al. 2022 (arXiv 2205.14135), section 3.1.
    """
    if chosen.shape[-1] == 0:
        return nearby
    batch, kv_heads = k.shape[:2]
    out, lse = (grouped(x, kv_heads) for x in nearby)
    order, place, pattern = _sorted_by_block(chosen, block)
    rows = _Rows(order, place, out.shape[:3], chosen.shape[-1])
    keys, values = (rearrange(x, "b h j d -> (b h) 1 j d") for x in (k, v))
    queries = rows.of_queries(grouped(q, kv_heads))
    row_out, row_lse = attend(queries, keys, values, pattern, q_start=0, return_lse=True, **settings)
    total = torch.cat([lse[..., None], rows.by_query(row_lse)], dim=-1).logsumexp(dim=-1)
    share, row_share = (lse - total).exp(), (row_lse - rows.of_queries(total)).exp()
    merged = out * share[..., None] + rows.summed(row_out * row_share[..., None])
    merged, total = (rearrange(x, "(b h) g ... -> b (h g) ...", b=batch) for x in (merged, total))
    return merged.to(q.dtype), total


def _sorted_by_block(chosen: Tensor, block: int) -> tuple[Tensor, Tensor, KeyRanges]:
    """The pairs in order of block, and what they see.

    Shapes: chosen (batch, group | 1, q_len, slots). Pair query * slots + slot stands in place ``place[pair]``,
    and ``order`` says which pair is in a place: both (batch, group | 1, q_len * slots). Pairs that are none
    come first and see nothing.
    """
    sorted_blocks, order = chosen.flatten(-2).sort(dim=-1, stable=True)
    positions = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    place = torch.empty_like(order).scatter_(-1, order, positions)
    first = (sorted_blocks * block).clamp(min=0)
    stop = first + block * (sorted_blocks >= 0)
    return order, place, KeyRanges(first.to(torch.int32), stop.to(torch.int32))


class _Rows:
    """Between queries (batch, group, q_len, ...) and their rows sorted by block (batch, group, q_len * slots, ...)."""

    def __init__(self, order: Tensor, place: Tensor, lead: torch.Size, slots: int) -> None:
        """order and place (batch, group | 1, q_len * slots); lead: batch, group, q_len."""
        batch, group, q_len = lead
        plane = torch.arange(batch * group, device=order.device).view(batch, group, 1)
        self.lead, self.slots = lead, slots
        # Both axes of planes and the one of rows are one axis from here on.
        self._pair, self._place = ((x + plane * (q_len * slots)).flatten() for x in (order, place))

    def of_queries(self, x: Tensor) -> Tensor:
        """A row's query: (batch, group, q_len, ...) -> (batch, group, q_len * slots, ...)."""
        taken: Tensor = _Take.apply(x.flatten(0, 2), self._pair // self.slots, self._place.view(-1, self.slots))
        return taken.view(*self.lead[:2], -1, *x.shape[3:])

    def summed(self, x: Tensor) -> Tensor:
        """The sum of a query's rows: (batch, group, q_len * slots, ...) -> (batch, group, q_len, ...)."""
        total: Tensor = _Sum.apply(x.flatten(0, 2), self._place.view(-1, self.slots), self._pair // self.slots)
        return total.view(*self.lead, *x.shape[3:])

    def by_query(self, x: Tensor) -> Tensor:
        """The rows of each query: (batch, group, q_len * slots) -> (batch, group, q_len, slots)."""
        taken: Tensor = _Take.apply(x.flatten(), self._place, self._pair[:, None])
        return taken.view(*self.lead, self.slots)


class _Take(torch.autograd.Function):
    """x[index] for x (n, ...) and index (m,), where places[i] (n, s) are the positions of i in the index.

    Knowing them makes the backward pass a sum in fixed order in place of atomic additions.
    """

    @staticmethod
    def forward(x: Tensor, index: Tensor, places: Tensor) -> Tensor:
        """(m, ...)."""
        return x.index_select(0, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        """Only the indices are needed."""
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, d_taken: Tensor) -> tuple[Tensor, None, None]:
        """The other one, so that it can be differentiated again."""
        index, places = ctx.saved_tensors
        return _Sum.apply(d_taken, places, index), None, None


class _Sum(torch.autograd.Function):
    """x[places].sum(1) for x (m, ...) and places (n, s): the transpose of :class:`_Take`."""

    @staticmethod
    def forward(x: Tensor, places: Tensor, index: Tensor) -> Tensor:
        """(n, ...)."""
        return x.index_select(0, places.flatten()).unflatten(0, places.shape).sum(dim=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        """Only the indices are needed."""
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, d_sum: Tensor) -> tuple[Tensor, None, None]:
        """Each row gets its query's."""
        places, index = ctx.saved_tensors
        return _Take.apply(d_sum, index, places), None, None
