"""Layers to import into a model of your own; they need torch and einops, nothing above them.

from toolkit.layers import MoE, auxiliary_losses

moe = MoE(dim=512, hidden_dim=1024, num_experts=32, top_k=4)
loss = task_loss(moe(x)) + sum(auxiliary_losses(moe).values())
"""

from toolkit.layers.block import Block
from toolkit.layers.experts import Experts
from toolkit.layers.feed_forward import SwiGLU
from toolkit.layers.moe import MoE, auxiliary_losses
from toolkit.layers.rotary import RotaryEmbedding
from toolkit.layers.self_attention import SelfAttention

__all__ = ["Block", "Experts", "MoE", "RotaryEmbedding", "SelfAttention", "SwiGLU", "auxiliary_losses"]
