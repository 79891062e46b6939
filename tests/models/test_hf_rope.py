"""Rotary settings in a config.json's words: what is written is read."""

from __future__ import annotations

import pytest

from toolkit.layers.rotary import parse_scaling
from toolkit.models import AttentionConfig
from toolkit.models.hf_rope import WRITTEN, read_rope, write_rope

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64}
TEXTS = [
    None,
    "LinearScaling(factor=2)",
    "DynamicNTKScaling(factor=2, original_length=48)",
    "YaRNScaling(4, 16, beta_fast=8, beta_slow=2, truncate=False, mscale=0.7, mscale_all_dim=1.0)",
    "YaRNScaling(4, 16, attention_factor=1.5)",
    "LongRoPEScaling((1, 1, 1, 1), (1, 2, 3, 4), original_length=16, factor=4)",
    "Llama3Scaling(factor=8, original_length=16, low_freq_factor=1, high_freq_factor=4)",
    "ProportionalScaling(fraction=0.5, factor=2)",
]


@pytest.mark.parametrize("text", TEXTS)
def test_there_and_back(text: str | None) -> None:
    attention = AttentionConfig(4, rope_base=5e5, rope_scaling=text)
    read = read_rope(SIZES | write_rope(attention))
    assert read["rope_base"] == 5e5
    assert (read["rope_scaling"] is None) == (text is None)
    assert text is None or parse_scaling(read["rope_scaling"]) == parse_scaling(text)


def test_every_scaling_that_they_have_is_tried() -> None:
    assert {type(parse_scaling(text)) for text in TEXTS if text} == set(WRITTEN)


def test_what_the_family_does_not_heed_is_refused() -> None:
    with pytest.raises(ValueError, match="partial_rotary_factor=0.5: it must be 1.0"):
        read_rope(SIZES | {"rope_theta": 1e4, "partial_rotary_factor": 0.5})
    with pytest.raises(ValueError, match="rope_interleave=True: it must be False"):
        read_rope(SIZES | {"rope_theta": 1e4, "rope_interleave": True})
