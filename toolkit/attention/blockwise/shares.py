"""Who works together: batch rows and heads that see alike, as slices, and how their work is cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, product

import torch
from torch import Tensor

from toolkit.attention.blockwise.blocks import Block, Tiling, blocks, of_plane
from toolkit.attention.plan import Pass

SCORES = 2**19
"""About as many scores are computed at once: they are gone over several times, so they should stay in the cache."""

OPERANDS = 32
"""At most so many query heads, of all batch rows, are in one batched product."""

TILE = 64
"""Columns are visited by this many."""


@dataclass(frozen=True)
class Sizes:
    """Of one attention: ``group`` query heads share each of ``kv_heads`` key heads."""

    batch: int
    kv_heads: int
    group: int

    @classmethod
    def of(cls, q: Tensor, k: Tensor) -> Sizes:
        """From q (batch, heads, q_len, d) and k (batch, kv_heads, kv_len, d)."""
        return cls(q.shape[0], k.shape[1], q.shape[1] // k.shape[1])

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.kv_heads * self.group


@dataclass(frozen=True, eq=False)
class Share:
    """Batch rows and heads for which one pass looks the same.

    They are a slice of each axis, so that their keys are one operand (batch * kv, columns, d) of a batched
    product, their queries (batch * kv, group * rows, d) the other.

    Attributes:
        plane: which batch row's and head's places the pass has for them.
        batch, kv, group: batch rows, key heads, and query heads of each key head's group.
    """

    part: Pass
    plane: tuple[int, int]
    sizes: Sizes
    batch: slice
    kv: slice
    group: slice
    tiling: Tiling

    @property
    def lead(self) -> tuple[int, int, int]:
        """How many batch rows, key heads, and query heads of each."""
        return _len(self.batch), _len(self.kv), _len(self.group)

    def blocks(self) -> tuple[Block, ...]:
        """What it has to do."""
        return blocks(self.part, self.plane, self.tiling)

    def per_head(self, x: Tensor) -> Tensor:
        """x (heads,) as (kv, group, 1, 1)."""
        return x.unflatten(0, (self.sizes.kv_heads, self.sizes.group))[self.kv, self.group, None, None]

    def queries(self, x: Tensor) -> Tensor:
        """Its part of x (batch, heads, q_len, d): (batch, kv, group, q_len, d), a view."""
        return x.unflatten(1, (self.sizes.kv_heads, self.sizes.group))[self.batch, self.kv, self.group]

    def keys(self, x: Tensor) -> Tensor:
        """Its part of x (batch, kv_heads, kv_len, d) in the order of the pass: (batch, kv, n_columns, d)."""
        x = x[self.batch, self.kv]
        return x if self.part.columns is None else x.index_select(2, self.columns().clamp(min=0))

    def add_to_keys(self, x: Tensor, target: Tensor) -> None:
        """Add x (batch * kv, n_columns, d), in the order of the pass, to target (batch, kv_heads, kv_len, d)."""
        columns = self.columns()
        held = columns >= 0
        target[self.batch, self.kv].index_add_(2, columns[held], x[:, held].unflatten(0, self.lead[:2]))

    def columns(self) -> Tensor:
        """(n_columns,) int64: the key column in each place, -1 for none."""
        if self.part.columns is None:
            return torch.arange(self.part.n_columns)
        return of_plane(self.part.columns, self.plane).long()


def shares(part: Pass, sizes: Sizes) -> Iterator[Share]:
    """All that ``part`` is for, in few shares of at most ``OPERANDS`` query heads (or one group)."""
    planes = [x.shape[:2] for x in (part.rows, part.columns, part.first) if x is not None]
    batch_planes, head_planes = (max(axis) for axis in zip(*planes, strict=True))
    heads = range(sizes.heads) if part.heads is None else part.heads
    for plane, alike in enumerate([list(heads)] if head_planes == 1 else [[head] for head in heads]):
        for kv, group in _rectangles(alike, sizes.group):
            cut, operands = tiling(part, sizes)
            # Several batch rows are one axis with their key heads only where these are all of them.
            joined = batch_planes == 1 and _len(kv) == sizes.kv_heads
            batches = _pieces(slice(0, sizes.batch), max(1, operands // (_len(kv) * _len(group))) if joined else 1)
            for batch, kv_piece in product(batches, _pieces(kv, max(1, operands // _len(group)))):
                place = batch.start if batch_planes > 1 else 0, plane
                yield Share(part, place, sizes, batch, kv_piece, group, cut)


def tiling(part: Pass, sizes: Sizes) -> tuple[Tiling, int]:
    """How to cut a pass, and how many query heads to compute at once.

    A block costs a fixed time for its calls, and time for pairs that are visited unseen, as many as its rows
    squared: where rows see much, or there are few heads to share the calls, blocks are higher. By measurement.
    """
    if "width" not in part.cache:
        part.cache["width"] = float((part.stop - part.first).clamp(min=0).sum()) / part.first[..., 0].numel()
    width = part.cache["width"]
    rows = 64 if width < 256 and sizes.batch * sizes.heads >= 4 else 128 if width < 1024 else 256
    rows = max(32, rows // sizes.group)
    operands = SCORES // int(rows * min(width + rows, 512))
    return Tiling(rows, 1024 if width < 1024 else 512, TILE), min(max(2, operands), OPERANDS)


def _rectangles(heads: list[int], group: int) -> list[tuple[slice, slice]]:
    """Query heads as slices of key heads times slices of their groups: few, not always the fewest."""
    found: list[tuple[slice, slice]] = []
    for kv, members in groupby(sorted(heads), lambda head: head // group):
        for run in _runs([head % group for head in members]):
            if found and found[-1] == (slice(found[-1][0].start, kv), run):
                found[-1] = slice(found[-1][0].start, kv + 1), run
            else:
                found.append((slice(kv, kv + 1), run))
    return found


def _runs(numbers: list[int]) -> list[slice]:
    """Ascending numbers as slices."""
    together = groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    return [slice(run[0][1], run[-1][1] + 1) for run in (list(found) for _, found in together)]


def _pieces(whole: slice, size: int) -> list[slice]:
    """A slice in pieces of at most ``size``."""
    return [slice(n, min(n + size, whole.stop)) for n in range(whole.start, whole.stop, size)]


def _len(x: slice) -> int:
    return int(x.stop - x.start)
