"""From a config's dataclasses to layers, and the initialisation that every model starts from."""

from __future__ import annotations

from torch import nn

from toolkit.attention.selection import parse_sparsity
from toolkit.layers import (
    Block,
    FeedForward,
    MixtureOfDepths,
    MoE,
    SelfAttention,
    ZeroComputationExperts,
)
from toolkit.models.config import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.models.mup import is_output, width_ratio
from toolkit.routing import build_router, parse_adjustment


def build_block(
    config: BlockConfig, dim: int, norm_eps: float, vocab_size: int | None = None
) -> Block | MixtureOfDepths:
    """The layer that ``config`` describes, for tokens of width ``dim``; a router that hashes needs ``vocab_size``."""
    attention = build_attention(config.attention, dim)
    feed_forward = build_feed_forward(config.feed_forward, dim, vocab_size)
    block = Block(dim, attention, feed_forward, norm_eps)
    return block if config.depth_capacity is None else MixtureOfDepths(block, dim, config.depth_capacity)


def build_attention(config: AttentionConfig, dim: int) -> SelfAttention:
    """Self-attention with its rotary embedding and pattern."""
    head_dim = config.head_dim or dim // config.heads
    return SelfAttention(
        dim,
        config.heads,
        config.kv_heads,
        head_dim,
        parse_sparsity(config.pattern),
        config.rope(dim),
        qk_norm=config.qk_norm,
        softcap=config.softcap,
        sinks=config.sinks,
        dropout_p=config.dropout_p,
        global_projections=config.global_projections,
    )


def build_feed_forward(config: FeedForwardConfig | MoEConfig, dim: int, vocab_size: int | None = None) -> nn.Module:
    """A dense feed-forward, or a MoE with the router that its config writes."""
    if isinstance(config, FeedForwardConfig):
        return FeedForward(dim, config.hidden_dim, config.activation, config.bias)
    router = build_router(
        config.router or _default_router(config),
        dim=dim,
        num_experts=config.choices,
        top_k=config.top_k,
        vocab_size=vocab_size,
    )
    free = config.identity_experts, config.zero_experts, config.constant_experts
    return MoE(
        dim,
        config.hidden_dim,
        config.num_experts,
        config.top_k,
        config.shared_experts,
        router,
        activation=config.activation,
        bias=config.bias,
        recompute=config.recompute,
        shared_gate=config.shared_gate,
        zero_experts=ZeroComputationExperts(dim, *free) if any(free) else None,
        capacity_factor=config.capacity_factor,
        drop_policy=config.drop_policy,
        adjust=tuple(parse_adjustment(text) for text in config.adjust),
        causal=config.causal,
    )


def _default_router(config: MoEConfig) -> str:
    """Top-k with the losses whose coefficients are not 0, as text."""
    losses = {"LoadBalancingLoss": config.balance, "RouterZLoss": config.z_loss}
    return f"TopKRouter(losses=[{', '.join(f'{name}({value!r})' for name, value in losses.items() if value)}])"


def initialise(model: nn.Module, config: DecoderConfig) -> None:
    """Set every weight of a decoder, in place.

    1) Matrices start normal with standard deviation fan_in ** -0.5 (LeCun et al. 1998), so that
       activations keep their variance at any width; each layer's ``reset_parameters`` has done so.
    2) The two projections that write to the residual stream, o_proj and down_proj, are divided by
       sqrt(2 * layers), so that its variance does not grow with depth (Radford et al. 2019, GPT-2).
    3) The embedding has standard deviation dim ** -0.5: tied to the head, logits of a normalised
       state then start with variance 1.
    4) Norms start at 1.

    With ``mup_base_dim`` the embedding and the head have standard deviation mup_base_dim ** -0.5 at any width, and
    routers and other maps to a few logits (mup_base_dim / dim) ** 0.5 times theirs: see :mod:`toolkit.models.mup`.
    """
    shrink, ratio = (2 * len(config.blocks)) ** -0.5, width_ratio(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj", "down_proj")):
            parameter.data.mul_(shrink)
        elif name in ("embedding.weight", "head.weight"):
            nn.init.normal_(parameter, std=(config.mup_base_dim or config.dim) ** -0.5)
        elif ratio != 1 and is_output(name):
            parameter.data.mul_(ratio**0.5)
