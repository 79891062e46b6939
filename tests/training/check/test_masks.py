"""Masks that keep what they say pass; attention, a pattern or a router that looks further fails, and is named."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from toolkit.attention import Causal, Full, Pattern, attention
from toolkit.layers import SelfAttention
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.training.check import check_masks, input_support

WINDOW = AttentionConfig(heads=2, pattern="Causal() & SlidingWindow(4)")
CAUSAL = {
    "window": (BlockConfig(WINDOW, FeedForwardConfig(16)),) * 2,
    "moe": (BlockConfig(WINDOW, MoEConfig(16, 4, 2)), BlockConfig(AttentionConfig(heads=2), MoEConfig(16, 4, 2))),
    "moba": (BlockConfig(AttentionConfig(heads=2, pattern="MoBA(block=4, top_k=2)"), FeedForwardConfig(16)),),
    "depths": (BlockConfig(WINDOW, FeedForwardConfig(16), depth_capacity=0.5),) * 2,
}


def decoder(*blocks: BlockConfig) -> Decoder:
    torch.manual_seed(0)
    return Decoder(DecoderConfig(32, 16, blocks))


@pytest.mark.parametrize("blocks", CAUSAL.values(), ids=CAUSAL)
def test_masks_that_keep_what_they_say_pass(blocks: tuple[BlockConfig, ...]) -> None:
    assert check_masks(decoder(*blocks), 20).status == "pass"


def test_a_window_of_two_layers_reaches_as_far_as_both() -> None:
    """2 layers of a window of 4 see 2 x 3 tokens back."""
    back = torch.arange(20)[:, None] - torch.arange(20)
    support = input_support(decoder(*CAUSAL["window"]), 20)
    assert torch.equal(support.rows, torch.arange(20))
    assert torch.equal(support.model, (back >= 0) & (back <= 6))
    for layer in support.layers:
        assert torch.equal(layer, (back >= 0) & (back <= 3))


def test_some_outputs_stand_for_all_of_them() -> None:
    """Those of a few rows, the last among them, are the same rows of all."""
    model = decoder(*CAUSAL["moe"])
    some, every = input_support(model, 30, rows=5), input_support(model, 30)
    assert len(some.rows) == 5
    assert int(some.rows[-1]) == 29
    assert torch.equal(some.model, every.model[some.rows])
    assert all(torch.equal(few, all_[some.rows]) for few, all_ in zip(some.layers, every.layers, strict=True))


def test_a_window_as_wide_as_the_text_was_not_tried() -> None:
    found = check_masks(decoder(*CAUSAL["moe"]), 4)
    assert found.status == "warn"
    assert "the masks of layers 0 hide none of so few" in found.figure


def test_a_leak_that_another_layer_would_allow_is_found() -> None:
    """Above a layer that sees everything before, the model's reach says nothing of the window below it."""
    full = BlockConfig(AttentionConfig(heads=2), FeedForwardConfig(16))
    model = decoder(full, CAUSAL["window"][0])
    assert check_masks(model, 20).status == "pass"
    model.blocks[1].attention.attend = lambda q, k, v, _, **settings: attention(q, k, v, Causal(), **settings)
    found = check_masks(model, 20)
    assert found.status == "fail"
    assert found.figure.startswith("136 times a token that no mask lets through, 0 times a later one")  # 17 x 16 / 2
    assert "of layer 1" in found.figure


@pytest.mark.parametrize(("seen", "later"), [(Causal(), 0), (Full(), 190)], ids=["too-far", "future"])
def test_attention_that_ignores_its_mask_fails(seen: Pattern, later: int) -> None:
    """Beyond the window, and into the future: 20 x 19 / 2 pairs."""
    model = decoder(*CAUSAL["window"])

    def leaking(q: Tensor, k: Tensor, v: Tensor, _: Any, **settings: Any) -> Tensor:
        return attention(q, k, v, seen, **settings)

    for part in model.modules():
        if isinstance(part, SelfAttention):
            part.attend = leaking
    found = check_masks(model, 20)
    assert found.status == "fail"
    assert f", {later} times a later one" in found.figure


def test_a_pattern_or_a_router_that_looks_ahead_fails() -> None:
    assert (
        check_masks(decoder(BlockConfig(AttentionConfig(pattern="Full()"), FeedForwardConfig(16))), 8).status == "fail"
    )
    soft = MoEConfig(16, 4, 1, router="SoftRouter(slots=2)", causal=False)
    found = check_masks(decoder(BlockConfig(AttentionConfig(), soft)), 8)
    assert found.status == "fail"
    assert "28 times a later one" in found.figure  # 8 x 7 / 2: all of them
