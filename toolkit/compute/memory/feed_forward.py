"""Bytes that autograd keeps of the layers that stand in a feed-forward's place, of one batch."""

from __future__ import annotations

from torch import nn

from toolkit.layers import FeedForward, MoE
from toolkit.routing import SoftRouter

KEPT = {"swiglu": 4, "clamped_swiglu": 7, "gelu": 2, "relu2": 2}
"""Tensors of hidden_dim that autograd keeps of a dense feed-forward, its pre-activations included."""

SORTED = 2 * 8
"""Of each triple: the order and tokens of sorted rows in int64."""

TRIPLE = 4 + 2 * 8 + SORTED
"""Of each triple: its gate in fp32, its expert and its token, and what sorting gives."""


def feed_forward_bytes(
    layer: nn.Module, low: int, batch_size: int, seq_len: int, *, tensor: int = 1, expert: int = 1
) -> int:
    """Bytes kept of ``layer``, a ``FeedForward`` or a ``MoE``, besides its input as products read it once.

    Args:
        layer: built on any device; only its shapes are read.
        low: bytes of a number that a product reads.
        batch_size: sequences.
        seq_len: tokens in each.
        tensor: processes that share hidden units.
        expert: processes that share routed experts, of which each computes as many rows as its tokens ask for.
    """
    tokens = batch_size * seq_len
    if isinstance(layer, FeedForward):
        return tokens * low * KEPT[layer.activation.name] * layer.down_proj.shape[1] // tensor
    assert isinstance(layer, MoE)
    if isinstance(layer.router, SoftRouter):
        kept = _soft_bytes(layer, low, batch_size, seq_len, tensor)
    else:
        kept = _routed_bytes(layer, low, batch_size, seq_len, tensor)
        if expert > 1:  # rows that came, their triples once more, and the outputs that came home, summed in fp32
            kept += layer.triples(batch_size, seq_len) * ((low + 4) * _sizes(layer)[1] + TRIPLE)
    if layer.shared is not None:
        kept += feed_forward_bytes(layer.shared, low, batch_size, seq_len, tensor=tensor) + tokens * _cast(layer, low)
    if layer.shared_gate is not None:  # the gate, and what it multiplies
        kept += tokens * low * (1 + _sizes(layer)[1])
    return kept


def feed_forward_outputs(
    layer: nn.Module, low: int, batch_size: int, seq_len: int, *, tensor: int = 1, expert: int = 1
) -> int:
    """Bytes of what a layer's products and experts give: what is kept where the rest is computed again.

    The arguments are those of :func:`feed_forward_bytes`.
    """
    tokens = batch_size * seq_len
    if isinstance(layer, FeedForward):
        dim, hidden = layer.down_proj.shape
        return tokens * low * (layer.activation.width(hidden) // tensor + dim)
    assert isinstance(layer, MoE)
    width, dim = _sizes(layer)
    triples = layer.triples(batch_size, seq_len)
    before = 0 if layer.experts.recompute else low * width // tensor
    if isinstance(layer.router, SoftRouter):
        slots = layer.router.rows(seq_len)  # logits; slots before and after their experts; tokens
        kept = tokens * (4 * slots + low * dim) + batch_size * slots * (2 * low * dim + before + SORTED)
    else:
        scores = 0 if layer.router.kept_numbers() == 0 else layer.choices  # type: ignore[operator]
        kept = tokens * 4 * scores + triples * (before + SORTED)
        kept += low * dim * (triples if expert > 1 else tokens)
    if layer.shared is not None:
        kept += feed_forward_outputs(layer.shared, low, batch_size, seq_len, tensor=tensor)
    return kept + (0 if layer.shared_gate is None else tokens * low)


def shown_bytes(layer: nn.Module, batch_size: int, seq_len: int) -> int:
    """Bytes of the assignment that a MoE shows of its last forward, which autograd would keep anyway.

    Triples, logits and probabilities; a soft router's logits, dispatch and combine weights.
    """
    if not isinstance(layer, MoE):
        return 0
    tokens = batch_size * seq_len
    if isinstance(layer.router, SoftRouter):
        return tokens * 3 * 4 * layer.router.rows(seq_len)
    return layer.triples(batch_size, seq_len) * (TRIPLE - SORTED) + tokens * 2 * 4 * layer.choices


def _routed_bytes(moe: MoE, low: int, batch_size: int, seq_len: int, tensor: int) -> int:
    """Scores in fp32, the triples, and of each the pre-activations of its expert, whether or not it has one."""
    tokens, triples = batch_size * seq_len, moe.triples(batch_size, seq_len)
    kept = triples * TRIPLE + tokens * 4 * moe.router.kept_numbers()  # type: ignore[operator]  # a router is any module
    if moe.zero_experts is not None:  # the tokens and columns of gates in int64, and the gates
        kept += triples * 2 * 8 + tokens * 4 * moe.choices
        kept += tokens * _cast(moe, low) if moe.zero_experts.n_constant else 0
    return kept + (0 if moe.experts.recompute else triples * low * _sizes(moe)[0] // tensor)


def _soft_bytes(moe: MoE, low: int, batch_size: int, seq_len: int, tensor: int) -> int:
    """Normalised tokens, dispatch and combine weights in fp32 and as products read them; slots before and after."""
    assert isinstance(moe.router, SoftRouter)
    tokens, (width, dim) = batch_size * seq_len, _sizes(moe)
    slots = moe.router.rows(seq_len)
    weights = 2 * slots * (4 if low == 4 else 4 + low)
    before = 0 if moe.experts.recompute else width // tensor
    return tokens * (4 * dim + weights) + batch_size * slots * (low * (2 * dim + before) + TRIPLE)


def _sizes(moe: MoE) -> tuple[int, int]:
    """(width, dim): pre-activations of a row, and its inputs."""
    _, width, dim = moe.experts.weights.first.shape
    return width, dim


def _cast(moe: MoE, low: int) -> int:
    """Bytes a token of the further copy of the input that a second reader has where it must be cast."""
    return 0 if low == 4 else low * _sizes(moe)[1]
