"""Patterns given as tensors: which blocks of keys a block of queries sees, or which stretch of keys a query sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from toolkit.attention.intervals import Intervals
from toolkit.attention.patterns.lookup import lookup
from toolkit.attention.patterns.pattern import Pattern
from toolkit.checks import require


@dataclass(frozen=True, eq=False, repr=False)
class BlockMask(Pattern):
    """Query i sees key j when ``blocks[..., i // block, j // block]``.

    Args:
        blocks: bool (batch | 1, heads | 1, q_blocks, kv_blocks), or with fewer leading axes.
        block: tokens in a block, of queries as of keys.

    Blocks count from position 0, so the mask must reach to the last query and the last key. It may reach
    further: the queries and keys of one call may be a part of a sequence (decoding with keys still to come,
    a step of ring attention), whose pairs the mask says just as well.

    Raises:
        ValueError: if ``blocks`` is no bool tensor of 2 to 4 axes or ``block`` no positive integer; later, if
            the queries or keys end after the blocks do.
    """

    blocks: Tensor
    block: int

    def __post_init__(self) -> None:
        fits = isinstance(self.blocks, Tensor) and self.blocks.dtype == torch.bool and 2 <= self.blocks.ndim <= 4
        right = "a bool tensor (batch | 1, heads | 1, q_blocks, kv_blocks), leading axes optional"
        require(fits and self.blocks.numel() > 0, "blocks", _shown(self.blocks), right)
        require(isinstance(self.block, int) and self.block > 0, "block", self.block, "a positive integer")
        object.__setattr__(self, "planes", (1, 1, *self.blocks.shape[:-2])[-2:])
        object.__setattr__(self, "device", self.blocks.device)

    def visible(self, query: Tensor, key: Tensor, end: int) -> Tensor:
        """blocks[..., i // block, j // block]."""
        return lookup(self._planar, query // self.block, key // self.block, axes=2, shared=self.blocks.ndim == 2)

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """The runs of blocks in the query's row: found once for each block of queries."""
        runs, row, shared = Intervals.of_mask(self._planar), query // self.block, self.blocks.ndim == 2
        first, stop = (lookup(x.long() * self.block, row, axes=1, shared=shared) for x in (runs.first, runs.stop))
        return Intervals.clipped(first, stop, end)

    @property
    def _planar(self) -> Tensor:
        """(batch | 1, heads | 1, q_blocks, kv_blocks), or (q_blocks, kv_blocks) as it was given."""
        return self.blocks[None] if self.blocks.ndim == 3 else self.blocks

    def check(self, q_end: int, end: int) -> None:
        """The blocks must reach to the last query and key."""
        least = tuple(-(-length // self.block) for length in (q_end, end))
        fits = all(size >= needed for size, needed in zip(self.blocks.shape[-2:], least, strict=True))
        right = f"at least {least} with block={self.block}, for queries up to {q_end} and keys up to {end}"
        require(fits, "blocks (q_blocks, kv_blocks)", tuple(self.blocks.shape[-2:]), right)

    def for_head(self, head: int) -> Pattern:
        """The head's plane."""
        return self if self.planes[1] == 1 else BlockMask(self._planar[:, head : head + 1], self.block)


@dataclass(frozen=True, eq=False, repr=False)
class KeyRanges(Pattern):
    """Query i sees key j when first[..., i] <= j < stop[..., i].

    Args:
        first, stop: integers (q_len,), (batch | 1, heads | 1, q_len) or, for several stretches of keys that
            a query sees, in any order, (batch | 1, heads | 1, q_len, runs). Entry i is for the query at
            position i, so with ``q_start`` given the tensors begin before the first query. An empty stretch
            has stop <= first.

    Raises:
        ValueError: if the two are no integer tensors of one such shape; later, if the queries end after them.
    """

    first: Tensor
    stop: Tensor

    def __post_init__(self) -> None:
        right = "an integer tensor (q_len,), (batch | 1, heads | 1, q_len) or (batch | 1, heads | 1, q_len, runs)"
        for name, bound in (("first", self.first), ("stop", self.stop)):
            fits = isinstance(bound, Tensor) and not bound.is_floating_point() and bound.dtype != torch.bool
            require(fits and bound.ndim in (1, 3, 4) and bound.numel() > 0, name, _shown(bound), right)
        alike = self.stop.shape == self.first.shape and self.stop.device == self.first.device
        require(alike, "stop", _shown(self.stop), f"as first, {_shown(self.first)}")
        object.__setattr__(self, "planes", (1, 1) if self.first.ndim == 1 else tuple(self.first.shape[:2]))
        object.__setattr__(self, "device", self.first.device)

    def visible(self, query: Tensor, key: Tensor, end: int) -> Tensor:
        """first[..., i] <= j < stop[..., i], in one of the runs."""
        first, stop = self._bounds(query[..., 0])
        runs = zip(first.unbind(dim=-1), stop.unbind(dim=-1), strict=True)
        return torch.stack([(key >= low[..., None]) & (key < high[..., None]) for low, high in runs]).any(dim=0)

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """The stretches themselves."""
        return Intervals.clipped(*self._bounds(query), end)

    def _bounds(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """query (..., n) -> two of (..., n, runs) int64."""
        first, stop = (x if x.ndim == 4 else x[..., None] for x in (self.first, self.stop))
        first, stop = (lookup(x, query, axes=1, shared=x.ndim == 2).long() for x in (first, stop))
        return first, stop

    def check(self, q_end: int, end: int) -> None:
        """There must be a range for every query."""
        length = self.first.shape[min(2, self.first.ndim - 1)]
        require(length >= q_end, "first and stop", f"for {length} queries", f"for at least {q_end}, one a position")

    def for_head(self, head: int) -> Pattern:
        """The head's plane."""
        if self.planes[1] == 1:
            return self
        return KeyRanges(self.first[:, head : head + 1], self.stop[:, head : head + 1])


def _shown(x: Any) -> Any:
    """A tensor by what it can be wrong in."""
    return f"{x.dtype} {tuple(x.shape)} on {x.device}" if isinstance(x, Tensor) else x
