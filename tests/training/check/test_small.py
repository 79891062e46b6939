"""The small model is narrower and shallower, and of the same family in all else."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from training_cases import MODEL

from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.training.check import small_model

FACTORS = "short_factors=(1.0, 1.0, 1.0, 1.0), long_factors=(1.0, 2.0, 3.0, 4.0)"
LONG = f"LongRoPEScaling({FACTORS}, factor=4, original_length=16)"
WINDOW = BlockConfig(AttentionConfig(heads=16, kv_heads=4, pattern="Causal() & SlidingWindow(4)"), MoEConfig(200, 8, 2))
FULL = BlockConfig(AttentionConfig(heads=16, kv_heads=8, qk_norm=True), FeedForwardConfig(512))
LARGE = DecoderConfig(300, 128, (WINDOW, WINDOW, FULL, WINDOW, WINDOW, FULL), mup_base_dim=32)


def test_every_kind_of_layer_stays_once_in_its_order() -> None:
    assert [block.feed_forward.__class__ for block in small_model(LARGE, 32).blocks] == [MoEConfig, FeedForwardConfig]
    kept = small_model(LARGE, 128, 4).blocks
    assert kept == (WINDOW, WINDOW, FULL, FULL)
    assert len(small_model(replace(LARGE, blocks=(FULL,) * 9), 32).blocks) == 2
    with pytest.raises(ValueError, match="layers=1: it must be at least 2, the kinds"):
        small_model(LARGE, 32, 1)


def test_only_widths_and_heads_shrink() -> None:
    """A quarter: of the width, of 200 and 512 hidden units (multiples of 8), of 4 and 8 key heads."""
    small = small_model(LARGE, 32)
    assert (small.dim, small.vocab_size, small.mup_base_dim) == (32, 300, 32)
    window, full = small.blocks
    assert window == replace(
        WINDOW,
        attention=replace(WINDOW.attention, heads=4, kv_heads=1, head_dim=8),
        feed_forward=replace(WINDOW.feed_forward, hidden_dim=48),
    )
    assert (full.attention.heads, full.attention.kv_heads, full.attention.head_dim) == (4, 2, 8)
    assert full.feed_forward.hidden_dim == 128
    Decoder(small)(torch.zeros(1, 8, dtype=torch.long))


def test_a_small_model_stays_as_it_is() -> None:
    assert small_model(MODEL, 128, len(MODEL.blocks)) == MODEL


def test_what_is_set_for_a_head_still_fits_it() -> None:
    """A rotary scaling with a factor for each pair of its dims, and a pattern for each of its heads."""
    per_head = "PerHead([Causal(), Causal() & SlidingWindow(4), Causal(), Causal()])"
    attention = AttentionConfig(heads=4, pattern=per_head, rope_scaling=LONG)
    small = small_model(DecoderConfig(64, 32, (BlockConfig(attention, FeedForwardConfig(64)),) * 3), 16)
    assert small.blocks[0].attention.heads == 4
    Decoder(small)(torch.zeros(1, 8, dtype=torch.long))
