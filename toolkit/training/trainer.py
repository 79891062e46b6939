"""Lightning's Trainer as a run wants it: what it counts, logs and saves, and what it need not say."""

from __future__ import annotations

import logging
import math
import warnings
from datetime import timedelta
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint, ThroughputMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from toolkit.data import as_examples
from toolkit.parallel import ParallelConfig
from toolkit.training.checkpoints.store import CheckpointStore
from toolkit.training.checkpoints.strategy import ShardedStrategy
from toolkit.training.config import TrainingConfig
from toolkit.training.exact_resume import ClockCheckpoint
from toolkit.training.strategy import strategy_of


def build_trainer(
    folder: Path,
    training: TrainingConfig,
    parallel: ParallelConfig,
    precision: str,
    callbacks: list[lightning.Callback],
    progress_bar: bool,
    store: CheckpointStore,
) -> lightning.Trainer:
    """One that ends when its :class:`ComputeBudget` does, validates evenly and logs to TensorBoard."""
    _quiet()
    return lightning.Trainer(
        accelerator=parallel.device,
        devices=parallel.processes_per_node,
        num_nodes=parallel.num_nodes,
        strategy=strategy_of(parallel) if parallel.is_replicated else ShardedStrategy(parallel),
        precision=precision,  # type: ignore[arg-type]
        logger=TensorBoardLogger(folder, name="", version="", default_hp_metric=False),
        callbacks=callbacks,
        plugins=[store, *_slurm()],
        max_epochs=-1,  # ComputeBudget ends the run
        gradient_clip_val=training.gradient_clip,
        val_check_interval=math.ceil(training.steps / training.evaluations),  # and at the end, whenever that is
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # batches are each process's own already
        log_every_n_steps=training.log_every,
        enable_progress_bar=progress_bar,
        enable_model_summary=False,
    )


def clock_checkpoints(folder: Path, training: TrainingConfig) -> ModelCheckpoint:
    """The last checkpoint, every ``checkpoint_minutes``."""
    return ClockCheckpoint(
        folder / "checkpoints",
        train_time_interval=timedelta(minutes=training.checkpoint_minutes),
        save_top_k=0,  # the last one is all: names by step are KeptCheckpoints'
        save_last=True,
        enable_version_counter=False,  # the name stays LAST, also where the folder was moved in between
    )


def throughput(parallel: ParallelConfig) -> ThroughputMonitor:
    """Tokens (``items``) and FLOPs per second; Lightning adds the MFU where it knows the chip's peak.

    Processes that train on the same tokens count their share of them: Lightning multiplies by all processes.
    """
    readers = parallel.tensor * parallel.pipeline
    return ThroughputMonitor(
        batch_size_fn=lambda batch: len(as_examples(batch).input_ids) / readers,  # type: ignore[arg-type, return-value]
        length_fn=lambda batch: as_examples(batch).input_ids.numel() / readers,  # type: ignore[arg-type, return-value]
        window_size=10,
    )


def _slurm() -> list[SLURMEnvironment]:
    """srun's processes, where Lightning would find them, without its own requeueing.

    Lightning's handler of SIGUSR1 saves from within the signal handler, into the working directory, a checkpoint that a
    run would not go on from. :class:`toolkit.training.interruption.SaveOnTerm` does both on SIGTERM.
    """
    launched = not TorchElasticEnvironment.detect() and SLURMEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if launched else []


def _quiet() -> None:
    """Silence what Lightning says of choices made on purpose."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*GPU available but not used.*",
        ".*Starting from v1.9.0.*",
        ".*Found .* module.* in eval mode.*",
        ".*isn't wrapped in.*",
        ".*Checkpoint directory .* exists.*",
        ".*dirpath has changed.*",
        ".*litlogger.*",
        ".*isinstance.treespec, LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message)
