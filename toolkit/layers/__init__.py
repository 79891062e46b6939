"""Layers to import into a model of your own; they need torch and einops, nothing above them.

>>> import torch
>>> from toolkit.layers import MoE, auxiliary_losses
>>> moe = MoE(dim=64, hidden_dim=128, num_experts=8, top_k=2)
>>> loss = moe(torch.randn(2, 10, 64)).square().mean() + sum(auxiliary_losses(moe).values())
"""

from toolkit.layers.auxiliary_losses import auxiliary_losses
from toolkit.layers.block import Block
from toolkit.layers.depth_stats import DepthStats
from toolkit.layers.depths import MixtureOfDepths
from toolkit.layers.experts import Activation, Experts
from toolkit.layers.feed_forward import FeedForward, SwiGLU
from toolkit.layers.finite_routing import non_finite_logits, require_finite_routing
from toolkit.layers.moe import MoE
from toolkit.layers.packed_sequences import Sequences
from toolkit.layers.rotary import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    NTKScaling,
    ProportionalScaling,
    RotaryEmbedding,
    YaRNScaling,
    parse_scaling,
    to_half_rotated,
    to_interleaved,
)
from toolkit.layers.self_attention import SelfAttention
from toolkit.layers.zero_experts import ZeroComputationExperts

__all__ = [
    "Activation",
    "Block",
    "DepthStats",
    "DynamicNTKScaling",
    "Experts",
    "FeedForward",
    "LinearScaling",
    "Llama3Scaling",
    "LongRoPEScaling",
    "MixtureOfDepths",
    "MoE",
    "NTKScaling",
    "ProportionalScaling",
    "RotaryEmbedding",
    "SelfAttention",
    "Sequences",
    "SwiGLU",
    "YaRNScaling",
    "ZeroComputationExperts",
    "auxiliary_losses",
    "non_finite_logits",
    "parse_scaling",
    "require_finite_routing",
    "to_half_rotated",
    "to_interleaved",
]
