"""Scaled rotary embeddings in whole decoders: over caches, whatever the length does to the angles, and from configs."""

from __future__ import annotations

import pytest
import torch

from toolkit.attention import KeyValueCache
from toolkit.layers import RotaryEmbedding, SelfAttention, YaRNScaling
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig

SCALINGS = [
    None,
    "LinearScaling(factor=4)",
    "NTKScaling(factor=4)",
    "DynamicNTKScaling(factor=4, original_length=8)",
    "YaRNScaling(factor=4, original_length=8)",
    "LongRoPEScaling(short_factors=(1.0, 1.1), long_factors=(2.0, 5.0), original_length=8, factor=4)",
    "Llama3Scaling(factor=4, original_length=8)",
    "ProportionalScaling(fraction=0.5)",
]
every_scaling = pytest.mark.parametrize("scaling", SCALINGS)
DYNAMIC = SCALINGS[3]


def decoder(scaling: str | None, pattern: str = "Causal()", layers: int = 2, **more: object) -> Decoder:
    attention = AttentionConfig(2, 1, 4, pattern, rope_scaling=scaling, **more)
    block = BlockConfig(attention, FeedForwardConfig(16))
    return Decoder(DecoderConfig(30, 8, (block,) * layers)).double().eval()


@every_scaling
@pytest.mark.parametrize("pattern", ["Causal()", "Causal() & (SlidingWindow(5) | Sinks(2))"])
def test_decoding_over_a_cache_is_one_forward_of_the_same_length(scaling: str | None, pattern: str) -> None:
    """Keys that were cached when the context was shorter are turned by the angles of the present one.

    Of one layer, where those depend on the length: what went into a second layer's keys was computed by the old ones.
    """
    layers = 1 if scaling is not None and scaling.startswith(("Dynamic", "LongRoPE")) else 2
    model, ids = decoder(scaling, pattern, layers, rope_interleaved=True), torch.randint(30, (2, 20))
    cache, start = KeyValueCache(), 0
    for stop in (5, 8, 9, 13, 20):
        found = model(ids[:, start:stop], cache).logits[:, -1]
        torch.testing.assert_close(found, model(ids[:, :stop]).logits[:, -1], rtol=1e-9, atol=1e-9)
        start = stop


@every_scaling
def test_a_config_that_was_written_is_read(scaling: str | None) -> None:
    config = decoder(scaling, rope_fraction=1.0, rope_interleaved=True).config
    assert DecoderConfig.from_dict(config.to_dict()) == config
    rope = Decoder(config).blocks[0].attention.rope
    assert str(rope.scaling) == str(scaling)
    assert rope.interleaved


def test_a_longer_context_changes_what_a_short_one_gives_only_where_the_scaling_depends_on_it() -> None:
    ids = torch.randint(30, (1, 20))
    for scaling in SCALINGS:
        model = decoder(scaling)
        same = torch.allclose(model(ids).logits[:, :8], model(ids[:, :8]).logits)
        assert same != model.blocks[0].attention.rope.depends_on_length, scaling


def test_a_scaling_that_depends_on_the_length_refuses_documents_and_padding() -> None:
    ids = torch.randint(30, (1, 6))
    with pytest.raises(ValueError, match="rope.scaling=DynamicNTK.*one that no length changes, with padding"):
        decoder(DYNAMIC)(ids, valid=torch.tensor([[False, True, True, True, True, True]]))
    with pytest.raises(ValueError, match="one that no length changes, with global_projections"):
        decoder(DYNAMIC, "Causal() & (SlidingWindow(2) | GlobalTokens(1))", global_projections=True)


def test_scores_are_times_the_embeddings_multiplier() -> None:
    """DeepSeek's: the same as queries that are as much larger."""
    plain = SelfAttention(8, 2, rope=RotaryEmbedding(4)).double()
    scaled = SelfAttention(8, 2, rope=RotaryEmbedding(4, softmax_scale_multiplier=1.7)).double()
    scaled.load_state_dict(plain.state_dict())
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    found = scaled(x)
    with torch.no_grad():
        plain.qkv_proj[:8] *= 1.7
    torch.testing.assert_close(found, plain(x))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_scaling": "NoScaling()"}, "NoScaling"),
        ({"rope_base": None, "rope_scaling": "LinearScaling(factor=2)"}, "rope_scaling=.*None with rope_base=None"),
        ({"rope_base": None, "rope_fraction": 0.5}, "rope_fraction=0.5"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionConfig(2, **settings)


def test_a_layer_in_depth_refuses_a_scaling_that_depends_on_the_length() -> None:
    with pytest.raises(ValueError, match="rope_scaling=.*one that no length changes, with depth_capacity"):
        BlockConfig(AttentionConfig(2, rope_scaling=DYNAMIC), FeedForwardConfig(8), depth_capacity=0.5)


def test_different_layers_have_different_bases() -> None:
    """Gemma 3: local layers at 10,000, global ones at 1,000,000 and interpolated."""
    local = AttentionConfig(2, pattern="Causal() & SlidingWindow(4)")
    far = AttentionConfig(2, rope_base=1e6, rope_scaling="YaRNScaling(factor=8, original_length=64)")
    model = Decoder(DecoderConfig(30, 8, tuple(BlockConfig(each, FeedForwardConfig(8)) for each in (local, far))))
    ropes = [block.attention.rope for block in model.blocks]
    assert [(rope.base, rope.scaling) for rope in ropes] == [(1e4, None), (1e6, YaRNScaling(8, 64))]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_fraction": 0.1}, "fraction=0.1"),
        ({"rope_fraction": -1.0}, "fraction=-1.0"),
        ({"rope_scaling": "LongRoPEScaling((1, 1, 1), (1, 1, 1), original_length=8, factor=2)"}, "short_factors"),
    ],
)
def test_what_does_not_fit_a_head_is_refused_by_the_config(settings: dict[str, object], message: str) -> None:
    block = BlockConfig(AttentionConfig(2, **settings), FeedForwardConfig(8))
    with pytest.raises(ValueError, match=message):
        DecoderConfig(30, 16, (block,))
