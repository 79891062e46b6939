"""Random blocks of keys, drawn by a counter-based generator: the same on every device, in any order."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from toolkit.attention.dropout import philox
from toolkit.attention.intervals import FAR, Intervals, on_host
from toolkit.attention.patterns.lookup import lookup
from toolkit.attention.patterns.pattern import Pattern
from toolkit.checks import require


@dataclass(frozen=True)
class RandomBlocks(Pattern):
    """Query i sees key j when j's block was drawn for i's block, without replacement.

    Draw t = 0, 1, ... of query block a takes one of the n - t candidates left, in ascending order, the one
    at floor(u (n - t) / 2^32), where u is word t % 4 of Philox4x32-10(seed; t // 4, a, head, 0).

    Args:
        per_query_block: blocks drawn for each block of queries; all candidates where there are fewer.
        block: tokens in a block.
        seed: of the generator, 0 to 2^63 - 1.
        causal: candidates are the n = a blocks before the query's own, so that what is drawn does not depend
            on the number of keys. Else they are all n = ceil(end / block) blocks up to the last key, and what
            is drawn changes as keys come to be.
        per_head: the number of query heads, each of which then draws for itself; False: all as head 0.
        head: whose draws these are when they are not per head.

    Raises:
        ValueError: if a number is not an integer in its range.

    Source: BigBird (Zaheer et al. 2020, arXiv 2007.14062, section 2).
    """

    per_query_block: int
    block: int
    seed: int
    causal: bool = False
    per_head: int = False
    head: int = 0

    def __post_init__(self) -> None:
        for name in ("per_query_block", "block"):
            value = getattr(self, name)
            require(isinstance(value, int) and value > 0, name, value, "a positive integer")
        fits = isinstance(self.seed, int) and 0 <= self.seed < 2**63
        require(fits, "seed", self.seed, "an integer from 0 to 2^63 - 1")
        require(isinstance(self.causal, bool), "causal", self.causal, "True or False")
        heads = self.per_head is not True and isinstance(self.per_head, int) and self.per_head >= 0
        require(heads, "per_head", self.per_head, "the number of query heads, or False")
        require(isinstance(self.head, int) and self.head >= 0, "head", self.head, "an integer of 0 or more")
        object.__setattr__(self, "planes", (1, self.per_head or 1))

    def visible(self, query: Tensor, key: Tensor, end: int | Tensor) -> Tensor:
        """j // block is one of those drawn for i // block."""
        drawn = self._drawn(query // self.block, end, axes=2)
        return torch.stack([one == key // self.block for one in drawn.unbind(dim=-1)]).any(dim=0)

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """Each block drawn, neighbours joined."""
        rows = query // self.block
        if not on_host(query):
            return self.runs(rows, end, end)
        known, back = rows.unique(return_inverse=True)  # one draw serves a whole block of queries
        runs, shared = self.runs(known, end, end), not self.per_head
        first, stop = (lookup(x if shared else x[None], back, axes=1, shared=shared) for x in (runs.first, runs.stop))
        return Intervals(first, stop)

    def runs(self, rows: Tensor, end: int, length: int | Tensor) -> Intervals:
        """What query blocks ``rows`` (..., n) see before ``end`` when there are ``length`` keys: int or (..., n)."""
        drawn = self._drawn(rows, length, axes=1)
        return Intervals.clipped(drawn * self.block, drawn * self.block + self.block, end)

    def for_head(self, head: int) -> Pattern:
        """The head's draws."""
        return replace(self, per_head=False, head=head) if self.per_head else self

    def _drawn(self, rows: Tensor, length: int | Tensor, axes: int) -> Tensor:
        """The blocks drawn for query blocks ``rows`` of ``length`` keys, ascending, ``FAR`` for none.

        Shapes: rows int64 (..., 1, the last axes) -> (..., heads | 1, the last axes, per_query_block), without
        the axis of heads when it is not per head and rows has none.
        """
        seed = torch.full((), self.seed, dtype=torch.int64, device=rows.device)
        head = rows.new_tensor(self.head)
        if self.per_head:
            head = torch.arange(self.per_head, device=rows.device).view(-1, *(1,) * axes)
        nothing = torch.zeros_like(head + rows)
        candidates = nothing + (rows if self.causal else -(-length // self.block))
        drawn = nothing.new_empty((*nothing.shape, 0))
        for draw in range(self.per_query_block):
            word = philox(seed, nothing + draw // 4, rows, head, nothing)[draw % 4]
            left = candidates - draw
            block = (word * left.clamp(min=0)) >> 32
            for earlier in drawn.unbind(dim=-1):  # ascending: step over each that is taken
                block = block + (block >= earlier)
            block = block.masked_fill(left <= 0, FAR)
            drawn = torch.cat([drawn, block[..., None]], dim=-1).sort(dim=-1).values
        return drawn
