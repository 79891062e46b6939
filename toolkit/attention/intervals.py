"""Sets of integers as sorted runs, a row at a time: the algebra under every pattern and every schedule.

Keys that a query sees, tiles that a block of queries visits: both are a few runs ``first <= x < stop``, so
that intersection, union and complement cost the number of runs, never the number of pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

FAR = 2**31 - 1
"""Where empty runs stand: past every position, so that they sort last."""

ROWS = 2**16
"""Rows worked on at once where it is up to us: what they need on the way stays in the processor's cache."""

HOST = ("cpu",)
"""Devices whose values may be looked at without waiting for them."""


def on_host(x: Tensor) -> bool:
    """Whether sizes may be chosen by looking at values; elsewhere bounds that always suffice are used."""
    return x.device.type in HOST


@dataclass(frozen=True, eq=False)
class Intervals:
    """For each row a set of integers, as runs ``first <= x < stop``.

    Attributes:
        first, stop: (..., rows, slots) int32: the runs of a row are ascending, disjoint and not adjacent;
            empty ones have first = stop = ``FAR`` and come last.

    Every operation keeps to this form. On the CPU the slots are trimmed to as many as the fullest row
    needs; on a GPU that would wait for the device, so they stay at the number that always suffices.
    """

    first: Tensor
    stop: Tensor

    @classmethod
    def between(cls, first: Tensor, stop: Tensor, end: int, begin: int = 0) -> Intervals:
        """One run for each row: first, stop (..., rows) integers of any size, clipped to ``begin:end``."""
        return cls.clipped(first[..., None], stop[..., None], end, begin)

    @classmethod
    def clipped(cls, first: Tensor, stop: Tensor, end: int, begin: int = 0) -> Intervals:
        """Any runs (..., rows, slots) of integers of any size, clipped to ``begin:end``."""
        return normalise(first.clamp(begin, end).to(torch.int32), stop.clamp(begin, end).to(torch.int32))

    @classmethod
    def of_mask(cls, held: Tensor) -> Intervals:
        """The places that are true in each row: bool (..., rows, columns)."""
        apart = torch.zeros_like(held[..., :1])
        starts = held & ~torch.cat([apart, held[..., :-1]], dim=-1)
        ends = held & ~torch.cat([held[..., 1:], apart], dim=-1)
        place = torch.arange(held.shape[-1], dtype=torch.int32, device=held.device).expand(held.shape)
        most = held.shape[-1] // 2 + 1
        if on_host(held) and held.numel():
            most = max(1, int(starts.sum(dim=-1).max()))
        first = place.masked_fill(~starts, FAR).sort(dim=-1).values[..., :most]
        stop = (place + 1).masked_fill(~ends, FAR).sort(dim=-1).values[..., :most]
        return cls(first.contiguous(), stop.contiguous())

    @property
    def slots(self) -> int:
        """Runs a row may have."""
        return self.first.shape[-1]

    def __and__(self, other: Intervals) -> Intervals:
        """What both sets hold: leading axes broadcast."""
        first = torch.maximum(self.first[..., :, None], other.first[..., None, :])
        stop = torch.minimum(self.stop[..., :, None], other.stop[..., None, :])
        # Two sets of m and n runs share at most m + n - 1: each run but one ends where one of theirs ends.
        return normalise(first.flatten(-2), stop.flatten(-2), self.slots + other.slots - 1)

    def __or__(self, other: Intervals) -> Intervals:
        """What either set holds: leading axes broadcast."""
        lead = torch.broadcast_shapes(self.first.shape[:-1], other.first.shape[:-1])

        def both(x: Tensor, y: Tensor) -> Tensor:
            return torch.cat([x.expand(*lead, -1), y.expand(*lead, -1)], dim=-1)

        return normalise(both(self.first, other.first), both(self.stop, other.stop))

    def complement(self, end: int, begin: int = 0) -> Intervals:
        """What of ``begin:end`` is not in the set."""
        edge = self.first.new_empty((*self.first.shape[:-1], 1))
        first = torch.cat([edge.fill_(begin), self.stop.clamp(begin, end)], dim=-1)
        stop = torch.cat([self.first.clamp(begin, end), torch.full_like(edge, end)], dim=-1)
        return normalise(first, stop)

    def sizes(self) -> Tensor:
        """How many integers each row holds: (..., rows) int64."""
        return (self.stop - self.first).sum(dim=-1)  # torch sums int32 in int64

    def counts(self) -> Tensor:
        """How many runs of each row are not empty: (..., rows) int32."""
        return (self.stop > self.first).sum(dim=-1, dtype=torch.int32)

    def transposed(self, columns: int) -> Intervals:
        """The rows that hold each of ``columns`` integers: (..., rows, slots) -> (..., columns, slots).

        On the CPU in memory of the runs that result; on a GPU over a dense grid of rows x columns, which
        needs no answer from the device.
        """
        return _transposed_runs(self, columns) if on_host(self.first) else transposed_grid(self, columns)


def joined(parts: Sequence[Intervals], dim: int = -2) -> Intervals:
    """The rows (or another axis) of ``parts``, one after the other, with as many slots as the most that one has."""
    slots = max(part.slots for part in parts)

    def rows(bounds: list[Tensor]) -> Tensor:
        return torch.cat([F.pad(bound, (0, slots - bound.shape[-1]), value=FAR) for bound in bounds], dim=dim)

    return Intervals(rows([part.first for part in parts]), rows([part.stop for part in parts]))


def normalise(first: Tensor, stop: Tensor, slots: int | None = None) -> Intervals:
    """Any runs (..., slots) as :class:`Intervals`: sorted, merged where they touch, empty ones last.

    ``slots`` is a number of runs known to suffice.
    """
    empty = stop <= first
    if first.shape[-1] == 1:
        return Intervals(first.masked_fill(empty, FAR), stop.masked_fill(empty, FAR))
    first, order = first.masked_fill(empty, FAR).sort(dim=-1)
    reach = stop.masked_fill(empty, -1).gather(-1, order).cummax(dim=-1).values
    # A run starts where no earlier one reaches, and the one before it ends there.
    starts = first[..., 1:] > reach[..., :-1]
    first = torch.cat([first[..., :1], first[..., 1:].masked_fill(~starts, FAR)], dim=-1).sort(dim=-1).values
    last = reach[..., -1:].masked_fill(reach[..., -1:] < 0, FAR)
    # The starts of empty runs (FAR) end the last real run once more than they should: keep its end once.
    ends = starts & (reach[..., :-1] < last) & (reach[..., :-1] >= 0)
    stop = torch.cat([reach[..., :-1].masked_fill(~ends, FAR), last], dim=-1).sort(dim=-1).values
    if on_host(first) and first.numel():
        slots = max(1, int((first < FAR).sum(dim=-1).max()))
    return Intervals(first[..., :slots].contiguous(), stop[..., :slots].contiguous())


def _transposed_runs(rows: Intervals, columns: int) -> Intervals:
    """A column's run starts at the rows that hold it when the row before does not, and ends alike."""
    lead, height = rows.first.shape[:-2], rows.first.shape[-2]
    nothing = torch.full_like(rows.first[..., :1, :], FAR)

    def shifted(x: Tensor, back: bool) -> Tensor:
        return torch.cat([nothing, x[..., :-1, :]] if back else [x[..., 1:, :], nothing], dim=-2)

    before = Intervals(shifted(rows.first, True), shifted(rows.stop, True))
    after = Intervals(shifted(rows.first, False), shifted(rows.stop, False))
    starts = _cells(rows & before.complement(columns), columns)
    ends = _cells(rows & after.complement(columns), columns)
    # Both in order of column and then row, so the n-th start belongs to the n-th end.
    column, first = starts // height, starts % height
    counts = torch.bincount(column, minlength=lead.numel() * columns)
    slot = torch.arange(len(column)) - (counts.cumsum(0) - counts)[column]
    shape = lead.numel() * columns, max(1, int(counts.max()))
    result = [torch.full(shape, FAR, dtype=torch.int32) for _ in range(2)]
    result[0][column, slot] = first.to(torch.int32)
    result[1][column, slot] = (ends % height + 1).to(torch.int32)
    return Intervals(*(x.view(*lead, columns, -1) for x in result))


def _cells(rows: Intervals, columns: int) -> Tensor:
    """Every (plane, column, row) that the rows hold, as one sorted number each."""
    height = rows.first.shape[-2]
    first, length = rows.first.flatten().long(), (rows.stop - rows.first).flatten().long()
    run = torch.repeat_interleave(length)  # which run each cell is of
    offset = torch.arange(len(run)) - (length.cumsum(0) - length)[run]
    line = run // rows.slots  # plane * height + row
    plane, row = line // height, line % height
    return ((plane * columns + first[run] + offset) * height + row).sort().values


def transposed_grid(rows: Intervals, columns: int) -> Intervals:
    """The same as ``rows.transposed(columns)``, over a grid of every row and column."""
    return Intervals.of_mask(covered(rows.first, rows.stop, columns).mT)


def covered(first: Tensor, stop: Tensor, columns: int) -> Tensor:
    """Which of ``columns`` integers any runs hold, in any order, overlapping or not.

    Shapes: first, stop (..., rows, slots) integers of 0 or more, an empty run with stop = first or both past
    the last column -> bool (..., rows, columns).
    """
    edges = torch.zeros((*first.shape[:-1], columns + 1), dtype=torch.int32, device=first.device)
    for bound, sign in ((first, 1), (stop, -1)):
        at = bound.clamp(max=columns).long()
        edges.scatter_add_(-1, at, torch.full_like(at, sign, dtype=torch.int32))
    return edges.cumsum(dim=-1)[..., :columns] > 0
