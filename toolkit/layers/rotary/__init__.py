"""Rotary position embedding (RoPE), its scalings to longer contexts, and its two layouts of dimensions."""

from toolkit.layers.rotary.embedding import RotaryEmbedding
from toolkit.layers.rotary.layouts import to_half_rotated, to_interleaved
from toolkit.layers.rotary.scaling import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    NTKScaling,
    ProportionalScaling,
    RotaryScaling,
    YaRNScaling,
    parse_scaling,
)

__all__ = [
    "DynamicNTKScaling",
    "LinearScaling",
    "Llama3Scaling",
    "LongRoPEScaling",
    "NTKScaling",
    "ProportionalScaling",
    "RotaryEmbedding",
    "RotaryScaling",
    "YaRNScaling",
    "parse_scaling",
    "to_half_rotated",
    "to_interleaved",
]
