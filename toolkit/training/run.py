"""One training run in one folder: start it, or go on from its last checkpoint."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, ThroughputMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from toolkit.checks import require
from toolkit.data import Corpus, TaskMixture, as_examples
from toolkit.files import write_atomically
from toolkit.models import DecoderConfig
from toolkit.parallel import ParallelConfig, is_main_process
from toolkit.parallel.failure import PeerWatch
from toolkit.training.batches import StepBatches
from toolkit.training.branch import SAME, Branch
from toolkit.training.budget import ComputeBudget
from toolkit.training.checkpoints.store import CheckpointStore
from toolkit.training.checkpoints.strategy import ShardedStrategy
from toolkit.training.config import OF_NO_STEP, TrainingConfig
from toolkit.training.exact_resume import ClockCheckpoint, ExactResume
from toolkit.training.health import FiniteLoss
from toolkit.training.interruption import SaveOnTerm
from toolkit.training.kept_checkpoints import KeptCheckpoints
from toolkit.training.language_model import LanguageModel
from toolkit.training.metrics import RunMetrics
from toolkit.training.peers import WatchPeers
from toolkit.training.precision import resolve_precision
from toolkit.training.progress import ReportProgress
from toolkit.training.provenance import code_version
from toolkit.training.router_monitor import RouterMonitor
from toolkit.training.run_lock import RunLock
from toolkit.training.strategy import strategy_of


@dataclass(frozen=True)
class Fitted:
    """What a run reached.

    Attributes:
        steps, tokens: trained on, over all devices.
        flops: spent, in the ``exact`` convention.
        bits_per_byte: of the last validation; not finite if the run diverged.
        train_loss: nats per token, mean over the last tenth of the steps, or the last recorded.
        seconds: wall-clock of the training steps, this process's.
        max_violation, token_entropy, dropped_share: of the last recorded step, mean over layers; nan
            (dropped_share: 0) where there is no MoE.
    """

    steps: int
    tokens: int
    flops: float
    bits_per_byte: float
    train_loss: float
    seconds: float
    max_violation: float
    token_entropy: float
    dropped_share: float


def fit(
    model: DecoderConfig,
    training: TrainingConfig,
    corpus: Corpus,
    folder: Path,
    budget: float,
    *,
    parallel: ParallelConfig | None = None,
    validation_count: int = 256,
    mixture: TaskMixture | None = None,
    initial: Mapping[str, Tensor] | None = None,
    keep_at: Sequence[int] = (),
    branch: Path | None = None,
    hparams: dict[str, Any] | None = None,
    report: Callable[[int, int], None] | None = None,
    progress_bar: bool = False,
) -> Fitted:
    """Train ``model`` on ``corpus`` until ``budget`` FLOPs are spent, and write its run folder.

    The folder holds ``run.json`` (resolved settings and the corpus' hash), ``metrics.jsonl``, TensorBoard events,
    ``load.npz`` and ``flip_rate.npz`` of the routers, ``checkpoints/``, and in ``previous.ckpt`` the checkpoint before
    the last. If it holds a checkpoint, the run goes on from there and sees the batches it would have seen.

    A run that goes on, or that begins as a branch, is bit for bit the unbroken one, dropout and the noise of routers
    included: a checkpoint holds every process's random number generators. With another number of processes those are
    seeded anew, and a warning says so.

    A last checkpoint that is not whole is named in a warning and the one before it used. On SIGTERM the run saves and
    raises ``Interrupted``, which ends the process with exit code 75.

    Args:
        model: the decoder.
        training: how it is trained; ``steps`` sets the schedule's length.
        corpus: the tokens.
        folder: the run's folder; made if absent.
        budget: training FLOPs, ``exact`` convention.
        parallel: processes and what each holds; one by default.
        validation_count: windows of validation, the same for every run.
        mixture: rows of a task among those of text; validation is of text alone.
        initial: the decoder's parameters to begin with, as its ``state_dict`` has them; by default random ones.
        keep_at: steps whose checkpoints stay, as ``checkpoints/step<N>.ckpt``, for other runs to begin from.
        branch: such a checkpoint of a longer run, the trunk, to begin from in place of step 0, as far as this folder
            has no checkpoint of its own; see :mod:`toolkit.training.branch`. Steps, tokens, FLOPs and seconds count
            from the trunk's first step, and the table and the curves begin with the trunk's.
        hparams: flat settings for TensorBoard's HParams tab.
        report: called with (step, steps) about twice a second.
        progress_bar: show Lightning's bar.

    Raises:
        ValueError: if the settings do not fit the corpus or the devices, ``keep_at`` is beyond the run, the trunk of
            ``branch`` is not this run's beginning, another run is at work in the folder, or the folder has a checkpoint
            of a run of another model, corpus, mixture, beginning, budget, precision, validation or training, or one
            without its settings.
        toolkit.routing.finite.DivergedError: if a router's logits are not finite.
        CorruptCheckpoint: if the folder's checkpoints are not whole, or ``branch`` is not.
        CheckpointNotSaved: if a checkpoint cannot be written; those before it are as they were.
        toolkit.training.health.NotFiniteError: if a loss or gradient is not finite, naming step, rank and layer.
        RankFailure: if another process of the run is gone, naming its rank.
    """
    parallel = ParallelConfig() if parallel is None else parallel
    parallel.local_batch(training.batch_size)
    parallel.check_launch()
    precision = resolve_precision(training.precision, parallel.device)
    kept = KeptCheckpoints(folder, keep_at, training.steps)
    store, watch, lock = CheckpointStore(folder), PeerWatch(), RunLock(folder)
    with SaveOnTerm(store.last) as term, lock, watch.naming():
        if is_main_process() and folder.is_dir():
            lock.take()
        beginning = store.newest() or branch
        settings: dict[str, Any] = {"model": model.to_dict(), "training": asdict(training)}
        settings |= {"parallel": asdict(parallel), "initial": None if initial is None else _digest(initial)}
        settings |= {"mixture": None if mixture is None else asdict(mixture) | {"task": repr(mixture.task)}}
        facts = {"budget": budget, "precision": precision, "validation_windows": validation_count}
        settings |= {"data": None if corpus.config is None else asdict(corpus.config)}
        made_with = {"corpus": corpus.digest, "code": code_version(), "torch": torch.__version__}
        _begin(store, lock, training, {**settings, **facts, **made_with}, beginning)
        lightning.seed_everything(training.seed, verbose=False)
        if mixture is not None:
            _require_ids(mixture, corpus, model)
        module = LanguageModel(model, training, _byte_lengths(corpus, model))
        if initial is not None:
            module.decoder.load_state_dict(dict(initial))
        if precision == "64-true":  # Lightning would load a checkpoint into fp32 first, and round it
            module.double()
        data = StepBatches(corpus.train, corpus.validation, training, validation_count, mixture)
        counter = ComputeBudget(budget)
        metrics = RunMetrics(folder, counter, training.log_every, hparams or {})
        monitor = RouterMonitor(folder, training.log_every)
        callbacks = [counter, metrics, monitor, FiniteLoss(), WatchPeers(watch)]
        callbacks += [kept, _checkpoints(folder, training), term, _throughput(parallel)]
        if report is not None:
            callbacks.append(ReportProgress(report, training.steps))
        callbacks.append(ExactResume())  # it may validate when training starts: the others have started then
        trainer = _trainer(folder, training, parallel, precision, callbacks, progress_bar, store)
        trainer.fit(module, data, ckpt_path=beginning, weights_only=True)
        trainer.save_checkpoint(store.last)  # the trained model: the last one on the clock may be minutes older
        if module.bits_per_byte is None:  # the checkpoint was the finished run's, so nothing was left to train
            trainer.validate(module, data, verbose=False)
        return _fitted(trainer, module, counter, metrics, monitor)


def _begin(
    store: CheckpointStore, lock: RunLock, training: TrainingConfig, settings: dict[str, Any], beginning: Path | None
) -> None:
    """Make the folder and write run.json, once it is sure that the run can begin from that checkpoint, if any.

    Where it is the folder's own, what the run learned from must be the same; where another run's, all but the decay.
    Every process checks, since one that found nothing wrong would wait for those that did; the main one writes.
    """
    folder, trunk, branch = store.folder, None, None
    if beginning in store.own:
        branch = _require_same_run(folder, settings).get("branch")
    elif beginning is not None:
        trunk = Branch.open(beginning)
        trunk.require_fits(training, settings)
        branch = {"trunk": trunk.trunk.name, "step": trunk.step}
    if is_main_process():
        lock.take()
        if trunk is not None:
            trunk.copy_history(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "run.json", json.dumps({**settings, "branch": branch}, indent=2) + "\n")


def _require_same_run(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What run.json says of the run that ``folder`` has a checkpoint of, if it is one of these settings."""
    path = folder / "run.json"
    require(path.exists(), "folder", str(folder), f"one whose checkpoint has its settings beside it, in {path}")
    before: dict[str, Any] = json.loads(path.read_text())
    for name in (*SAME, "budget"):
        right = f"that of the run in {folder}, {before.get(name)!r}, or another folder"
        require(before.get(name) == settings[name], name, settings[name], right)
    for name, value in settings["training"].items():
        was = before["training"].get(name)
        right = f"{was!r}, as in the run in {folder} that goes on, or another folder"
        require(name in OF_NO_STEP or value == was, name, value, right)
    return before


def _digest(weights: Mapping[str, Tensor]) -> str:
    """sha256 of names and values."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _require_ids(mixture: TaskMixture, corpus: Corpus, model: DecoderConfig) -> None:
    """The task's ids come after the text's, and the model has a row for each."""
    text = len(corpus.tokenizer.byte_lengths)
    require(mixture.first_id >= text, "mixture.first_id", mixture.first_id, f"at least the tokenizer's {text} ids")
    fits = mixture.vocab_size <= model.vocab_size
    require(fits, "model.vocab_size", model.vocab_size, f"at least the mixture's {mixture.vocab_size}")


def _byte_lengths(corpus: Corpus, model: DecoderConfig) -> Tensor:
    """(vocab_size,): bytes of text that each token stands for; 0 for those of tasks, which come after the text's."""
    lengths = torch.from_numpy(corpus.tokenizer.byte_lengths)
    known = len(lengths)
    require(model.vocab_size >= known, "model.vocab_size", model.vocab_size, f"at least the tokenizer's {known}")
    return torch.cat([lengths, lengths.new_zeros(model.vocab_size - known)])


def _trainer(
    folder: Path,
    training: TrainingConfig,
    parallel: ParallelConfig,
    precision: str,
    callbacks: list[lightning.Callback],
    progress_bar: bool,
    store: CheckpointStore,
) -> lightning.Trainer:
    _quiet()
    return lightning.Trainer(
        accelerator=parallel.device,
        devices=parallel.processes_per_node,
        num_nodes=parallel.num_nodes,
        strategy=strategy_of(parallel) if parallel.is_replicated else ShardedStrategy(parallel),
        precision=precision,  # type: ignore[arg-type]
        logger=TensorBoardLogger(folder, name="", version="", default_hp_metric=False),
        callbacks=callbacks,
        plugins=[store],
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


def _checkpoints(folder: Path, training: TrainingConfig) -> ModelCheckpoint:
    return ClockCheckpoint(
        folder / "checkpoints",
        train_time_interval=timedelta(minutes=training.checkpoint_minutes),
        save_top_k=0,  # the last one is all: names by step are KeptCheckpoints'
        save_last=True,
        enable_version_counter=False,  # the name stays LAST, also where the folder was moved in between
    )


def _throughput(parallel: ParallelConfig) -> ThroughputMonitor:
    """Tokens (``items``) and FLOPs per second; Lightning adds the MFU where it knows the chip's peak.

    Processes that train on the same tokens count their share of them: Lightning multiplies by all processes.
    """
    readers = parallel.tensor * parallel.pipeline
    return ThroughputMonitor(
        batch_size_fn=lambda batch: len(as_examples(batch).input_ids) / readers,  # type: ignore[arg-type, return-value]
        length_fn=lambda batch: as_examples(batch).input_ids.numel() / readers,  # type: ignore[arg-type, return-value]
        window_size=10,
    )


def _fitted(
    trainer: lightning.Trainer,
    module: LanguageModel,
    counter: ComputeBudget,
    metrics: RunMetrics,
    monitor: RouterMonitor,
) -> Fitted:
    tail = [loss for step, loss in metrics.losses if step > 0.9 * trainer.global_step]
    layers = list(monitor.last.values())

    def mean(values: list[float], empty: float) -> float:
        return sum(values) / len(values) if values else empty

    return Fitted(
        steps=trainer.global_step,
        tokens=counter.tokens,
        flops=counter.spent,
        bits_per_byte=module.bits_per_byte if module.bits_per_byte is not None else math.nan,
        train_loss=mean(tail or [loss for _, loss in metrics.losses[-1:]], math.nan),
        seconds=metrics.seconds,
        max_violation=mean([stats.max_violation for stats in layers], math.nan),
        token_entropy=mean([stats.entropy for stats in layers], math.nan),
        dropped_share=mean([stats.dropped for stats in layers], 0.0),
    )


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
