"""How far a model that is spread over processes strays from one process: the worst error of every way to spread it.

    python experiments/benchmarks/parallel_equivalence.py --rows data tensor --dtype float64

Every row trains the same decoder for three steps on the same global batches, gradients clipped, in as many processes as
the row needs, which talk through gloo, and in one process. Printed are the largest differences over all processes: of
the loss and of the gradient's norm (absolute), of the gradients, the weights and the routers' loads (relative to the
tensor's largest number). NCCL runs the same code; it is not yet measured.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing import get_context

from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.parallel import ParallelConfig
from toolkit.training.equivalence import Steps, train_steps
from toolkit.training.pipelined_steps import train_pipelined

Work = Callable[[DecoderConfig, ParallelConfig, torch.dtype], Steps]
COLUMNS = ("loss", "norm", "gradients", "weights", "loads")


def train(model: DecoderConfig, parallel: ParallelConfig, dtype: torch.dtype) -> Steps:
    """Three steps in the processes of the default group, or alone."""
    return train_steps(model, parallel, dtype=dtype)


def pipelined(model: DecoderConfig, parallel: ParallelConfig, dtype: torch.dtype) -> Steps:
    """Three steps of four micro-batches through a pipeline, or accumulated by one process."""
    return train_pipelined(model, parallel, dtype=dtype)


def gpipe(model: DecoderConfig, parallel: ParallelConfig, dtype: torch.dtype) -> Steps:
    """The same by GPipe's schedule."""
    return train_pipelined(model, parallel, dtype=dtype, schedule="gpipe")


def uneven(model: DecoderConfig, parallel: ParallelConfig, dtype: torch.dtype) -> Steps:
    """The same with layers that the stages cannot share evenly: five."""
    layers = (*model.blocks * 2, model.blocks[-1])
    return train_pipelined(replace(model, blocks=layers), parallel, dtype=dtype, micro_batches=8, batch_size=16)


def interleaved(model: DecoderConfig, parallel: ParallelConfig, dtype: torch.dtype) -> Steps:
    """The same by the interleaved schedule, with as many more layers as it has more stages: three a process."""
    deep = replace(model, blocks=model.blocks * 3)
    return train_pipelined(deep, parallel, dtype=dtype, schedule="interleaved", stages_per_process=3)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: of the line.
        parallel: the processes.
        models: which of :data:`MODELS` are trained.
        work: what each process does; a function of a module.
    """

    name: str
    parallel: ParallelConfig
    models: tuple[str, ...] = ("dense", "MoE", "loss-free MoE", "depths")
    work: Work = train


ATTENTION = AttentionConfig(heads=4, kv_heads=2, qk_norm=True, sinks=True)
DENSE = BlockConfig(ATTENTION, FeedForwardConfig(hidden_dim=64, bias=True))
MOE = MoEConfig(hidden_dim=16, num_experts=8, top_k=2, shared_experts=1)
LOSS_FREE = MoEConfig(
    hidden_dim=16, num_experts=8, top_k=2, router="TopKRouter(score='sigmoid', balancer=BiasBalancer())"
)


def decoder(*layers: BlockConfig) -> DecoderConfig:
    """A small decoder of these layers after a dense one."""
    return DecoderConfig(vocab_size=64, dim=32, blocks=(DENSE, *layers))


ROUTED = ("MoE", "loss-free MoE")
SPARSE = (*ROUTED, "depths")
UNCHOSEN = ("dense", *ROUTED)
"""Those in which every token goes through every layer."""

MODELS = {
    "dense": decoder(DENSE),
    "MoE": decoder(BlockConfig(ATTENTION, MOE)),
    "loss-free MoE": decoder(BlockConfig(ATTENTION, LOSS_FREE)),
    "depths": decoder(BlockConfig(ATTENTION, MOE, depth_capacity=0.5)),
}
"""Decoders by name."""

ROWS = [
    Row("data", ParallelConfig(data=2)),
    Row("shard, ZeRO-2", ParallelConfig(shard=2, zero=2)),
    Row("shard, ZeRO-3", ParallelConfig(shard=2)),
    Row("shard, offloaded", ParallelConfig(shard=2, offload=True)),
    Row("copies of shards (HSDP)", ParallelConfig(data=2, shard=2)),
    Row("tensor", ParallelConfig(tensor=2)),
    Row("tensor, whole stream", ParallelConfig(tensor=2, sequence_parallel=False)),
    Row("tensor + shard", ParallelConfig(tensor=2, shard=2)),
    Row("tensor + data", ParallelConfig(tensor=2, data=2)),
    Row("context", ParallelConfig(context=2), UNCHOSEN),
    Row("context, by heads", ParallelConfig(context=2, context_method="ulysses"), UNCHOSEN),
    Row("context + tensor", ParallelConfig(context=2, tensor=2), UNCHOSEN),
    Row("expert", ParallelConfig(data=2, expert=2), SPARSE),
    Row("expert, copied, + shard", ParallelConfig(data=2, shard=2, expert=2), SPARSE),
    Row("expert + tensor + data", ParallelConfig(data=2, expert=2, tensor=2), SPARSE),
    Row("expert + tensor + shard", ParallelConfig(shard=2, expert=2, tensor=2), SPARSE),
    Row("expert + context", ParallelConfig(context=2, expert=2), ROUTED),
    Row("expert + context + tensor", ParallelConfig(context=2, expert=2, tensor=2), ROUTED),
    Row("expert + context + shard", ParallelConfig(context=2, shard=2, expert=4), ROUTED),
    Row("pipeline", ParallelConfig(pipeline=2), work=pipelined),
    Row("pipeline, GPipe", ParallelConfig(pipeline=2), work=gpipe),
    Row("pipeline, uneven layers", ParallelConfig(pipeline=3), work=uneven),
    Row("pipeline, interleaved", ParallelConfig(pipeline=2), work=interleaved),
    Row("pipeline + data", ParallelConfig(pipeline=2, data=2), work=pipelined),
    Row("pipeline, interl. + data", ParallelConfig(pipeline=2, data=2), work=interleaved),
]
"""The table; a new way to spread a model adds its own."""


def worst_errors(row: Row, models: Sequence[str], dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """By model and by what of: the largest differences of any process of ``row`` from one process."""
    everyone = _in_processes(row, models, dtype)
    found = {}
    for model in models:
        alone = row.work(MODELS[model], ParallelConfig(), dtype)
        each = [steps[model].worst_errors(alone) for steps in everyone]
        found[model] = {column: max(errors[column] for errors in each) for column in COLUMNS}
    return found


def _in_processes(row: Row, models: Sequence[str], dtype: torch.dtype) -> list[dict[str, Steps]]:
    """What every process of the row reached, by model."""
    with tempfile.TemporaryDirectory() as folder:
        world = row.parallel.world_size
        arguments = [(rank, world, folder, row, models, dtype) for rank in range(world)]
        with get_context("spawn").Pool(world, maxtasksperchild=1) as pool:
            return pool.starmap(_process, arguments, chunksize=1)


def _process(
    rank: int, world_size: int, folder: str, row: Row, models: Sequence[str], dtype: torch.dtype
) -> dict[str, Steps]:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size))
    meeting = f"file://{Path(folder) / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    try:
        return {model: row.work(MODELS[model], row.parallel, dtype) for model in models}
    finally:
        dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [row.name for row in ROWS]
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="ROW", help=", ".join(names))
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="MODEL")
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"gloo on CPUs, {options.dtype}, torch {torch.__version__}; NCCL: not yet measured")
    print(f"{'':>24} {'model':>14} {'processes':>9} " + " ".join(f"{column:>9}" for column in COLUMNS))
    for row in (row for row in ROWS if row.name in options.rows):
        models = [model for model in row.models if model in options.models]
        for model, errors in worst_errors(row, models, getattr(torch, options.dtype)).items():
            figures = " ".join(f"{errors[column]:>9.1e}" for column in COLUMNS)
            print(f"{row.name:>24} {model:>14} {row.parallel.world_size:>9} {figures}", flush=True)


if __name__ == "__main__":
    main()
