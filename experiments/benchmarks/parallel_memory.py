"""Bytes that a process keeps in a training step, measured and predicted, for one process and many.

    python experiments/benchmarks/parallel_memory.py --rows "dense, 32-true, none" "shard, ZeRO-3"

Measured on CPUs, over gloo: parameters, gradients and AdamW's moments as they are there after a step; activations as
autograd saves them, or a forward leaves them where layers are computed again; communication by the buffers that
collectives and sends read and write. Predicted by ``toolkit.compute.memory``; the ratio is predicted / measured. Shown
is the process that keeps most in all. What a GPU's allocator and NCCL add is not yet measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from processes import run_processes

from toolkit.compute import memory
from toolkit.layers.recomputation import Recompute
from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.parallel import ParallelConfig
from toolkit.training.kept_bytes import KeptBytes, count_kept_bytes

BATCH, LENGTH = 8, 48
"""No activation has a weight's shape, by which copies of weights are told from them."""

ATTENTION = AttentionConfig(heads=8, kv_heads=4)
LEARNED = MoEConfig(64, 8, 2)
DENSE = DecoderConfig(256, 64, (BlockConfig(ATTENTION, FeedForwardConfig(256)),) * 4)
MOE = replace(DENSE, blocks=(BlockConfig(ATTENTION, LEARNED),) * 4)
BALANCED = replace(DENSE, blocks=(BlockConfig(ATTENTION, replace(LEARNED, router="UniformRouter()")),) * 4)
"""Loads are equal, as the formula takes them to be."""

COMPONENTS = ("parameters", "gradients", "optimizer", "activations", "communication")


ALONE = ParallelConfig()


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    model: DecoderConfig
    parallel: ParallelConfig = ALONE
    precision: str = "32-true"
    recompute: Recompute = "none"

    @property
    def settings(self) -> tuple[DecoderConfig, ParallelConfig, int, int, str, Recompute]:
        """For :func:`count_kept_bytes`."""
        return self.model, self.parallel, BATCH, LENGTH, self.precision, self.recompute

    def predicted(self) -> dict[str, int]:
        """By component; parameters without the copies in bf16 that autocast keeps, which are not told from others."""
        found = memory(self.model, BATCH, LENGTH, self.precision, self.parallel, self.recompute)
        return found.components | {"parameters": found.gradients}


POLICIES: tuple[Recompute, ...] = ("none", "full", "selective", 2)
ONE = [
    Row(f"{kind}, {precision}, {policy}", model, precision=precision, recompute=policy)
    for kind, model in (("dense", DENSE), ("MoE", MOE))
    for precision in ("32-true", "bf16-mixed")
    for policy in POLICIES
]
PIPELINE = ParallelConfig(pipeline=2, micro_batches=4)
MANY = [
    Row("data (DDP)", DENSE, ParallelConfig(data=2)),
    Row("shard, ZeRO-2", DENSE, ParallelConfig(shard=2, zero=2)),
    Row("shard, ZeRO-3", DENSE, ParallelConfig(shard=2)),
    Row("shard, gathered in bf16", DENSE, ParallelConfig(shard=2, gather_dtype="bf16")),
    Row("copies of shards (HSDP)", DENSE, ParallelConfig(data=2, shard=2)),
    Row("tensor", DENSE, ParallelConfig(tensor=2)),
    Row("tensor, bf16-mixed", DENSE, ParallelConfig(tensor=2), "bf16-mixed"),
    Row("tensor, whole stream", DENSE, ParallelConfig(tensor=2, sequence_parallel=False)),
    Row("tensor, MoE", MOE, ParallelConfig(tensor=2)),
    Row("tensor + shard", DENSE, ParallelConfig(tensor=2, shard=2)),
    Row("ring + its shards", DENSE, ParallelConfig(context=2)),
    Row("ring of four", DENSE, ParallelConfig(context=4)),
    Row("expert", BALANCED, ParallelConfig(data=2, expert=2)),
    Row("expert, learned router", MOE, ParallelConfig(data=2, expert=2)),
    Row("expert, bf16-mixed", BALANCED, ParallelConfig(data=2, expert=2), "bf16-mixed"),
    Row("expert + shard", BALANCED, ParallelConfig(shard=4, expert=2)),
    Row("expert + tensor", BALANCED, ParallelConfig(data=2, expert=2, tensor=2)),
    Row("expert + tensor + shard", BALANCED, ParallelConfig(shard=2, expert=2, tensor=2)),
    Row("pipeline, 1F1B", DENSE, PIPELINE),
    Row("pipeline, GPipe", DENSE, replace(PIPELINE, schedule="gpipe")),
    Row("pipeline, interleaved", DENSE, replace(PIPELINE, schedule="interleaved", stages_per_process=2)),
    Row("pipeline of four", DENSE, ParallelConfig(pipeline=4, micro_batches=8)),
    Row("pipeline + data", DENSE, replace(PIPELINE, data=2, devices=4)),
]
ROWS = ONE + MANY


def measured(row: Row) -> KeptBytes:
    """In each of the row's processes."""
    return count_kept_bytes(*row.settings)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [row.name for row in ROWS]
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="ROW", help="; ".join(names))
    options = parser.parse_args(arguments)
    rows = [row for row in ROWS if row.name in options.rows]
    print(f"CPUs, gloo, {BATCH} sequences of {LENGTH} tokens, torch {torch.__version__}; kB measured and, in brackets,")
    print("predicted / measured. GPUs, and what an allocator and NCCL add: not yet measured")
    print(f"{'':>28} {'processes':>9} " + " ".join(f"{name:>15}" for name in COMPONENTS), flush=True)
    found = run_processes({row.name: (row.parallel.world_size, measured, (row,)) for row in rows})
    for row in rows:
        fullest = max((each.components for each in found[row.name]), key=lambda kept: sum(kept.values()))
        predicted = row.predicted()
        cells = (f"{fullest[name] / 1e3:7.0f} ({_ratio(predicted[name], fullest[name])})" for name in COMPONENTS)
        print(f"{row.name:>28} {row.parallel.world_size:>9} " + " ".join(f"{cell:>15}" for cell in cells), flush=True)


def _ratio(predicted: int, found: int) -> str:
    return "-" if predicted == found == 0 else f"{predicted / found:.3f}"


if __name__ == "__main__":
    main()
