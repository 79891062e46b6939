"""FLOPs of layers that are computed again, against torch's counter while they are."""

from __future__ import annotations

import pytest
from compute_cases import decoder_config

from toolkit.compute import cost, measure
from toolkit.layers.recomputation import recompute_layers
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig

LENGTH = 128
"""Whole tiles, so that what a kernel runs of attention is what the full square has."""

SQUARE, CAUSAL = AttentionConfig(heads=2, pattern="Full()"), AttentionConfig(heads=2)
SHARED = {"shared_experts": 1}
SOFT = {"router": "SoftRouter(slots=4)", "causal": False}
CASES = {
    "dense": decoder_config(*[BlockConfig(SQUARE, FeedForwardConfig(64, bias=True))] * 3),
    "gelu": decoder_config(*[BlockConfig(SQUARE, FeedForwardConfig(64, "gelu"))] * 3, tied_head=False),
    "moe": decoder_config(*[BlockConfig(SQUARE, MoEConfig(24, 4, 2))] * 3),
    "again within": decoder_config(*[BlockConfig(SQUARE, MoEConfig(24, 4, 2, recompute=True))] * 3),
    "shared": decoder_config(*[BlockConfig(SQUARE, MoEConfig(24, 4, 2, **SHARED))] * 3),
    "gated": decoder_config(*[BlockConfig(SQUARE, MoEConfig(24, 4, 2, **SHARED, shared_gate=True))] * 3),
    "soft": decoder_config(*[BlockConfig(SQUARE, MoEConfig(24, 4, 1, **SOFT))] * 3),
    "soft, shared": decoder_config(*[BlockConfig(SQUARE, MoEConfig(24, 4, 1, **SOFT, **SHARED))] * 3),
    "noisy": decoder_config(*[BlockConfig(SQUARE, MoEConfig(24, 4, 2, router="TopKRouter(noise=NoisyTopK())"))] * 3),
}


def measured_again(config: DecoderConfig, policy: str | int) -> float:
    """FLOPs a token that a policy adds to a training step, as torch counts them."""
    decoder = Decoder(config)
    plain = measure(decoder, LENGTH)
    recompute_layers(decoder, policy)
    again = measure(decoder, LENGTH)
    assert again.forward_flops == plain.forward_flops
    return again.training_flops - plain.training_flops


@pytest.mark.parametrize("policy", ["full", "selective", 2])
@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_hardware_counts_what_is_computed_again(config: DecoderConfig, policy: str | int) -> None:
    plain, again = cost(config, LENGTH).training_flops, cost(config, LENGTH, policy).training_flops
    assert again["hardware"] - plain["hardware"] == measured_again(config, policy)
    for convention in plain.keys() - {"hardware"}:
        assert again[convention] == plain[convention]


def test_a_layer_that_some_tokens_go_through_is_computed_again_for_those() -> None:
    """Its output is weighed, so that no product is left out; of attention only the visible half is measured."""
    config = decoder_config(*[BlockConfig(CAUSAL, FeedForwardConfig(64), 0.5)] * 3)
    forward = sum(part.needed for layer in Decoder(config).blocks for part in layer.work(LENGTH))
    assert measured_again(config, "full") == 2 * forward / LENGTH


def test_selective_computes_no_product_again() -> None:
    for config in CASES.values():
        assert cost(config, LENGTH, "selective") == cost(config, LENGTH)
