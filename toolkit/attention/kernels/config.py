"""The shipped tiles: rows and columns of a program, its warps and its pipeline stages, by kernel, size and card."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from toolkit.checks import require, require_choice
from toolkit.kernels.families import FAMILIES, next_power_of_two

KERNELS = ("forward", "queries", "keys", "decode")
MAX_HEAD_DIM = 256


@dataclass(frozen=True)
class Tile:
    """``block_m`` query rows by ``block_n`` key columns, and how many warps work on them."""

    block_m: int
    block_n: int
    num_warps: int = 4
    num_stages: int = 2
    waves_per_eu: int = 0


# (kernel, bytes of an element, largest padded head_dim): the tile on each family, in the order of FAMILIES. Chosen
# so that nothing spills up to head_dim 128 (experiments/benchmarks/kernel_resources.py); speed is not yet measured.
# fp32 is multiplied without tensor cores on CUDA cards; on sm100 Triton 3.7 rounds it to TF32 in tiles of 64 rows and
# more, whatever precision is asked for, so tiles stay below that there.
_TABLE: dict[tuple[str, int, int], tuple[Tile, Tile, Tile, Tile]] = {
    ("forward", 2, 64): (Tile(128, 64, 8, 3), Tile(128, 128, 8, 3), Tile(128, 64, 8, 3), Tile(128, 64, 4, 1, 1)),
    ("forward", 2, 128): (Tile(128, 32, 8, 3), Tile(128, 128, 8, 2), Tile(128, 64, 8, 3), Tile(128, 32, 4, 1, 1)),
    ("forward", 2, 256): (Tile(64, 16, 8, 2), Tile(128, 64, 8, 2), Tile(64, 32, 8, 2), Tile(64, 32, 4, 1, 1)),
    ("forward", 4, 64): (Tile(64, 32, 8, 2),) * 2 + (Tile(32, 32, 8, 2), Tile(64, 32, 4, 1, 1)),
    ("forward", 4, 128): (Tile(64, 32, 8, 2), Tile(64, 16, 8, 2), Tile(32, 16, 8, 2), Tile(64, 32, 4, 1, 1)),
    ("forward", 4, 256): (Tile(16, 16, 8, 2),) * 3 + (Tile(32, 16, 4, 1, 1),),
    ("queries", 2, 64): (Tile(64, 64, 4, 3), Tile(128, 64, 8, 2), Tile(128, 64, 8, 2), Tile(64, 64, 4, 1, 1)),
    ("queries", 2, 128): (Tile(64, 32, 8, 2), Tile(128, 64, 8, 2), Tile(128, 64, 8, 2), Tile(64, 32, 4, 1, 1)),
    ("queries", 2, 256): (Tile(32, 32, 8, 2), Tile(64, 32, 8, 2), Tile(64, 32, 8, 1), Tile(32, 32, 4, 1, 1)),
    ("queries", 4, 64): (Tile(32, 32, 8, 1),) * 3 + (Tile(32, 32, 4, 1, 1),),
    ("queries", 4, 128): (Tile(16, 16, 8, 1),) * 3 + (Tile(32, 32, 4, 1, 1),),
    ("queries", 4, 256): (Tile(16, 16, 8, 1),) * 3 + (Tile(16, 16, 4, 1, 1),),
    ("keys", 2, 64): (Tile(32, 64, 4, 2), Tile(64, 64, 8, 1), Tile(64, 64, 8, 2), Tile(64, 64, 4, 1, 1)),
    ("keys", 2, 128): (Tile(64, 64, 8, 2), Tile(32, 64, 8, 2), Tile(64, 64, 8, 1), Tile(32, 64, 4, 1, 1)),
    ("keys", 2, 256): (Tile(16, 32, 8, 1),) * 3 + (Tile(16, 32, 4, 1, 1),),
    ("keys", 4, 64): (Tile(32, 32, 8, 1),) * 3 + (Tile(32, 32, 4, 1, 1),),
    ("keys", 4, 128): (Tile(16, 16, 8, 1),) * 3 + (Tile(32, 32, 4, 1, 1),),
    ("keys", 4, 256): (Tile(16, 16, 8, 1),) * 3 + (Tile(16, 16, 4, 1, 1),),
    ("decode", 2, 64): (Tile(64, 64, 8, 3), Tile(64, 64, 4, 3), Tile(64, 32, 4, 3), Tile(64, 64, 4, 1, 1)),
    ("decode", 2, 128): (Tile(64, 64, 8, 2), Tile(64, 64, 4, 2), Tile(64, 64, 8, 2), Tile(64, 32, 4, 1, 1)),
    ("decode", 2, 256): (Tile(64, 16, 8, 2), Tile(64, 32, 8, 2), Tile(64, 32, 8, 2), Tile(64, 32, 4, 1, 1)),
    ("decode", 4, 64): (Tile(64, 32, 8, 2),) * 3 + (Tile(64, 32, 4, 1, 1),),
    ("decode", 4, 128): (Tile(64, 32, 8, 2), *(Tile(64, 16, 8, 2),) * 2, Tile(64, 32, 4, 1, 1)),
    ("decode", 4, 256): (Tile(64, 16, 8, 2),) * 3 + (Tile(64, 16, 4, 1, 1),),
}
_HALVED_BY_DROPOUT = frozenset(
    {
        ("forward", 2, 64, "sm90"),
        ("forward", 2, 128, "sm80"),
        ("forward", 2, 128, "sm90"),
        ("forward", 2, 128, "sm100"),
        ("forward", 2, 256, "sm90"),
        ("queries", 2, 64, "sm80"),
        ("queries", 2, 128, "sm100"),
        ("queries", 2, 256, "sm90"),
        ("keys", 2, 64, "sm80"),
        ("keys", 2, 64, "sm90"),
        ("keys", 2, 64, "gfx942"),
        ("keys", 2, 128, "sm90"),
        ("decode", 2, 128, "sm90"),
    }
)


def packed_rows(dtype: torch.dtype) -> int:
    """The most query rows that decoding packs into one tile; of fp32 fewer than sm100 would round to TF32."""
    return 64 if dtype.itemsize == 2 else 32


def padded_head_dim(head_dim: int, name: str = "head_dim") -> int:
    """The power of two that a program lays ``head_dim`` channels out in.

    Raises:
        ValueError: ``head_dim`` is below 16 (tensor cores take no less) or above 256.
    """
    require(16 <= head_dim <= MAX_HEAD_DIM, name, head_dim, f"between 16 and {MAX_HEAD_DIM} for the Triton kernels")
    return next_power_of_two(head_dim)


def shipped_tile(kernel: str, head_dim: int, dtype: torch.dtype, family: str, dropout: bool = False) -> Tile:
    """The tile of ``kernel`` for heads of ``head_dim`` (the greater of key's and value's) on a family of cards.

    Dropout takes registers: where they would spill, the side of the tile that the kernel loops over is halved.

    Raises:
        ValueError: a kernel, dtype, family or head_dim the table does not have.
    """
    require_choice("kernel", kernel, KERNELS)
    require_choice("dtype", dtype, (torch.float16, torch.bfloat16, torch.float32))
    require_choice("family", family, FAMILIES)
    rung = max(64, padded_head_dim(head_dim))
    tile = _TABLE[kernel, dtype.itemsize, rung][FAMILIES.index(family)]
    if not (dropout and (kernel, dtype.itemsize, rung, family) in _HALVED_BY_DROPOUT):
        return tile
    if kernel == "keys":
        return replace(tile, block_m=max(16, tile.block_m // 2))
    return replace(tile, block_n=max(16, tile.block_n // 2))


def fit_tile(tile: Tile, n_rows: int, n_columns: int) -> Tile:
    """``tile`` made no larger than ``n_rows`` by ``n_columns`` call for: powers of two, at least 16 (tensor cores)."""
    block_m = min(tile.block_m, max(16, next_power_of_two(n_rows)))
    block_n = min(tile.block_n, max(16, next_power_of_two(n_columns)))
    num_warps = tile.num_warps if block_m * block_n == tile.block_m * tile.block_n else min(tile.num_warps, 4)
    return replace(tile, block_m=block_m, block_n=block_n, num_warps=num_warps)
