"""The table of tiles: complete, refused by name where it ends, cut to small problems, read without Triton."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch

from toolkit.attention.kernels.config import KERNELS, Tile, fit_tile, padded_head_dim, shipped_tile
from toolkit.kernels.families import FAMILIES, next_power_of_two

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tile_can_be_multiplied(kernel: str, family: str) -> None:
    for dtype, head_dim, dropout in itertools.product(DTYPES, (16, 40, 64, 65, 128, 200, 256), (False, True)):
        tile = shipped_tile(kernel, head_dim, dtype, family, dropout)
        for side in (tile.block_m, tile.block_n):
            assert side >= 16 and next_power_of_two(side) == side
        assert tile.num_warps in (4, 8) and 1 <= tile.num_stages <= 4


def test_dropout_takes_no_larger_tile() -> None:
    for kernel, family in itertools.product(KERNELS, FAMILIES):
        plain, dropout = (shipped_tile(kernel, 128, torch.float16, family, on) for on in (False, True))
        assert dropout.block_m * dropout.block_n <= plain.block_m * plain.block_n


@pytest.mark.parametrize(("head_dim", "padded"), [(16, 16), (17, 32), (80, 128), (128, 128), (256, 256)])
def test_padding(head_dim: int, padded: int) -> None:
    assert padded_head_dim(head_dim) == padded


@pytest.mark.parametrize("head_dim", [0, 8, 15, 257])
def test_head_dims_out_of_range_are_named(head_dim: int) -> None:
    with pytest.raises(ValueError, match=f"head_dim={head_dim}: it must be between 16 and 256"):
        padded_head_dim(head_dim)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("sideways", 64, torch.float16, "sm90"), "kernel='sideways'"),
        (("forward", 64, torch.float64, "sm90"), "dtype=torch.float64"),
        (("forward", 64, torch.float16, "sm75"), "family='sm75'"),
        (("forward", 300, torch.float16, "sm90"), "head_dim=300"),
    ],
)
def test_what_the_table_does_not_have_is_named(arguments: tuple[str, int, torch.dtype, str], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        shipped_tile(*arguments)


@pytest.mark.parametrize(
    ("n_rows", "n_columns", "sides"),
    [(1, 1, (16, 16)), (17, 300, (32, 64)), (5000, 20, (128, 32)), (500, 500, (128, 64))],
)
def test_small_problems_get_small_tiles(n_rows: int, n_columns: int, sides: tuple[int, int]) -> None:
    tile = fit_tile(Tile(128, 64, 8, 3), n_rows, n_columns)
    assert (tile.block_m, tile.block_n) == sides
    assert tile.num_warps == (8 if sides == (128, 64) else 4)


def test_importing_the_table_needs_no_triton() -> None:
    program = (
        "import sys; sys.modules['triton'] = None; import toolkit.attention.kernels.config as c; c.padded_head_dim(16)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
