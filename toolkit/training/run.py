"""One training run in one folder: start it, or go on from its last checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
from torch import Tensor

from toolkit.data import Corpus, TaskMixture
from toolkit.models import DecoderConfig
from toolkit.parallel import ParallelConfig, is_main_process
from toolkit.parallel.failure import PeerWatch
from toolkit.training.batches import StepBatches
from toolkit.training.beginning import begin, recorded_settings
from toolkit.training.budget import ComputeBudget
from toolkit.training.checkpoints.store import CheckpointStore
from toolkit.training.config import TrainingConfig
from toolkit.training.exact_resume import ExactResume
from toolkit.training.fitted import Fitted, read_fitted
from toolkit.training.health import FiniteLoss
from toolkit.training.interruption import SaveOnTerm
from toolkit.training.kept_checkpoints import KeptCheckpoints
from toolkit.training.language_model import LanguageModel
from toolkit.training.metrics import RunMetrics
from toolkit.training.peers import WatchPeers
from toolkit.training.precision import resolve_precision
from toolkit.training.progress import ReportProgress
from toolkit.training.router_monitor import RouterMonitor
from toolkit.training.run_lock import RunLock
from toolkit.training.trainer import build_trainer, clock_checkpoints, throughput
from toolkit.training.vocabulary import byte_lengths, require_task_rows


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
    included: a checkpoint holds every process's random number generators. With another number of readers of the batch
    or of pipeline stages those are seeded anew, and a warning says so.

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
        facts = {"budget": budget, "precision": precision, "validation_windows": validation_count}
        settings = recorded_settings(model, training, parallel, corpus, mixture, initial) | facts
        begin(store, lock, training, settings, beginning)
        lightning.seed_everything(training.seed, verbose=False)
        if mixture is not None:
            require_task_rows(mixture, corpus, model)
        module = LanguageModel(model, training, byte_lengths(corpus, model))
        if initial is not None:
            module.decoder.load_state_dict(dict(initial))
        if precision == "64-true":  # Lightning would load a checkpoint into fp32 first, and round it
            module.double()
        data = StepBatches(corpus.train, corpus.validation, training, validation_count, mixture)
        counter = ComputeBudget(budget)
        metrics = RunMetrics(folder, counter, training.log_every, hparams or {})
        monitor = RouterMonitor(folder, training.log_every)
        callbacks = [counter, metrics, monitor, FiniteLoss(), WatchPeers(watch)]
        callbacks += [kept, clock_checkpoints(folder, training), term, throughput(parallel)]
        if report is not None:
            callbacks.append(ReportProgress(report, training.steps))
        callbacks.append(ExactResume())  # it may validate when training starts: the others have started then
        trainer = build_trainer(folder, training, parallel, precision, callbacks, progress_bar, store)
        trainer.fit(module, data, ckpt_path=beginning, weights_only=True)
        trainer.save_checkpoint(store.last)  # the trained model: the last one on the clock may be minutes older
        if module.bits_per_byte is None:  # the checkpoint was the finished run's, so nothing was left to train
            trainer.validate(module, data, verbose=False)
        return read_fitted(trainer, module, counter, metrics, monitor)
