"""The table of tiles: complete, refused by name where it ends, cut to small problems, read without Triton."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch

from toolkit.kernels.families import FAMILIES, next_power_of_two
from toolkit.layers.experts.kernels.config import DTYPES, KERNELS, Tile, fit_tile, shipped_tile


def test_every_tile_can_be_multiplied() -> None:
    for kernel, dtype, family, aligned in itertools.product(KERNELS, DTYPES, FAMILIES, (True, False)):
        tile = shipped_tile(kernel, dtype, family, aligned)
        for side in (tile.block_m, tile.block_n, tile.block_k):
            assert side >= 16 and next_power_of_two(side) == side
        assert tile.num_warps in (4, 8) and 1 <= tile.num_stages <= 4


def test_fp32_stays_below_the_rows_that_sm100_would_round() -> None:
    for kernel, aligned in itertools.product(KERNELS, (True, False)):
        assert shipped_tile(kernel, torch.float32, "sm100", aligned).block_m < 64


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("sideways", torch.float16, "sm90"), "kernel='sideways'"),
        (("outer", torch.float64, "sm90"), "dtype=torch.float64"),
        (("outer", torch.float16, "sm75"), "family='sm75'"),
    ],
)
def test_what_the_table_does_not_have_is_named(arguments: tuple[str, torch.dtype, str], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        shipped_tile(*arguments)


@pytest.mark.parametrize(
    ("sizes", "fitted"),
    [
        ((1, 1, 1), Tile(16, 16, 16, 4, 3)),
        ((17, 500, 500), Tile(32, 128, 64, 4, 3)),
        ((500, 128, 33), Tile(128, 128, 64, 8, 3)),
    ],
)
def test_small_problems_get_small_tiles(sizes: tuple[int, int, int], fitted: Tile) -> None:
    assert fit_tile(Tile(128, 128, 64, 8, 3), *sizes) == fitted


def test_importing_the_table_needs_no_triton() -> None:
    program = "import sys; sys.modules['triton'] = None; import toolkit.layers.experts.kernels.config"
    subprocess.run([sys.executable, "-c", program], check=True)
