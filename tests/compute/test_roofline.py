"""Projections: one layer by hand, never below either roof, and sparse models pay for the weights that they hold."""

from __future__ import annotations

import pytest

from toolkit.compute import cost
from toolkit.compute.roofline import DEVICES, roofline
from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig
from toolkit.scaling.plan import Family, ModelShape

SHAPE = ModelShape((Family("dense"), Family("moe", 32, 4)), layers=2)
DENSE, MOE = (SHAPE.decoder(family, 256, 512) for family in SHAPE.families)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", [DENSE, MOE])
def test_a_step_is_no_faster_than_its_products_at_peak_or_its_bytes_at_full_bandwidth(
    config: DecoderConfig, device: str
) -> None:
    found, peak = roofline(config, 4, 256, device), DEVICES[device]
    products = cost(config, 256).training_flops["hardware"] * 4 * 256
    assert sum(part.flops for part in found.parts) == pytest.approx(products)
    moved = sum(part.bytes for part in found.parts)
    bounds = products / peak.flops, moved / peak.bandwidth
    assert found.least_seconds == pytest.approx(max(bounds))
    assert found.least_seconds <= found.seconds <= sum(bounds)


@pytest.mark.parametrize("tied_head", [True, False])
def test_one_layer_by_hand(tied_head: bool) -> None:
    """Width 64, two heads, a SwiGLU of 96, 100 tokens of vocabulary, three sequences of 128 on an H100."""
    block = BlockConfig(AttentionConfig(heads=2), FeedForwardConfig(96))
    found = roofline(DecoderConfig(100, 64, (block,), tied_head=tied_head), 3, 128, "H100")
    tokens, attention, feed_forward, matrix = 3 * 128, 4 * 64 * 64, 3 * 64 * 96, 100 * 64
    parameters = attention + feed_forward + 3 * 64 + matrix * (1 if tied_head else 2)
    kept = 3 * 64 * (4 + 4 + 2)  # of a token: each norm's input and output in fp32, and what products read in bf16
    kept += 2 * (4 * 64 + 64) + 4 * 2 + 2 * 4 * 96 + 4 * 100  # q, k, v, twice the output; log-sum-exp; 4 of 96; logits
    moved = {
        "attention": attention * 8,  # bf16 forward and backward, the gradient in fp32
        "feed_forward": feed_forward * 8,
        "norms": 3 * 64 * 8,
        "head": matrix * 8,
        "embedding": tokens * 64 * 4 + (0 if tied_head else matrix * 4),  # a row of each token, the gradient whole
        "activations": 2 * tokens * kept,
        "optimizer": parameters * (4 * 4 + 3 * 4 + 2),
        "scores": 0,
    }
    multiplied = {"attention": attention, "feed_forward": feed_forward, "head": matrix}
    assert {part.name: part.bytes for part in found.parts} == moved
    for part in found.parts:
        if part.name != "scores":
            assert part.flops == 6 * tokens * multiplied.get(part.name, 0)  # backward is twice the forward
            assert part.seconds == max(part.flops / 989e12, part.bytes / 3.35e12)
    assert found.seconds == sum(part.seconds for part in found.parts)


def test_with_many_tokens_products_rule_and_with_few_the_weights_do() -> None:
    peak = DEVICES["H100"]
    many, few = (roofline(MOE, batch_size, 256, "H100") for batch_size in (4096, 1))
    by_name = [{part.name: part for part in each.parts} for each in (many, few)]
    experts = [parts["experts"] for parts in by_name]
    assert experts[0].seconds == experts[0].flops / peak.flops
    assert experts[1].seconds == experts[1].bytes / peak.bandwidth
    assert experts[0].bytes == experts[1].bytes  # all experts' weights, however many tokens come


def test_equal_flops_are_slower_where_more_weights_are_held() -> None:
    dense, moe = (roofline(config, 1, 256, "A100").seconds for config in (DENSE, MOE))
    assert moe > dense


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ValueError, match="device='TPU': it must be one of 'A100'"):
        roofline(DENSE, 1, 256, "TPU")
