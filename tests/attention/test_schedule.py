"""The plan visits every visible pair, no rectangle is larger than it must be, and it stays linear."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_cases import CASES, GRIDS, Case, Grid, brute_force
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from toolkit.attention import Causal, Full, Pattern, SlidingWindow, Window
from toolkit.attention.schedule import BLOCK, block_biases, schedule, visited

BLOCKS = st.integers(1, 9)


class LargestTensor(TorchDispatchMode):
    """Notes the most elements any operation returned while it was on."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def plan(pattern: Pattern, grid: Grid, block: int) -> Any:
    return schedule(pattern, grid.q_len, grid.kv_len, grid.q_start, grid.kv_start, block)


@given(CASES, GRIDS, BLOCKS)
def test_every_visible_pair_is_visited_and_full_blocks_hide_nothing(case: Case, grid: Grid, block: int) -> None:
    mask = brute_force(case[1], grid)
    left = mask.clone()
    for part in plan(case[0], grid, block):
        rectangle = mask[part.start : part.stop, part.first : part.last]
        assert part.full == bool(rectangle.all())
        assert mask[part.start : part.stop, part.core_first : part.core_last].all()
        left[part.start : part.stop, part.first : part.last] = False
    assert not left.any()


@given(CASES, GRIDS, BLOCKS)
def test_rectangles_are_in_order_in_bounds_and_as_narrow_as_their_rows_allow(
    case: Case, grid: Grid, block: int
) -> None:
    mask = brute_force(case[1], grid)
    blocks = plan(case[0], grid, block)
    ends = 0
    for part in blocks:
        assert ends <= part.start < part.stop <= grid.q_len
        assert part.stop - part.start <= block
        assert 0 <= part.first < part.last <= grid.kv_len
        ends = part.stop
        rows = mask[part.start : part.stop]
        assert rows[:, part.first].any()
        assert rows[:, part.last - 1].any()
    # A block is left out only where it sees nothing at all.
    covered = torch.zeros(grid.q_len, dtype=torch.bool)
    for part in blocks:
        covered[part.start : part.stop] = True
    assert not mask[~covered].any()


@given(CASES, GRIDS, BLOCKS)
def test_biases_are_zero_where_visible_and_minus_infinity_where_not(case: Case, grid: Grid, block: int) -> None:
    mask = brute_force(case[1], grid)
    where = (grid.q_len, grid.kv_len, grid.q_start, grid.kv_start)
    biases = block_biases(case[0], *where, torch.device("cpu"), torch.float32, block)
    blocks = plan(case[0], grid, block)
    assert len(biases) == len(blocks)
    for part, sides in zip(blocks, biases, strict=True):
        assert (not sides) == part.full
        rectangle = mask[part.start : part.stop, part.first : part.last]
        added = torch.zeros(rectangle.shape)
        for bias in sides:
            assert bias.values.dtype == torch.float32
            added[:, bias.columns] += bias.values
        assert torch.equal(added == 0.0, rectangle)
        assert torch.equal(added == -torch.inf, ~rectangle)


@pytest.mark.parametrize("pattern", [Full(), Causal(), SlidingWindow(40), Causal() & SlidingWindow(200), Window(5, 70)])
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (127, 300), (128, 128), (129, 300), (400, 400)])
def test_visited_counts_the_pairs_of_the_rectangles(pattern: Pattern, q_len: int, kv_len: int) -> None:
    mask = pattern.mask(q_len, kv_len)
    pairs = 0
    for start in range(0, q_len, BLOCK):
        rows = mask[start : start + BLOCK]
        columns = rows.any(dim=0).nonzero().flatten()
        if len(columns):
            pairs += len(rows) * int(columns[-1] - columns[0] + 1)
    assert visited(pattern, q_len, kv_len) == pairs
    assert pairs >= pattern.area(q_len, kv_len)


def test_full_attention_is_visited_exactly_once() -> None:
    assert visited(Full(), 300, 300) == 300**2
    assert all(part.full for part in schedule(Full(), 300, 300))


def test_nothing_is_scheduled_where_nothing_is_seen() -> None:
    assert schedule(Causal(), 10, 10, 0, 50) == ()
    assert visited(Causal(), 10, 10, 0, 50) == 0


def test_a_hundred_thousand_tokens_are_planned_in_linear_size() -> None:
    n, width = 100_003, 512
    pattern = Causal() & SlidingWindow(width)
    with LargestTensor() as largest:
        blocks = schedule(pattern, n, n)
    assert 0 < largest.numel <= n + 1
    assert len(blocks) == -(-n // BLOCK)
    pairs = visited(pattern, n, n)
    assert pattern.area(n, n) <= pairs <= n * (width + BLOCK)


def test_biases_of_a_long_window_are_linear_too() -> None:
    n, width = 8_195, 64
    pattern = Causal() & SlidingWindow(width)
    with LargestTensor() as largest:
        biases = block_biases(pattern, n, n, None, 0, torch.device("cpu"), torch.float32)
    assert 0 < largest.numel <= max(n, BLOCK * (width + BLOCK))
    assert sum(bias.values.numel() for sides in biases for bias in sides) <= n * (width + BLOCK)


def test_biases_of_a_long_causal_sequence_are_linear_as_well() -> None:
    n = 2_048
    biases = block_biases(Causal(), n, n, None, 0, torch.device("cpu"), torch.float32)
    # Only the last BLOCK columns of a causal block hold a masked pair.
    assert sum(bias.values.numel() for sides in biases for bias in sides) <= n * 2 * BLOCK
