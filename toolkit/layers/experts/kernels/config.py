"""The shipped tiles: what a program of each product holds, its warps and its pipeline stages, by size and card."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from toolkit.checks import require_choice
from toolkit.kernels.families import FAMILIES, next_power_of_two

KERNELS = ("hidden", "product", "gradient", "outer")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Tile:
    """``block_m`` rows by ``block_n`` columns of a product, summed ``block_k`` at a time, and the warps that do it."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 2
    waves_per_eu: int = 0


# (kernel, bytes of an element): the tile on each family, in the order of FAMILIES. Chosen so that nothing spills
# (experiments/benchmarks/kernel_resources.py); speed is not yet measured. fp32 is multiplied without tensor cores on
# CUDA cards; but on sm100 Triton 3.7 rounds it to TF32 in tiles of 64 rows and more, whatever precision is asked for,
# so tiles stay below that there.
_TABLE: dict[tuple[str, int], tuple[Tile, Tile, Tile, Tile]] = {
    ("hidden", 2): (Tile(128, 64, 64, 8, 3), *(Tile(128, 64, 64, 8, 4),) * 2, Tile(128, 64, 64, 8)),
    ("hidden", 4): (*(Tile(64, 32, 16, 8),) * 2, Tile(32, 32, 16, 8), Tile(64, 32, 16, 4)),
    ("product", 2): (Tile(128, 128, 32, 8, 4), *(Tile(128, 256, 64, 8, 3),) * 2, Tile(128, 128, 64, 8)),
    ("product", 4): (*(Tile(64, 64, 16, 8),) * 2, Tile(32, 64, 16, 8), Tile(64, 64, 16, 4)),
    ("gradient", 2): (*(Tile(128, 64, 64, 8, 3),) * 3, Tile(128, 64, 64, 8)),
    ("gradient", 4): (*(Tile(64, 32, 16, 8),) * 2, Tile(32, 32, 16, 8), Tile(64, 32, 16, 4)),
    ("outer", 2): (Tile(128, 128, 32, 8, 4), *(Tile(128, 128, 64, 8, 3),) * 2, Tile(128, 128, 32, 8)),
    ("outer", 4): (*(Tile(64, 64, 16, 8),) * 2, Tile(32, 64, 16, 8), Tile(64, 64, 16, 4)),
}
_UNALIGNED = Tile(32, 32, 32, 4)


def shipped_tile(kernel: str, dtype: torch.dtype, family: str, aligned: bool = True) -> Tile:
    """The tile of ``kernel`` on a family of cards.

    Rows that are no multiple of 16 bytes, not ``aligned``, are read by the element, each of which takes registers for
    its address: in 16 bits they get a tile of their own.

    Raises:
        ValueError: a kernel, dtype or family the table does not have.
    """
    require_choice("kernel", kernel, KERNELS)
    require_choice("dtype", dtype, DTYPES)
    require_choice("family", family, FAMILIES)
    if not aligned and dtype.itemsize == 2:
        return _UNALIGNED
    return _TABLE[kernel, dtype.itemsize][FAMILIES.index(family)]


def vector(dtype: torch.dtype) -> int:
    """Elements that a thread can read at once, 16 bytes, if they start at a multiple of their number."""
    return 16 // dtype.itemsize


def fit_tile(tile: Tile, m: int, n: int, k: int) -> Tile:
    """``tile`` made no larger than a product (m, k) (k, n) calls for: powers of two, at least 16 (tensor cores)."""
    sides = zip((tile.block_m, tile.block_n, tile.block_k), (m, n, k), strict=True)
    block_m, block_n, block_k = (min(side, max(16, next_power_of_two(size))) for side, size in sides)
    num_warps = tile.num_warps if block_m * block_n == tile.block_m * tile.block_n else min(tile.num_warps, 4)
    return replace(tile, block_m=block_m, block_n=block_n, block_k=block_k, num_warps=num_warps)
