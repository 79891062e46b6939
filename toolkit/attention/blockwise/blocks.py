"""The work of one plane of a pass, as Python lists: which rows together visit which columns, and what is masked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.attention.plan import Pass
from toolkit.attention.schedule import Runs, schedule

KEPT_BIASES = 64
"""Different biases kept for each plane; more are made again each time, so that memory stays linear."""

Ints = NDArray[np.int32]
Run = tuple[int, int, bool]  # first, stop, whether a mask is needed; in tiles


@dataclass(frozen=True)
class Tiling:
    """How a pass is cut: ``rows`` and at most ``columns`` (a multiple of ``tile``) of them at a time."""

    rows: int
    columns: int
    tile: int


@dataclass(frozen=True, eq=False)
class Edge:
    """Some neighbouring columns of which some rows see only a part.

    Attributes:
        first, stop: (rows, slots) int32: row r sees first <= c < stop, counted from the first of the columns.
        width: how many columns.
        keep: whether biases are kept.
    """

    first: Tensor
    stop: Tensor
    width: int
    keep: bool
    kept: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def bias(self, dtype: torch.dtype) -> Tensor:
        """(rows, width): 0 where visible, -inf where not."""
        if dtype in self.kept:
            return self.kept[dtype]
        column = torch.arange(self.width, dtype=torch.int32)
        seen = ((column >= self.first[..., None]) & (column < self.stop[..., None])).any(dim=1)
        bias = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)
        if self.keep:
            self.kept[dtype] = bias
        return bias


@dataclass(frozen=True, eq=False)
class Chunk:
    """Columns that a block visits at once: ``segments`` side by side, ``width`` in all.

    Attributes:
        edges: the columns, counted in the chunk, that need a mask.
        unseen: (width,) bool: columns that no row of the plane sees; None when there is none. They share a
            tile with visible ones and may hold anything, nan included.
    """

    segments: tuple[slice, ...]
    width: int
    edges: tuple[tuple[slice, Edge], ...]
    unseen: Tensor | None

    def side_by_side(self, x: Tensor) -> Tensor:
        """The chunk's columns of x (..., n_columns, d): (..., width, d), a view when they are neighbours."""
        parts = [x[..., segment, :] for segment in self.segments]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


@dataclass(frozen=True, eq=False)
class Block:
    """``n_rows`` query rows, each of which sees a column, and the columns they visit.

    Attributes:
        rows: which: neighbours, or (n_rows,) int64.
    """

    rows: slice | Tensor
    n_rows: int
    chunks: tuple[Chunk, ...]


def blocks(part: Pass, plane: tuple[int, int], tiling: Tiling) -> tuple[Block, ...]:
    """The blocks of one (batch row, head) plane of ``part``, kept with it.

    A plane index past an axis of size 1 means that axis' only plane. Rows that see no column are in none.
    """
    key = "blockwise", plane, tiling
    if key not in part.cache:
        part.cache[key] = tuple(_Cutter.of(part, plane, tiling).blocks())
    made: tuple[Block, ...] = part.cache[key]
    return made


def of_plane(x: Tensor, plane: tuple[int, int]) -> Tensor:
    """x (batch | 1, heads | 1, ...) at a plane."""
    return x[min(plane[0], x.shape[0] - 1), min(plane[1], x.shape[1] - 1)]


@dataclass(frozen=True, eq=False)
class _Cutter:
    """Cuts one plane: ``rows`` (n,) with -1 for none, ``first`` and ``stop`` (n, slots)."""

    rows: Ints
    first: Ints
    stop: Ints
    n_columns: int
    tiling: Tiling
    runs: list[list[Run]]
    edges: dict[tuple[int, bytes, bytes], Edge] = field(default_factory=dict)

    @classmethod
    def of(cls, part: Pass, plane: tuple[int, int], tiling: Tiling) -> _Cutter:
        first, stop = (of_plane(x, plane).numpy() for x in (part.first, part.stop))
        rows = np.arange(len(first), dtype=np.int32) if part.rows is None else of_plane(part.rows, plane).numpy()
        cut = schedule(part, tiling.rows, tiling.tile)
        runs = [
            sorted(full + partial)
            for full, partial in zip(_listed(cut.full, plane, False), _listed(cut.partial, plane, True), strict=True)
        ]
        return cls(rows, first, stop, part.n_columns, tiling, runs)

    def blocks(self) -> Iterator[Block]:
        """Block after block."""
        held = (self.rows >= 0) & (self.stop > self.first).any(axis=1)
        seen = self._seen()
        for tile, runs in enumerate(self.runs):
            start = tile * self.tiling.rows
            places = start + np.flatnonzero(held[start : start + self.tiling.rows])
            if len(places):
                chunks = tuple(self._chunk(part, places, seen) for part in _cut(runs, self.tiling))
                yield Block(_neighbours(self.rows[places]), len(places), chunks)

    def _seen(self) -> NDArray[np.bool_]:
        """(n_columns,): whether any row sees the column."""
        starts, stops = (np.bincount(x.ravel(), minlength=self.n_columns + 1) for x in (self.first, self.stop))
        return np.cumsum(starts - stops)[: self.n_columns] > 0

    def _chunk(self, runs: list[Run], places: NDArray[np.int64], seen: NDArray[np.bool_]) -> Chunk:
        segments: list[slice] = []
        edges: list[tuple[slice, Edge]] = []
        width = 0
        for first, stop, partial in runs:
            columns = slice(first * self.tiling.tile, min(stop * self.tiling.tile, self.n_columns))
            after = width + columns.stop - columns.start
            if partial:
                edges.append((slice(width, after), self._edge(columns, places)))
            if segments and segments[-1].stop == columns.start:
                segments[-1] = slice(segments[-1].start, columns.stop)
            else:
                segments.append(columns)
            width = after
        unseen = ~np.concatenate([seen[segment] for segment in segments])
        return Chunk(tuple(segments), width, tuple(edges), torch.from_numpy(unseen) if unseen.any() else None)

    def _edge(self, columns: slice, places: NDArray[np.int64]) -> Edge:
        """The same object wherever rows see the same of their columns: nearly everywhere in a window."""
        width = columns.stop - columns.start
        first, stop = (np.clip(x[places] - columns.start, 0, width) for x in (self.first, self.stop))
        used = (stop > first).any(axis=0)
        first, stop = first[:, used], stop[:, used]
        key = width, first.tobytes(), stop.tobytes()
        if key in self.edges:
            return self.edges[key]
        edge = Edge(torch.from_numpy(first), torch.from_numpy(stop), width, keep=len(self.edges) < KEPT_BIASES)
        if edge.keep:
            self.edges[key] = edge
        return edge


def _listed(runs: Runs, plane: tuple[int, int], partial: bool) -> list[list[Run]]:
    """For each tile of rows its runs of tiles of columns."""
    first, stop, count = (of_plane(x, plane).tolist() for x in (runs.first, runs.stop, runs.count))
    return [[(f[n], s[n], partial) for n in range(c)] for f, s, c in zip(first, stop, count, strict=True)]


def _cut(runs: list[Run], tiling: Tiling) -> Iterator[list[Run]]:
    """Runs in portions of at most ``tiling.columns`` columns."""
    most = tiling.columns // tiling.tile
    portion: list[Run] = []
    room = most
    for first, stop, partial in runs:
        start = first
        while start < stop:
            taken = min(stop - start, room)
            portion.append((start, start + taken, partial))
            start, room = start + taken, room - taken
            if not room:
                yield portion
                portion, room = [], most
    if portion:
        yield portion


def _neighbours(rows: Ints) -> slice | Tensor:
    """Rows (n,) as a slice if they are one."""
    if (np.diff(rows) == 1).all():
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return torch.from_numpy(rows.astype(np.int64))
