"""Bytes that context parallelism sends, from shapes and patterns alone."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from operator import add

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


def ring_buffers(pattern: Pattern, layout: Layout, rank: int, shape: AttentionShape) -> int:
    """Bytes of messages that ``rank`` has at most at once in :class:`RingAttention`, in its backward pass.

    When it waits for a step's keys and values: those, those of the step before, and the next step's already on their
    way, each as they are sent and received, and the gradients of the step before. When it has that step's gradients:
    keys and values, their gradients, and the next step's.
    """
    steps = schedule(pattern, layout, rank)[1:]
    sizes = [(0, 0), *((len(step.sent), len(step.received)) for step in steps), (0, 0)]
    returning = [2 * got + gave for gave, got in sizes]
    coming = [sum(now) + sum(after) for now, after in pairwise(sizes[1:])]
    chunk = shape.batch * shape.kv_heads * layout.chunk_length * (shape.head_dim + shape.value_dim) * shape.itemsize
    waiting = max(map(add, returning, coming))
    return chunk * max(waiting, *(map(add, returning[1:], map(sum, sizes[2:]))))


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
