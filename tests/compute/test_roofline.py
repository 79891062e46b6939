"""Projections: never below either roof, and sparse models pay for the weights that they hold."""

from __future__ import annotations

import pytest

from toolkit.compute import cost
from toolkit.compute.roofline import DEVICES, roofline
from toolkit.models import DecoderConfig
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
    assert max(bounds) <= found.seconds <= sum(bounds)


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
