"""The small model that is tried in the place of a large one: narrower and shallower, of the same family."""

from __future__ import annotations

from dataclasses import replace

from toolkit.attention import Pattern
from toolkit.attention.selection import parse_sparsity
from toolkit.checks import require, require_positive
from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig

WIDTHS = 8
"""Widths inside a feed-forward are made multiples of it, as half-precision kernels want their rows."""

FEWEST = 2
"""Layers, where the model has as many: one alone hides what only a second one shows."""


def small_model(config: DecoderConfig, dim: int = 128, layers: int | None = None) -> DecoderConfig:
    """``config`` at width ``dim`` and with fewer layers; itself where it is no larger.

    The width: hidden widths and the number of heads shrink with ``dim``, hidden widths to a multiple of 8. A head keeps
    its width, and so its rotary embedding; as many query heads share a key head; a pattern that differs by head keeps
    all its heads. The layers: every kind of layer once, then a second of each, and so on, in their order. Experts,
    top-k, routers, patterns, vocabulary, muP's base and all that has no width stay as they are.

    Args:
        config: the large model.
        dim: width of a token, at most.
        layers: how many are kept; None for every kind of layer once, and two at least. Layers are of one kind if their
            settings are equal.

    Raises:
        ValueError: if a size is not positive, or ``layers`` are fewer than the kinds.

    >>> from toolkit.models import MoEConfig
    >>> block = BlockConfig(AttentionConfig(heads=16, kv_heads=4), MoEConfig(4096, num_experts=64, top_k=8))
    >>> small = small_model(DecoderConfig(50304, 1024, (block,) * 24))
    >>> small.dim, len(small.blocks), small.blocks[0].attention.heads, small.blocks[0].attention.head_dim
    (128, 2, 4, 64)
    >>> small.blocks[0].feed_forward.hidden_dim, small.blocks[0].feed_forward.num_experts
    (512, 64)
    """
    require_positive(dim=dim)
    kinds = len(set(config.blocks))
    wanted = max(kinds, FEWEST) if layers is None else layers
    require(wanted >= kinds, "layers", layers, f"at least {kinds}, the kinds of layers that the model has")
    share = min(1.0, dim / config.dim)
    blocks = tuple(config.blocks[layer] for layer in _kept(config.blocks, wanted))
    if share < 1.0:
        blocks = tuple(_narrow(block, config.dim, share) for block in blocks)
    return replace(config, dim=min(dim, config.dim), blocks=blocks)


def _kept(blocks: tuple[BlockConfig, ...], count: int) -> list[int]:
    """Indices of the layers that stay, ascending."""
    turn = {layer: blocks[:layer].count(block) for layer, block in enumerate(blocks)}
    return sorted(sorted(turn, key=lambda layer: (turn[layer], layer))[:count])


def _narrow(block: BlockConfig, dim: int, share: float) -> BlockConfig:
    hidden = max(WIDTHS, WIDTHS * round(share * block.feed_forward.hidden_dim / WIDTHS))
    hidden = min(hidden, block.feed_forward.hidden_dim)
    attention = replace(
        _fewer_heads(block.attention, share), head_dim=block.attention.head_dim or dim // block.attention.heads
    )
    return replace(block, attention=attention, feed_forward=replace(block.feed_forward, hidden_dim=hidden))


def _fewer_heads(attention: AttentionConfig, share: float) -> AttentionConfig:
    pattern = parse_sparsity(attention.pattern)
    if isinstance(pattern, Pattern) and pattern.planes[1] > 1:
        return attention
    kv_heads = attention.kv_heads or attention.heads
    fewer = max(1, round(share * kv_heads))
    return replace(attention, heads=fewer * (attention.heads // kv_heads), kv_heads=fewer)
