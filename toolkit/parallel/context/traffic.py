"""Bytes that context parallelism sends, from shapes and patterns alone."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.attention import Pattern
from toolkit.parallel.context.layout import Layout
from toolkit.parallel.context.schedule import schedule


@dataclass(frozen=True)
class AttentionShape:
    """The tensors of one attention layer.

    Attributes:
        batch: sequences.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: width of queries and keys.
        value_dim: width of values.
        itemsize: bytes of a number.
    """

    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    itemsize: int


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank sends to others in one attention layer."""

    forward: int
    backward: int


def ring_traffic(pattern: Pattern, layout: Layout, rank: int, shape: AttentionShape) -> Traffic:
    """What ``rank`` sends in :class:`RingAttention`.

    Forward: the chunks of its keys and values that others see. Backward: those again, and the gradients of the chunks
    of others that it saw, as wide.
    """
    steps = schedule(pattern, layout, rank)[1:]
    chunk = shape.batch * shape.kv_heads * layout.chunk_length * (shape.head_dim + shape.value_dim) * shape.itemsize
    given, got = sum(len(step.sent) for step in steps), sum(len(step.received) for step in steps)
    return Traffic(chunk * given, chunk * (given + got))


def ulysses_traffic(layout: Layout, shape: AttentionShape) -> Traffic:
    """What every rank sends in :class:`UlyssesAttention`, whatever the pattern: (n - 1) / n of what it holds.

    Queries, keys, values and outputs, and their gradients; keys of fewer heads than ranks count n heads. The
    log-sum-exp, where ``return_lse`` asks for it, is not in it.
    """
    n = layout.ranks
    kv_heads = max(shape.kv_heads, n)
    widths = shape.heads * (shape.head_dim + shape.value_dim) + kv_heads * (shape.head_dim + shape.value_dim)
    sent = shape.batch * layout.local_length * widths * shape.itemsize * (n - 1) // n
    return Traffic(sent, sent)
