"""Attention's work is counted pair by pair from masks, and the blockwise path runs what it says it runs."""

from __future__ import annotations

import pytest
import torch
from attention_cases import draw
from torch.utils.flop_counter import FlopCounterMode

from toolkit.attention import Causal, Full, Pattern, SlidingWindow, attention, attention_work
from toolkit.work import BACKWARD, Work

PATTERNS = [Full(), Causal(), Causal() & SlidingWindow(20), SlidingWindow(150)]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("seq_len", [1, 130, 300])
def test_needed_is_the_masks_sum_and_square_ignores_it(pattern: Pattern, seq_len: int) -> None:
    work = attention_work(pattern, seq_len, heads=3, head_dim=8, value_dim=5)
    assert work.kind == "scores"
    assert work.needed == 3 * (8 + 5) * int(pattern.mask(seq_len, seq_len).sum())
    assert work.square == 3 * (8 + 5) * seq_len**2
    assert work.needed <= work.computed <= work.square


def test_values_are_as_wide_as_keys_unless_said() -> None:
    assert attention_work(Causal(), 40, 2, 8) == attention_work(Causal(), 40, 2, 8, value_dim=8)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_computed_is_what_torchs_flop_counter_sees_forward_and_backward(pattern: Pattern) -> None:
    batch, heads, seq_len, head_dim = 2, 4, 300, 8
    q, k, v = draw(seq_len, seq_len, batch=batch, heads=heads, kv_heads=2, head_dim=head_dim, dtype=torch.float32)
    work = attention_work(pattern, seq_len, heads, head_dim)
    with FlopCounterMode(display=False) as forward:
        out = attention(q, k, v, pattern, backend="blockwise")
    assert forward.get_total_flops() == 2 * batch * work.computed
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    assert backward.get_total_flops() == 2 * batch * work.computed * work.computed_backward


def test_a_full_pattern_costs_the_same_in_every_convention_forward() -> None:
    work = attention_work(Full(), 200, 2, 8)
    assert work.needed == work.square == work.computed


def test_dense_work_is_one_number_with_two_products_backward() -> None:
    work = Work.dense("head", 12)
    assert (work.kind, work.needed, work.square, work.computed) == ("head", 12, 12, 12)
    assert work.computed_backward == BACKWARD == 2.0
