"""Which layers are watched, and what they are called."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from training_cases import DENSE, MOE

from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, MoEConfig
from toolkit.routing import SoftRouter
from toolkit.training.router_layers import depth_layers, moe_layers, routed_layers

DEPTH = BlockConfig(AttentionConfig(heads=2), MoEConfig(12, 4, 2), depth_capacity=0.5)


def module() -> SimpleNamespace:
    return SimpleNamespace(decoder=Decoder(DecoderConfig(vocab_size=256, dim=16, blocks=(MOE, DENSE, DEPTH, MOE))))


INNER = "blocks.2.block.feed_forward"


def test_layers_are_named_by_their_place() -> None:
    watched = module()
    blocks = watched.decoder.blocks
    assert moe_layers(watched) == [
        ("layer0", blocks[0].feed_forward),
        (INNER, blocks[2].feed_forward),
        ("layer3", blocks[3].feed_forward),
    ]
    assert depth_layers(watched) == {"layer2": blocks[2]}


def test_routed_are_those_that_ran_and_sent_tokens_to_experts() -> None:
    watched = module()
    assert routed_layers(watched) == {}
    watched.decoder.blocks[3].feed_forward.router = SoftRouter(16, 4, 2)
    watched.decoder(torch.randint(256, (2, 8)))
    assert list(routed_layers(watched)) == ["layer0", INNER]
    with torch.no_grad():
        watched.decoder.blocks[2].router.predictor_down_bias.fill_(-1e4)
    watched.decoder.eval()(torch.randint(256, (2, 8)))  # no token goes through the layer in depth
    assert list(routed_layers(watched)) == ["layer0"]
