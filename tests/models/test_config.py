"""Configs: what does not fit is named, and plain data holds all of them."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig, MoEConfig

DENSE = BlockConfig(AttentionConfig(heads=4, kv_heads=2, head_dim=6, rope_base=None), FeedForwardConfig(hidden_dim=20))
MOE = BlockConfig(
    AttentionConfig(heads=2, pattern="Causal() & SlidingWindow(width=8)", rope_base=500.0),
    MoEConfig(hidden_dim=12, num_experts=8, top_k=3, shared_experts=1, balance=0.02, z_loss=0.0),
)


@pytest.mark.parametrize("blocks", [(DENSE,), (MOE,) * 2, (DENSE, MOE, DENSE)], ids=["dense", "moe", "mixed"])
def test_plain_data_and_back_even_through_json(blocks: tuple[BlockConfig, ...]) -> None:
    config = DecoderConfig(vocab_size=50, dim=16, blocks=blocks, tied_head=False, norm_eps=1e-5)
    values = json.loads(json.dumps(config.to_dict()))
    assert values == config.to_dict()
    again = DecoderConfig.from_dict(values)
    assert again == config
    assert hash(again) == hash(config)
    assert [type(block.feed_forward) for block in again.blocks] == [type(block.feed_forward) for block in blocks]


def test_settings_left_out_of_plain_data_take_their_defaults() -> None:
    values = {
        "vocab_size": 50,
        "dim": 16,
        "blocks": [{"attention": {}, "feed_forward": {"hidden_dim": 12, "num_experts": 4, "top_k": 2}}],
    }
    config = DecoderConfig.from_dict(values)
    assert config == DecoderConfig(50, 16, (BlockConfig(AttentionConfig(), MoEConfig(12, 4, 2)),))
    assert (config.tied_head, config.norm_eps) == (True, 1e-6)
    assert config.blocks[0].feed_forward == MoEConfig(12, 4, 2, 0, 0.01, 0.001)


def test_a_setting_that_does_not_exist_is_not_dropped() -> None:
    values = DecoderConfig(50, 16, (DENSE,)).to_dict()
    with pytest.raises(ValueError, match="dropout"):
        DecoderConfig.from_dict({**values, "dropout": 0.1})
    values["blocks"][0]["feed_forward"]["dropout"] = 0.1
    with pytest.raises(ValueError, match="dropout"):
        DecoderConfig.from_dict(values)


def test_plain_data_is_not_changed_by_reading_it() -> None:
    values = DecoderConfig(50, 16, (DENSE, MOE)).to_dict()
    before = json.dumps(values)
    DecoderConfig.from_dict(values)
    assert json.dumps(values) == before


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"heads": 0}, "heads=0"),
        ({"heads": 4, "kv_heads": 3}, "heads=4: it must be a multiple of kv_heads=3"),
        ({"kv_heads": 0}, "kv_heads=0"),
        ({"kv_heads": -1}, "kv_heads=-1"),
        ({"head_dim": 0}, "head_dim=0"),
        ({"rope_base": 0.0}, "rope_base=0"),
        ({"pattern": "Diagonal()"}, r"pattern='Diagonal\(\)'"),
        ({"pattern": "SlidingWindow(0)"}, "pattern=.*width=0"),
    ],
)
def test_attention_settings_that_do_not_fit_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{named}"):
        AttentionConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"hidden_dim": 0}, "hidden_dim=0"),
        ({"num_experts": 0}, "num_experts=0"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_k": 9}, "top_k=9: it must be at most num_experts=8"),
        ({"shared_experts": -1}, "shared_experts=-1"),
        ({"balance": -0.1}, "balance=-0.1"),
        ({"z_loss": -0.1}, "z_loss=-0.1"),
    ],
)
def test_moe_settings_that_do_not_fit_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{named}"):
        MoEConfig(**{"hidden_dim": 4, "num_experts": 8, "top_k": 2, **settings})


def test_a_dense_layer_has_a_width() -> None:
    with pytest.raises(ValueError, match=r"^hidden_dim=0"):
        FeedForwardConfig(hidden_dim=0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"dim": 0}, "dim=0"),
        ({"norm_eps": 0.0}, "norm_eps=0"),
        ({"blocks": ()}, r"blocks=\(\): it must be at least one layer"),
        ({"dim": 15}, "heads=2: it must be a divisor of dim=15"),
    ],
)
def test_decoder_settings_that_do_not_fit_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{named}"):
        DecoderConfig(**{"vocab_size": 50, "dim": 16, "blocks": (DENSE, MOE), **settings})


def test_heads_need_not_divide_dim_when_their_width_is_given() -> None:
    attention = AttentionConfig(heads=3, head_dim=4)
    DecoderConfig(50, 16, (BlockConfig(attention, FeedForwardConfig(8)),))


def test_configs_are_immutable_and_can_be_varied() -> None:
    config = DecoderConfig(50, 16, (DENSE,))
    with pytest.raises(FrozenInstanceError):
        config.dim = 17  # type: ignore[misc]
    assert replace(config, dim=32) == DecoderConfig(50, 32, (DENSE,))
