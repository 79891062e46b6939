"""Which tiles of keys each tile of queries visits, and the other way round: what the kernels loop over."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from toolkit.attention.intervals import ROWS, Intervals, covered, joined, normalise, on_host
from toolkit.attention.plan import Pass


@dataclass(frozen=True, eq=False)
class Runs:
    """For each tile of one side, the runs ``first <= t < stop`` of tiles of the other side that it visits.

    Attributes:
        first, stop: (batch | 1, heads | 1, tiles, slots) int32; runs ascend, empty ones (stop <= first) come last.
        count: (batch | 1, heads | 1, tiles) int32: how many are not empty.
    """

    first: Tensor
    stop: Tensor
    count: Tensor

    @classmethod
    def of(cls, tiles: Intervals, device: torch.device) -> Runs:
        """From sets of tiles."""
        return cls(tiles.first.to(device), tiles.stop.to(device), tiles.counts().to(device))

    def tiles(self) -> int:
        """All tiles visited."""
        return int((self.stop - self.first).clamp(min=0).sum())


@dataclass(frozen=True, eq=False)
class Schedule:
    """The tiles of one pass that hold a visible pair, split by whether they need the element mask.

    Attributes:
        block_m, block_n: rows and columns of a tile.
        full_tiles: column tiles that every row of a row tile sees whole.
        partial_tiles: the others that some row sees some column of.
        columns: column tiles in all.
    """

    block_m: int
    block_n: int
    full_tiles: Intervals
    partial_tiles: Intervals
    columns: int
    device: torch.device

    @cached_property
    def full(self) -> Runs:
        """For each row tile: no mask needed."""
        return Runs.of(self.full_tiles, self.device)

    @cached_property
    def partial(self) -> Runs:
        """For each row tile: mask needed."""
        return Runs.of(self.partial_tiles, self.device)

    @cached_property
    def full_transposed(self) -> Runs:
        """For each column tile, the row tiles to visit without a mask."""
        return Runs.of(self.full_tiles.transposed(self.columns), self.device)

    @cached_property
    def partial_transposed(self) -> Runs:
        """For each column tile, the row tiles to visit with one."""
        return Runs.of(self.partial_tiles.transposed(self.columns), self.device)

    def visited(self) -> int:
        """Tiles visited, of all planes."""
        return self.full.tiles() + self.partial.tiles()


def schedule(part: Pass, block_m: int, block_n: int) -> Schedule:
    """The tiles of block_m rows and block_n columns that ``part`` visits.

    Costs O(n_rows * slots) time and memory, on a GPU also a few grids of all tiles, and is kept with the pass.
    A column tile that sticks out past the last column is never full; rows past the last one, and empty
    places, do not count.
    """
    key = "schedule", block_m, block_n
    if key not in part.cache:
        part.cache[key] = _schedule(part.cache.get("origin", part), block_m, block_n, part.first.device)
    made: Schedule = part.cache[key]
    return made


def _schedule(part: Pass, block_m: int, block_n: int, device: torch.device) -> Schedule:
    tiles, rows = -(-part.n_columns // block_n), max(1, ROWS // block_m) * block_m
    bounds = part.first.split(rows, dim=-2), part.stop.split(rows, dim=-2)
    empty = [None] * len(bounds[0]) if part.rows is None else [x < 0 for x in part.rows.split(rows, dim=-1)]
    cuts = zip(*bounds, empty, strict=True)
    found = [_tiles(first, stop, places, block_m, block_n, tiles) for first, stop, places in cuts]
    full, partial = (joined(parts) for parts in zip(*found, strict=True))
    return Schedule(block_m, block_n, full, partial, tiles, device)


def _tiles(
    first: Tensor, stop: Tensor, empty: Tensor | None, block_m: int, block_n: int, tiles: int
) -> tuple[Intervals, Intervals]:
    """Full and partial tiles of the places that see first:stop (..., n_rows, slots), of which some are ``empty``."""
    height = -(-first.shape[-2] // block_m) * block_m
    begin, end = first // block_n, (stop - 1) // block_n + 1
    end = end.where(stop > first, begin)
    gaps = normalise(-(-first // block_n), stop // block_n).complement(tiles)
    if empty is not None:  # an empty place lacks nothing
        gaps = Intervals(*(x.masked_fill(empty[..., None], tiles) for x in (gaps.first, gaps.stop)))
    seen, lacked = (_by_tile(*runs, height, block_m, tiles) for runs in ((begin, end), (gaps.first, gaps.stop)))
    if on_host(first):
        visited = normalise(*seen)
        full = visited & normalise(*lacked).complement(tiles)  # a tile of empty places lacks nothing
        return full, visited & full.complement(tiles)
    # Elsewhere the runs of a tile cannot be counted, and each of its rows might have its own: a grid is smaller.
    some, not_all = covered(*seen, tiles), covered(*lacked, tiles)
    return Intervals.of_mask(some & ~not_all), Intervals.of_mask(some & not_all)


def _by_tile(first: Tensor, stop: Tensor, height: int, rows: int, empty: int) -> tuple[Tensor, Tensor]:
    """The runs (..., n_rows, slots) of each ``rows`` rows together, of ``height`` rows: (..., tiles, rows * slots)."""
    padding = (0, 0, 0, height - first.shape[-2])
    first, stop = (F.pad(bound, padding, value=empty) for bound in (first, stop))
    first, stop = (rearrange(bound, "... (t r) s -> ... t (r s)", r=rows) for bound in (first, stop))
    return first, stop
