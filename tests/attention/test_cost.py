"""Attention's work is counted pair by pair, and tile by tile, from masks."""

from __future__ import annotations

import pytest
from einops import rearrange
from torch.nn import functional as F

from toolkit.attention import Causal, Documents, Full, Pattern, PerHead, Sinks, SlidingWindow, attention_work
from toolkit.attention.cost import TILE
from toolkit.work import BACKWARD, Work

PATTERNS = [
    Full(),
    Causal(),
    Causal() & SlidingWindow(20),
    SlidingWindow(150),
    Causal() & (SlidingWindow(20) | Sinks(2)),
    PerHead([Causal(), Full(), Causal() & SlidingWindow(9)]),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("seq_len", [1, 130, 300])
def test_needed_is_the_masks_sum_and_square_ignores_it(pattern: Pattern, seq_len: int) -> None:
    work = attention_work(pattern, seq_len, heads=3, head_dim=8, value_dim=5)
    assert work.kind == "scores"
    assert work.needed == (8 + 5) * int(pattern.mask(seq_len, seq_len).expand(1, 3, -1, -1).sum())
    assert work.square == 3 * (8 + 5) * seq_len**2
    assert work.needed <= work.computed


def test_values_are_as_wide_as_keys_unless_said() -> None:
    assert attention_work(Causal(), 40, 2, 8) == attention_work(Causal(), 40, 2, 8, value_dim=8)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("seq_len", [1, 130, 300])
def test_computed_is_the_tiles_that_hold_a_visible_pair(pattern: Pattern, seq_len: int) -> None:
    rows, columns = TILE
    mask = pattern.mask(seq_len, seq_len).expand(1, 3, -1, -1)
    tall, wide = -(-seq_len // rows) * rows, -(-seq_len // columns) * columns
    padded = F.pad(mask, (0, wide - seq_len, 0, tall - seq_len))
    tiles = rearrange(padded, "b h (t r) (u c) -> b h t u (r c)", r=rows, c=columns).any(dim=-1)
    work = attention_work(pattern, seq_len, heads=3, head_dim=8, value_dim=5)
    assert work.computed == (8 + 5) * rows * columns * int(tiles.sum())


def test_the_kernels_split_backward_is_seven_products_for_two() -> None:
    # Amounts to 4.5 times the forward pass in all: scores and dP once for dQ and once for dK and dV.
    work = attention_work(Causal(), 40, 2, 8)
    assert (1 + work.computed_backward) * 2 == 2 + 7


def test_a_pattern_that_differs_by_batch_row_is_counted_over_all_of_them() -> None:
    pattern = Documents.from_lengths([[100, 50], [20, 130]])
    work = attention_work(pattern, 150, heads=3, head_dim=8)
    assert work.needed == 16 * 3 * (100**2 + 50**2 + 20**2 + 130**2)
    assert work.square == 16 * 3 * 2 * 150**2
    assert work.needed <= work.computed


def test_dense_work_is_one_number_with_two_products_backward() -> None:
    work = Work.dense("head", 12)
    assert (work.kind, work.needed, work.square, work.computed) == ("head", 12, 12, 12)
    assert work.computed_backward == BACKWARD == 2.0
