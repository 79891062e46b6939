"""Bytes that a process sends in a training step, counted and by formula, for every way to spread a model.

    python experiments/benchmarks/parallel_traffic.py --rows tensor "ring, window"

Counted are all collectives and sends of a forward and backward pass in gloo's processes
(``toolkit.parallel.SentBytes``); the formulas are ``toolkit.compute.traffic``'s, for attention alone those of
``toolkit.parallel.context``. Shown is the process that sends most. NCCL is asked for the same; what its algorithms send
is not yet measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from processes import run_processes

from toolkit.attention import Causal, Full, Pattern, SlidingWindow
from toolkit.compute import traffic
from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.parallel import ParallelConfig, SentBytes
from toolkit.parallel.context import (
    AttentionShape,
    Layout,
    ring_traffic,
    ulysses_traffic,
)
from toolkit.parallel.context.model import METHODS
from toolkit.training.sent_bytes import count_sent_bytes

BATCH, LENGTH = 4, 64
ATTENTION = AttentionConfig(heads=8, kv_heads=4, qk_norm=True)
BALANCED = MoEConfig(hidden_dim=16, num_experts=8, top_k=2, shared_experts=1, router="UniformRouter()")
"""Loads are equal, as the formula takes them to be."""

MODELS = {
    "dense": DecoderConfig(64, 32, (BlockConfig(ATTENTION, FeedForwardConfig(64)),) * 4),
    "MoE": DecoderConfig(64, 32, (BlockConfig(ATTENTION, BALANCED),) * 4),
}
SHAPE = AttentionShape(BATCH, heads=8, kv_heads=4, head_dim=8, value_dim=8, itemsize=4)
WINDOW = Causal() & SlidingWindow(LENGTH // 4)

Bytes = tuple[float, float]
"""Counted, and by formula."""


def of_a_step(model: str, parallel: ParallelConfig) -> Bytes:
    """A whole decoder's training step."""
    counted = count_sent_bytes(MODELS[model], parallel, BATCH, LENGTH)
    return sum(counted.values()), traffic(MODELS[model], BATCH, LENGTH, parallel=parallel).total


def of_attention(pattern: Pattern, layout: str, method: str) -> Bytes:
    """One attention layer's forward and backward pass over parts of sequences."""
    group = dist.group.WORLD
    assert group is not None, "the processes have one"
    held = Layout(layout, group.size(), LENGTH)
    attend = METHODS[method](group, layout)
    q, k, v = (
        torch.randn(BATCH, heads, held.local_length, SHAPE.head_dim, requires_grad=True)
        for heads in (SHAPE.heads, SHAPE.kv_heads, SHAPE.kv_heads)
    )
    with SentBytes() as sent:
        attend(q, k, v, pattern).sum().backward()
    ring = method == "ring"
    predicted = ring_traffic(pattern, held, group.rank(), SHAPE) if ring else ulysses_traffic(held, SHAPE)
    return sent.total, predicted.forward + predicted.backward


@dataclass(frozen=True)
class Row:
    """One line of the table: what each of so many processes does."""

    name: str
    processes: int
    work: Callable[..., Bytes]
    arguments: tuple[object, ...] = field(default=())


def _step(name: str, parallel: ParallelConfig, model: str = "dense") -> Row:
    return Row(name, parallel.world_size, of_a_step, (model, parallel))


ROWS = [
    _step("data (DDP)", ParallelConfig(data=2)),
    _step("shard, ZeRO-2", ParallelConfig(shard=2, zero=2)),
    _step("shard, ZeRO-3", ParallelConfig(shard=2)),
    _step("copies of shards (HSDP)", ParallelConfig(data=2, shard=2)),
    _step("tensor", ParallelConfig(tensor=2)),
    _step("tensor, whole stream", ParallelConfig(tensor=2, sequence_parallel=False)),
    _step("tensor + shard", ParallelConfig(tensor=2, shard=2)),
    _step("the same, in bf16", ParallelConfig(tensor=2, shard=2, gather_dtype="bf16")),
    _step("context + its shards", ParallelConfig(context=2)),
    _step("expert", ParallelConfig(data=2, expert=2), "MoE"),
    _step("expert, copied", ParallelConfig(data=4, expert=2), "MoE"),
    _step("expert + tensor", ParallelConfig(data=2, expert=2, tensor=2), "MoE"),
    _step("expert + tensor + shard", ParallelConfig(shard=2, expert=2, tensor=2), "MoE"),
    _step("pipeline", ParallelConfig(pipeline=2)),
    _step("pipeline, interleaved", ParallelConfig(pipeline=2, schedule="interleaved", stages_per_process=2)),
    _step("pipeline + data", ParallelConfig(pipeline=2, data=2)),
    Row("ring, full", 4, of_attention, (Full(), "contiguous", "ring")),
    Row("ring, causal", 4, of_attention, (Causal(), "contiguous", "ring")),
    Row("ring, causal zigzag", 4, of_attention, (Causal(), "zigzag", "ring")),
    Row("ring, window", 4, of_attention, (WINDOW, "contiguous", "ring")),
    Row("ring, window zigzag", 4, of_attention, (WINDOW, "zigzag", "ring")),
    Row("Ulysses", 4, of_attention, (Causal(), "zigzag", "ulysses")),
]
"""The table; a new way to spread a model adds its own. A window is a quarter of the sequence, one process's part."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [row.name for row in ROWS]
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="ROW", help=", ".join(names))
    options = parser.parse_args(arguments)
    print(
        f"gloo on CPUs, fp32, {BATCH} sequences of {LENGTH} tokens, torch {torch.__version__}; NCCL: not yet measured"
    )
    print(f"{'':>24} {'processes':>9} {'counted':>9} {'formula':>9} {'ratio':>6}   bytes a process and step")
    rows = [row for row in ROWS if row.name in options.rows]
    found = run_processes({row.name: (row.processes, row.work, row.arguments) for row in rows})
    for row in rows:
        sent, formula = max(found[row.name])
        print(f"{row.name:>24} {row.processes:>9} {sent:>9.0f} {formula:>9.0f} {sent / formula:>6.4f}", flush=True)


if __name__ == "__main__":
    main()
