"""Context parallelism: each rank of a group holds a part of every sequence, and attention over the whole stays exact.

Tested over gloo on CPUs. On GPUs NCCL runs the same code, not yet measured.

>>> mesh = init_device_mesh("cuda", (4,), mesh_dim_names=("context",))  # doctest: +SKIP
>>> decoder = context_parallel(Decoder(config), mesh["context"])  # doctest: +SKIP
>>> ids, labels = (split_sequence(x, mesh["context"]) for x in (ids, next_token_labels(ids)))  # doctest: +SKIP
>>> context_cross_entropy(decoder(ids).logits, labels, mesh["context"]).backward()  # doctest: +SKIP
"""

from toolkit.parallel.context.layout import Chunk, Layout
from toolkit.parallel.context.loss import average_gradients, context_cross_entropy
from toolkit.parallel.context.model import context_parallel
from toolkit.parallel.context.ring import RingAttention
from toolkit.parallel.context.schedule import schedule, visible_pairs
from toolkit.parallel.context.split import join_sequence, next_token_labels, sequence_positions, split_sequence
from toolkit.parallel.context.traffic import AttentionShape, Traffic, ring_traffic, ulysses_traffic
from toolkit.parallel.context.ulysses import UlyssesAttention

__all__ = [
    "AttentionShape",
    "Chunk",
    "Layout",
    "RingAttention",
    "Traffic",
    "UlyssesAttention",
    "average_gradients",
    "context_cross_entropy",
    "context_parallel",
    "join_sequence",
    "next_token_labels",
    "ring_traffic",
    "schedule",
    "sequence_positions",
    "split_sequence",
    "ulysses_traffic",
    "visible_pairs",
]
