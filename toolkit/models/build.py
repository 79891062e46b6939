"""From a config's dataclasses to layers, and the initialisation that every model starts from."""

from __future__ import annotations

from torch import nn

from toolkit.attention.selection import parse_sparsity
from toolkit.layers import Block, MoE, RotaryEmbedding, SelfAttention, SwiGLU
from toolkit.models.config import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.routing import LoadBalancingLoss, RouterZLoss, TopKRouter


def build_block(config: BlockConfig, dim: int, norm_eps: float) -> Block:
    """The layer that ``config`` describes, for tokens of width ``dim``."""
    return Block(dim, build_attention(config.attention, dim), build_feed_forward(config.feed_forward, dim), norm_eps)


def build_attention(config: AttentionConfig, dim: int) -> SelfAttention:
    """Self-attention with its rotary embedding and pattern."""
    head_dim = config.head_dim or dim // config.heads
    rope = None if config.rope_base is None else RotaryEmbedding(head_dim, config.rope_base)
    return SelfAttention(
        dim,
        config.heads,
        config.kv_heads,
        head_dim,
        parse_sparsity(config.pattern),
        rope,
        qk_norm=config.qk_norm,
        softcap=config.softcap,
        sinks=config.sinks,
        dropout_p=config.dropout_p,
        global_projections=config.global_projections,
    )


def build_feed_forward(config: FeedForwardConfig | MoEConfig, dim: int) -> nn.Module:
    """A dense SwiGLU, or a MoE with a top-k router and the losses whose coefficients are not 0."""
    if isinstance(config, FeedForwardConfig):
        return SwiGLU(dim, config.hidden_dim)
    losses = [
        loss(coefficient)
        for loss, coefficient in ((LoadBalancingLoss, config.balance), (RouterZLoss, config.z_loss))
        if coefficient
    ]
    router = TopKRouter(dim, config.num_experts, config.top_k, losses=losses)
    return MoE(dim, config.hidden_dim, config.num_experts, config.top_k, config.shared_experts, router)


def initialise(model: nn.Module, config: DecoderConfig) -> None:
    """Set every weight of a decoder, in place.

    1) Matrices start normal with standard deviation fan_in ** -0.5 (LeCun et al. 1998), so that
       activations keep their variance at any width; each layer's ``reset_parameters`` has done so.
    2) The two projections that write to the residual stream, o_proj and down_proj, are divided by
       sqrt(2 * layers), so that its variance does not grow with depth (Radford et al. 2019, GPT-2).
    3) The embedding has standard deviation dim ** -0.5: tied to the head, logits of a normalised
       state then start with variance 1.
    4) Norms start at 1.
    """
    shrink = (2 * len(config.blocks)) ** -0.5
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj", "down_proj")):
            parameter.data.mul_(shrink)
        elif name in ("embedding.weight", "head.weight"):
            nn.init.normal_(parameter, std=config.dim**-0.5)
