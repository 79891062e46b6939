"""Bytes that autograd keeps of the layers that stand in a feed-forward's place, of one batch."""

from __future__ import annotations

from torch import nn

from toolkit.layers import FeedForward, MoE
from toolkit.routing import SoftRouter

KEPT = {"swiglu": 4, "clamped_swiglu": 7, "gelu": 2, "relu2": 2}
"""Tensors of hidden_dim that autograd keeps of a dense feed-forward, its pre-activations included."""

TRIPLE = 4 + 4 * 8
"""Of each triple: its gate in fp32, its expert, its token, and the order and tokens of sorted rows in int64."""


def feed_forward_bytes(layer: nn.Module, low: int, batch_size: int, seq_len: int) -> int:
    """Bytes kept of ``layer``, a ``FeedForward`` or a ``MoE``, besides its input as products read it once.

    Args:
        layer: built on any device; only its shapes are read.
        low: bytes of a number that a product reads.
        batch_size: sequences.
        seq_len: tokens in each.
    """
    tokens = batch_size * seq_len
    if isinstance(layer, FeedForward):
        return tokens * low * KEPT[layer.activation.name] * layer.down_proj.shape[1]
    assert isinstance(layer, MoE)
    routing = _soft_bytes if isinstance(layer.router, SoftRouter) else _routed_bytes
    kept = routing(layer, low, batch_size, seq_len)
    if layer.shared is not None:
        kept += feed_forward_bytes(layer.shared, low, batch_size, seq_len) + tokens * _cast(layer, low)
    if layer.shared_gate is not None:  # the gate, and what it multiplies
        kept += tokens * low * (1 + _sizes(layer)[1])
    return kept


def _routed_bytes(moe: MoE, low: int, batch_size: int, seq_len: int) -> int:
    """Scores in fp32, the triples, and of each the pre-activations of its expert, whether or not it has one."""
    tokens, triples = batch_size * seq_len, moe.triples(batch_size, seq_len)
    kept = triples * TRIPLE + tokens * 4 * moe.router.kept_numbers()  # type: ignore[operator]  # a router is any module
    if moe.zero_experts is not None:  # the tokens and columns of gates in int64, and the gates
        kept += triples * 2 * 8 + tokens * 4 * moe.choices
        kept += tokens * _cast(moe, low) if moe.zero_experts.n_constant else 0
    return kept + (0 if moe.experts.recompute else triples * low * _sizes(moe)[0])


def _soft_bytes(moe: MoE, low: int, batch_size: int, seq_len: int) -> int:
    """Normalised tokens, dispatch and combine weights in fp32 and as products read them; slots before and after."""
    assert isinstance(moe.router, SoftRouter)
    tokens, (width, dim) = batch_size * seq_len, _sizes(moe)
    slots = moe.router.rows(seq_len)
    weights = 2 * slots * (4 if low == 4 else 4 + low)
    before = 0 if moe.experts.recompute else width
    return tokens * (4 * dim + weights) + batch_size * slots * (low * (2 * dim + before) + TRIPLE)


def _sizes(moe: MoE) -> tuple[int, int]:
    """(width, dim): pre-activations of a row, and its inputs."""
    _, width, dim = moe.experts.weights.first.shape
    return width, dim


def _cast(moe: MoE, low: int) -> int:
    """Bytes a token of the further copy of the input that a second reader has where it must be cast."""
    return 0 if low == 4 else low * _sizes(moe)[1]
