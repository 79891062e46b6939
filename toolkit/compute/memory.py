"""What training or serving a decoder keeps in memory, from its shapes alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from toolkit.checks import require_choice, require_positive
from toolkit.compute.cost import cost, shapes_of
from toolkit.compute.kept import feed_forward_bytes
from toolkit.layers import Block, MixtureOfDepths
from toolkit.models import BlockConfig, DecoderConfig

PRECISIONS = ("32-true", "bf16-mixed")


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        parameters: weights; with ``bf16-mixed`` also the bf16 copies autocast keeps for backward.
        gradients: one fp32 number a parameter.
        optimizer: AdamW's two moments.
        activations: what the backward pass reads of one batch; of a MoE, what its router and its triples take.
        kv_cache: keys and values of one batch of ``seq_len`` tokens when decoding; not in ``training``.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    kv_cache: int

    @property
    def training(self) -> int:
        """All that training one batch keeps at its peak."""
        return self.parameters + self.gradients + self.optimizer + self.activations


def memory(config: DecoderConfig, batch_size: int, seq_len: int, precision: str = "32-true") -> Memory:
    """Bytes that training (AdamW, no sharding, no recomputation) and decoding ``config`` keep.

    Args:
        config: the decoder.
        batch_size: sequences on one device at once.
        seq_len: tokens in each.
        precision: ``"32-true"``, or ``"bf16-mixed"``: fp32 weights, products in bf16 under autocast.

    Raises:
        ValueError: if a size is not positive or the precision unknown.

    Source: the counting of Korthikanti et al. 2022 (arXiv 2205.05198), section 4, for these layers.
    """
    require_positive(batch_size=batch_size, seq_len=seq_len)
    require_choice("precision", precision, PRECISIONS)
    low = 2 if precision == "bf16-mixed" else 4
    tokens = batch_size * seq_len
    count = cost(config, seq_len).total_parameters
    layers = zip(config.blocks, shapes_of(config).blocks, strict=True)
    activations = sum(_layer_bytes(block, layer, config.dim, low, batch_size, seq_len) for block, layer in layers)
    # log-probabilities of the loss are fp32
    activations += tokens * (_norm_bytes(config.dim, low) + 4 * config.vocab_size)
    return Memory(
        parameters=count * (4 if low == 4 else 6),
        gradients=4 * count,
        optimizer=8 * count,
        activations=activations,
        kv_cache=round(tokens * low * sum(_share(block) * _kv_width(block, config.dim) for block in config.blocks)),
    )


def _layer_bytes(block: BlockConfig, layer: nn.Module, dim: int, low: int, batch_size: int, seq_len: int) -> int:
    """Bytes that one layer keeps; of a layer that only some tokens go through, also their way in and out."""
    if isinstance(layer, Block):
        return _block_bytes(block, layer, dim, low, batch_size, seq_len)
    assert isinstance(layer, MixtureOfDepths)
    chosen, width = layer.router.count(seq_len), max(8, dim // 8)
    kept = _block_bytes(block, layer.block, dim, low, batch_size, chosen)
    kept += batch_size * chosen * (3 * 4 * dim + 8 * dim)  # before, after, their difference; int64 indices
    # inside the predictor: pre-activation and activation, in fp32
    return kept + batch_size * seq_len * 4 * (2 * width + 3)


def _share(block: BlockConfig) -> float:
    """Of a sequence's tokens, those that the layer computes."""
    return 1.0 if block.depth_capacity is None else block.depth_capacity


def _block_bytes(block: BlockConfig, layer: Block, dim: int, low: int, batch_size: int, seq_len: int) -> int:
    """Bytes that one layer keeps: its two norms, its attention, its feed-forward."""
    heads, head_dim = block.attention.heads, block.attention.head_dim or dim // block.attention.heads
    queries = heads * head_dim
    # q, k, v after rotation, the output as attention gives it and as o_proj reads it, and the log-sum-exp. What
    # a choice by content gathers on its way is not counted.
    attention = low * (3 * queries + _kv_width(block, dim)) + 4 * heads
    if block.attention.qk_norm:  # what it normalises, as a view of all that was projected, and what that gives
        attention += low * (queries + _kv_width(block, dim)) + 4 * (queries + _kv_width(block, dim) // 2)
    kept = batch_size * seq_len * (2 * _norm_bytes(dim, low) + attention)
    return kept + feed_forward_bytes(layer.feed_forward, low, batch_size, seq_len)


def _norm_bytes(dim: int, low: int) -> int:
    """The residual stream and its normalised form in fp32, and what the next product reads."""
    return (4 + 4 + low) * dim


def _kv_width(block: BlockConfig, dim: int) -> int:
    attention = block.attention
    return 2 * attention.key_heads * (attention.head_dim or dim // attention.heads)
