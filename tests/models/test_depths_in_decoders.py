"""Decoders some of whose layers tokens may pass by: their config, their cost, and what they generate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from toolkit.compute import cost, measure
from toolkit.layers import Block, MixtureOfDepths, auxiliary_losses
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig


def config(*capacities: float | None, pattern: str = "Causal()", moe: bool = False) -> DecoderConfig:
    feed_forward = MoEConfig(24, 4, 2) if moe else FeedForwardConfig(40)
    blocks = tuple(BlockConfig(AttentionConfig(heads=2, pattern=pattern), feed_forward, one) for one in capacities)
    return DecoderConfig(50, 32, blocks)


@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize("seq_len", [40, 33])
@pytest.mark.parametrize("pattern", ["Causal()", "Causal() & SlidingWindow(3)"])
def test_work_is_what_is_measured(seq_len: int, pattern: str, moe: bool) -> None:
    priced = config(None, 0.125, 1.0, pattern=pattern, moe=moe)
    measured, price = measure(Decoder(priced), seq_len, batch_size=2), cost(priced, seq_len)
    assert price.training_flops["exact"] == pytest.approx(measured.training_flops, rel=1e-9)
    assert price.certainty == "exact"


@pytest.mark.parametrize("moe", [False, True])
def test_evaluation_is_counted_as_if_its_predictor_chose_as_many_as_training(moe: bool) -> None:
    priced = config(None, 0.125, moe=moe)
    decoder, forward = Decoder(priced), cost(priced, 40).forward_flops["exact"]
    run = []
    for bias in (-1e4, 1e4):  # nothing, everything
        torch.nn.init.constant_(decoder.blocks[1].router.predictor_down_bias, bias)
        run.append(measure(decoder, 40).forward_flops)
    assert run[0] < forward < run[1]
    assert run[1] == pytest.approx(cost(config(None, 1.0, moe=moe), 40).forward_flops["exact"], rel=1e-9)


def test_plain_data_and_back() -> None:
    mixed = config(None, 0.125)
    assert DecoderConfig.from_dict(mixed.to_dict()) == mixed
    decoder = Decoder(mixed)
    assert [type(block) for block in decoder.blocks] == [Block, MixtureOfDepths]
    assert decoder.blocks[1].router.capacity == 0.125
    for wrong in (0.0, -0.1, 1.1):
        with pytest.raises(ValueError, match=rf"^depth_capacity={wrong}"):
            config(wrong)


@pytest.mark.parametrize("capacities", [(None, 0.4), (0.4, 0.4)])
def test_a_decoder_generates_what_recomputation_gives(capacities: tuple[float | None, ...]) -> None:
    decoder = Decoder(config(*capacities)).double().eval()
    for block in decoder.blocks:
        if isinstance(block, MixtureOfDepths):
            nn.init.constant_(block.router.predictor_down_bias, 0.0)
    prompt = torch.randint(50, (1, 6))
    expected, some = prompt, []
    for _ in range(10):
        expected = torch.cat([expected, decoder(expected).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        some.append(decoder.blocks[1].stats.selected)
    assert torch.equal(decoder.generate(prompt, 10, temperature=0), expected)
    assert 0 < min(some) < max(some) < 1
    with pytest.raises(ValueError, match="1 with a cache"):
        decoder.generate(prompt.expand(2, 6), 1)


def test_a_step_of_training_moves_every_parameter() -> None:
    decoder = Decoder(config(None, 0.25, moe=True))
    loss = decoder(torch.randint(50, (2, 40))).logits.square().mean() + sum(auxiliary_losses(decoder).values())
    loss.backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name
