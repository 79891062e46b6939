"""One run in one folder, which goes on wherever it was ended: a mixture of experts on text.

    python experiments/slurm/train.py --out runs/one --steps 2000
    torchrun --nproc-per-node 2 experiments/slurm/train.py --out runs/two --steps 2000 --devices 2

Ends with 0 when it is done, and with 75 when it was asked to end early (SIGTERM) and has saved: the same command then
goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from toolkit.checks import require_positive
from toolkit.compute import cost
from toolkit.data import CorpusConfig, prepare_corpus
from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, MoEConfig
from toolkit.parallel import ParallelConfig, is_main_process, leave_process_group
from toolkit.training import TrainingConfig, fit


def conduct(
    model: DecoderConfig, training: TrainingConfig, parallel: ParallelConfig, settings: argparse.Namespace
) -> None:
    """Train, and say where the run ended."""
    corpus = prepare_corpus(CorpusConfig(tuple(settings.paths)), settings.cache)
    budget = cost(model, training.context).training_flops["exact"] * training.tokens_per_step * training.steps
    try:
        fitted = fit(model, training, corpus, settings.out, budget, parallel=parallel, validation_count=64)
    except SystemExit as left:
        print(left, file=sys.stderr)
        raise
    finally:
        leave_process_group()
    if is_main_process():
        print(f"{fitted.steps} steps, {fitted.bits_per_byte:.3f} bits per byte: {settings.out}")


def main(arguments: Sequence[str]) -> None:
    """Read the settings, and train.

    Raises:
        ValueError: if one is refused.
    """
    settings = _parser().parse_args(arguments)
    require_positive(dim=settings.dim, layers=settings.layers, num_experts=settings.num_experts)
    attention = AttentionConfig(heads=max(1, settings.dim // 32), dropout_p=settings.dropout_p)
    block = BlockConfig(attention, MoEConfig(2 * settings.dim, settings.num_experts, top_k=2))
    model = DecoderConfig(vocab_size=256, dim=settings.dim, blocks=(block,) * settings.layers)
    training = TrainingConfig(
        settings.steps,
        context=settings.context,
        batch_size=settings.batch_size,
        seed=settings.seed,
        checkpoint_minutes=settings.checkpoint_minutes,
    )
    parallel = ParallelConfig(
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        accelerator=settings.accelerator,
        shard=settings.shard,
        pipeline=settings.pipeline,
        micro_batches=settings.micro_batches,
    )
    conduct(model, training, parallel, settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--paths", nargs="*", default=[], help="files and folders of text; none: Python's own source")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="of tokens")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--num_experts", type=int, default=8)
    parser.add_argument("--dropout_p", type=float, default=0.0)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint_minutes", type=float, default=5.0)
    parser.add_argument("--devices", type=int, default=1, help="processes on each node")
    parser.add_argument("--num_nodes", type=int, default=1)
    parser.add_argument("--shard", type=int, default=1, help="processes that share the parameters of one copy")
    parser.add_argument("--pipeline", type=int, default=1, help="processes that share the layers of one copy")
    parser.add_argument("--micro_batches", type=int, help="parts of a pipeline's batch; as many as its processes")
    parser.add_argument("--accelerator", default="auto")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
