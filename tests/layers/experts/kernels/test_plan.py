"""The tiles of rows, counted on the device, against a loop."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from toolkit.layers.experts.kernels.plan import most_tiles, row_tiles

COUNTS = st.lists(st.integers(0, 70), min_size=1, max_size=9)


@given(counts=COUNTS, unassigned=st.integers(0, 40), block_m=st.sampled_from([1, 16, 32, 64]))
def test_every_row_of_an_expert_is_in_one_tile_of_its_own(counts: list[int], unassigned: int, block_m: int) -> None:
    ends = torch.tensor(counts).cumsum(0, dtype=torch.int32)
    tiles = row_tiles(ends, sum(counts) + unassigned, block_m)
    expected, start = [], 0
    for expert, count in enumerate(counts):
        stop = start + count
        expected += [(expert, first, min(first + block_m, stop)) for first in range(start, stop, block_m)]
        start = stop
    found = [tuple(tile) for tile in tiles.tolist()]
    assert tiles.dtype == torch.int32
    assert found[: len(expected)] == expected
    assert all(stop <= first for _, first, stop in found[len(expected) :])  # surplus
    assert all(0 <= expert < len(counts) for expert, *_ in found)


@given(counts=COUNTS, block_m=st.sampled_from([1, 16, 64]))
def test_there_is_room_for_the_most_tiles_and_little_more(counts: list[int], block_m: int) -> None:
    needed = sum(-(-count // block_m) for count in counts)
    most = most_tiles(sum(counts), len(counts), block_m)
    assert needed <= most <= needed + len(counts)


def test_no_rows_need_no_tiles() -> None:
    assert row_tiles(torch.zeros(3, dtype=torch.int32), 0, 16).shape == (0, 3)
