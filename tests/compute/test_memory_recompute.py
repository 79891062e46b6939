"""Bytes that training keeps where layers are computed again, against what is alive after a forward."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from compute_cases import CONFIGS, decoder_config

from toolkit.compute import memory
from toolkit.layers.recomputation import recompute_layers
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.training import training_loss
from toolkit.training.saved_bytes import alive_bytes

BATCH, LENGTH = 8, 128
POLICIES = ("full", "selective", 2)
BLOCK = BlockConfig(AttentionConfig(heads=4, kv_heads=2), MoEConfig(24, 8, 2, shared_experts=1, shared_gate=True))
DEEP = {
    "dense": decoder_config(*[BlockConfig(AttentionConfig(heads=2), FeedForwardConfig(96))] * 6),
    "gelu": decoder_config(*[BlockConfig(AttentionConfig(heads=2), FeedForwardConfig(96, "gelu"))] * 4),
    "moe": decoder_config(*[BLOCK] * 6),
    "soft": decoder_config(
        *[BlockConfig(AttentionConfig(heads=2), MoEConfig(24, 4, 1, router="SoftRouter(slots=4)", causal=False))] * 4
    ),
    "depths": decoder_config(*[replace(BLOCK, depth_capacity=0.5)] * 4),
    "scored": replace(CONFIGS["scored"], blocks=CONFIGS["scored"].blocks * 4),
    "mixed": CONFIGS["mixed"],
}


def left_alive(decoder: Decoder, seq_len: int, precision: str) -> int:
    """Bytes of activations that a training forward leaves until its backward."""
    windows = torch.randint(decoder.config.vocab_size, (BATCH, seq_len + 1))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        return alive_bytes(decoder, lambda: training_loss(decoder, windows)[0])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("config", DEEP.values(), ids=DEEP)
def test_what_is_kept_is_what_is_alive(config: DecoderConfig, policy: str | int, precision: str) -> None:
    decoder = Decoder(config)
    recompute_layers(decoder, policy)
    found = left_alive(decoder, LENGTH, precision)
    planned = memory(config, BATCH, LENGTH, precision, recompute=policy)
    assert planned.activations == pytest.approx(found, rel=0.15)


@pytest.mark.parametrize("config", DEEP.values(), ids=DEEP)
def test_policies_keep_less_the_more_they_compute_again(config: DecoderConfig) -> None:
    kept = {policy: memory(config, BATCH, LENGTH, recompute=policy) for policy in ("none", 2, "selective", "full")}
    assert kept["full"].activations < kept["selective"].activations < kept["none"].activations
    assert kept["full"].activations <= kept[2].activations < kept["none"].activations
    assert kept["none"].recomputed == 0 < kept["selective"].recomputed < kept["full"].recomputed
    assert memory(config, BATCH, LENGTH, recompute=1) == kept["full"]


def test_full_keeps_one_input_a_layer_and_computes_one_layer_at_a_time() -> None:
    """Korthikanti et al. 2022, table 2: s b h numbers a layer (they are fp32 here), the other layers' gone."""
    config = DEEP["dense"]
    short = replace(config, blocks=config.blocks[:2])
    long, few = (memory(each, BATCH, LENGTH, recompute="full") for each in (config, short))
    assert long.activations - few.activations == 4 * 4 * BATCH * LENGTH * config.dim
    assert long.recomputed == few.recomputed
    one = memory(short, BATCH, LENGTH).activations - memory(short, BATCH, LENGTH, recompute="full").activations
    assert 2 * few.recomputed == one


def test_copies_of_weights_are_not_kept_for_what_is_cast_again() -> None:
    config = DEEP["moe"]
    kept = memory(config, BATCH, LENGTH, "bf16-mixed", recompute="full").parameters
    none = memory(config, BATCH, LENGTH, "bf16-mixed").parameters
    layers = sum(each.numel() for each in Decoder(config).blocks.parameters())
    assert none - kept == 2 * layers


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="recompute='most': it must be 'none', 'full'"):
        memory(DEEP["moe"], 1, 8, recompute="most")
