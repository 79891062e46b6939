"""Sizes at equal FLOPs: as many FLOPs a token as asked for, by the count that plans use, at the usual proportions."""

from __future__ import annotations

import math
from itertools import count

import pytest

from toolkit.compute import cost
from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig
from toolkit.scaling.attention.equal_flops import TOLERANCE, size_for_flops


def decoder(dim: int, hidden_dim: int) -> DecoderConfig:
    block = BlockConfig(AttentionConfig(dim // 4, pattern="Causal() & SlidingWindow(4)"), FeedForwardConfig(hidden_dim))
    return DecoderConfig(64, dim, (block,) * 2)


def flops(model: DecoderConfig) -> float:
    return cost(model, 32).training_flops["exact"]


def hidden_dim(model: DecoderConfig) -> int:
    layer = model.blocks[0].feed_forward
    assert isinstance(layer, FeedForwardConfig)
    return layer.hidden_dim


@pytest.mark.parametrize(("dim", "hidden"), [(8, 32), (16, 64), (24, 96)])
def test_a_model_of_the_usual_proportions_is_found_again(dim: int, hidden: int) -> None:
    model = decoder(dim, hidden)
    assert size_for_flops(decoder, count(4, 4), 4.0, 32, flops(model)) == model


@pytest.mark.parametrize("target", [3e4, 5e4, 1.1e5])
def test_of_all_sizes_that_meet_the_flops_the_best_proportioned_is_taken(target: float) -> None:
    found = size_for_flops(decoder, count(4, 4), 4.0, 32, target)
    assert abs(flops(found) / target - 1) <= TOLERANCE
    sizes = []
    for dim in range(4, 48, 4):
        # a hidden unit is three columns of dim in each of two layers: 2 FLOPs an entry, backward twice the forward
        costs = {hidden: flops(decoder(dim, 1)) + 6 * 2 * 3 * dim * (hidden - 1) for hidden in range(1, 2000)}
        nearest = min(costs, key=lambda hidden: abs(costs[hidden] - target))
        if abs(costs[nearest] / target - 1) <= TOLERANCE:
            sizes.append((dim, nearest))
    assert (found.dim, hidden_dim(found)) == min(sizes, key=lambda size: abs(math.log(size[1] / size[0] / 4)))


def test_flops_that_no_size_costs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"flops=10: it must be what some width and hidden width cost"):
        size_for_flops(decoder, count(4, 4), 4.0, 32, 10)
    with pytest.raises(ValueError, match=r"cost within 1%.*context=32"):  # between one hidden unit and the next
        between = (flops(decoder(4, 1)) + flops(decoder(4, 2))) / 2
        size_for_flops(decoder, [4], 4.0, 32, between)
