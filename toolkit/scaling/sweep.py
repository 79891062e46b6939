"""Runs what a study planned: several runs at once, each finished one recorded before the next begins."""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from toolkit.compute.cost import KINDS, Cost
from toolkit.data import Corpus, CorpusConfig, prepare_corpus
from toolkit.files import write_atomically
from toolkit.parallel import ParallelConfig, is_main_process
from toolkit.routing.finite import DivergedError
from toolkit.scaling.beginnings import Beginnings
from toolkit.scaling.folder import StudyFolder
from toolkit.scaling.plan import PlannedRun
from toolkit.scaling.plan.branches import branches, trunks_first
from toolkit.scaling.progress import SweepProgress
from toolkit.scaling.results import RunResult
from toolkit.training.probe import probe_step_seconds

if TYPE_CHECKING:
    from toolkit.training.run import Fitted

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class SweepSettings:
    """How runs are executed; none of it changes what a model learns.

    Attributes:
        folder: the study's.
        corpus: the text.
        cache: folder of tokenised corpora.
        parallel: processes of one run.
        workers: runs at once, each in a process of its own; 1 runs them in this process.
        threads: CPU threads of each run.
        validation_count: validation windows, the same for every run.
        code: version of the code that trains, as the rows tell it.
        branch: begin runs that are the beginning of a longer one from that one's checkpoint, see
            :func:`toolkit.scaling.plan.branches.branches`. Each is what it would have been from step 0, but for
            dropout and router noise, which are drawn anew from there on.
    """

    folder: StudyFolder
    corpus: CorpusConfig
    cache: Path
    parallel: ParallelConfig
    workers: int
    threads: int
    validation_count: int
    code: str = ""
    branch: bool = False


def step_seconds(
    runs: Sequence[PlannedRun], folder: StudyFolder | None, threads: int, device: str = "cpu"
) -> dict[str, float]:
    """Isolated seconds of one step of every cell (family and width), measured once and kept.

    Measured in this process with nothing beside it, all cells in turn. They are kept in ``folder``, which
    must be claimed for these runs' settings; with None (a dry run) they are neither read nor kept.
    """
    cells = {_cell(run, threads): run for run in runs}
    known: dict[str, float] = {}
    if folder is not None and folder.step_seconds.exists():
        known = json.loads(folder.step_seconds.read_text())
    if set(cells) - set(known):
        _settle(threads)
        where = "cuda" if device == "gpu" else "cpu"
        load = os.getloadavg()[0]
        measured = probe_step_seconds([(run.model, run.training) for run in cells.values()], where)
        known |= dict(zip(cells, measured, strict=True))
        if folder is not None and folder.path.exists():
            write_atomically(folder.step_load, json.dumps(round(load, 2)) + "\n")
            write_atomically(folder.step_seconds, json.dumps(known, indent=2) + "\n")
    return {run.name: known[_cell(run, threads)] for run in runs}


def run_sweep(runs: Sequence[PlannedRun], settings: SweepSettings, seconds: dict[str, float]) -> list[RunResult]:
    """Execute every run that the table does not hold yet; return all finished rows in planned order.

    A killed sweep is gone on with by calling this again: finished runs are not run again, and a run
    that was cut off goes on from its last checkpoint, or starts anew where it has none.

    With ``settings.branch`` a branch waits until its trunk is in the table. The checkpoint that it begins from goes
    when all that begin from it are in the table too.

    Args:
        runs: the plan.
        settings: how to execute it.
        seconds: isolated seconds of one step, by run name.
    """
    table = settings.folder.table
    done = {row.run for row in table.read()}
    beginnings = Beginnings(settings.folder, branches(runs) if settings.branch else {})
    todo = trunks_first([run for run in runs if run.name not in done], beginnings.points)
    if is_main_process():
        beginnings.discard(done)
    with SweepProgress(runs, todo, seconds, settings.workers) as progress:
        for run, row in _execute(todo, settings, seconds, progress, beginnings):
            if is_main_process():
                table.append(row)
                progress.finished(run, row)
                done.add(run.name)
                beginnings.discard(done)
    rows = {row.run: row for row in table.read()} if is_main_process() else {}
    return [rows[run.name] for run in runs if run.name in rows]


def _execute(
    todo: Sequence[PlannedRun],
    settings: SweepSettings,
    seconds: dict[str, float],
    progress: SweepProgress,
    beginnings: Beginnings,
) -> Iterator[tuple[PlannedRun, RunResult]]:
    if settings.workers > 1 and len(todo) > 1:
        yield from _in_processes(todo, settings, seconds, progress, beginnings)
        return
    _settle(settings.threads)
    corpus = prepare_corpus(settings.corpus, settings.cache) if todo else None
    for run in todo:
        assert corpus is not None
        with _named(run):
            row = train_one(run, corpus, settings, seconds[run.name], progress.reporter(run.name), beginnings)
        yield run, row


def _in_processes(
    todo: Sequence[PlannedRun],
    settings: SweepSettings,
    seconds: dict[str, float],
    progress: SweepProgress,
    beginnings: Beginnings,
) -> Iterator[tuple[PlannedRun, RunResult]]:
    # Threads that spin while they wait stall the runs beside them.
    os.environ.update(OMP_NUM_THREADS=str(settings.threads), OMP_WAIT_POLICY="PASSIVE")
    context = get_context("spawn")
    messages, stop = context.Queue(), context.Event()
    workers = min(settings.workers, len(todo))
    pool = ProcessPoolExecutor(
        workers, context, initializer=_start_worker, initargs=(settings, messages, stop, os.getpid())
    )
    waiting = list(todo)
    running: dict[Future[RunResult], PlannedRun] = {}
    try:
        while waiting or running:
            while len(running) < workers:  # none queued behind them that a stop could not call back
                run = beginnings.next(waiting, list(running.values()))
                if run is None:
                    break
                waiting.remove(run)
                running[pool.submit(_train_in_worker, run, seconds[run.name], beginnings)] = run
            finished, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            while not messages.empty():
                progress.update(*messages.get())
            for future in finished:
                run = running.pop(future)
                with _named(run):
                    row = future.result()
                yield run, row
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _named(run: PlannedRun) -> Iterator[None]:
    """Say which run failed: by now its settings have been checked, so that it is no user's error."""
    try:
        yield
    except SystemExit:  # how Lightning passes on Ctrl-C
        raise KeyboardInterrupt from None
    except Exception as error:
        raise RuntimeError(f"run {run.name} failed; finished runs are kept") from error


def train_one(
    run: PlannedRun,
    corpus: Corpus,
    settings: SweepSettings,
    seconds: float,
    report: Callable[[int, int], None] | None = None,
    beginnings: Beginnings | None = None,
) -> RunResult:
    """Train one planned run in its folder and say what it reached.

    A run that diverges ends with a row too, its bits per byte nan. Where its loss or its routers' logits are no longer
    finite, the steps, tokens and FLOPs are those until then.

    What a branch reached is what it would have reached alone, and its tokens, FLOPs and seconds are those of all its
    steps, ``seconds_wall`` with what the trunk took for the shared ones.

    Args:
        run: what to train.
        corpus: the tokens.
        settings: of the sweep.
        seconds: isolated seconds of one step.
        report: called with (step, steps) as it goes.
        beginnings: the checkpoints that branches begin from; None where all runs begin at step 0.
    """
    from toolkit.training.checkpoints.store import CheckpointStore
    from toolkit.training.health import NotFiniteError
    from toolkit.training.run import fit

    folder, beginnings = settings.folder.run(run.name), beginnings or Beginnings(settings.folder, {})
    begun = any(path.exists() for path in CheckpointStore(folder).own)
    if folder.exists() and not begun and is_main_process():
        shutil.rmtree(folder)  # cut off before its first checkpoint: nothing in it can be gone on from
    hparams = {"family": run.family, "budget": run.budget, "dim": run.dim, "seed": run.seed}
    hparams.update(learning_rate=run.training.learning_rate, steps=run.training.steps)
    started = time.perf_counter()
    try:
        fitted = fit(
            run.model,
            run.training,
            corpus,
            folder,
            run.budget,
            parallel=settings.parallel,
            validation_count=settings.validation_count,
            keep_at=beginnings.keep_at(run),
            branch=None if begun else beginnings.checkpoint(run),
            hparams=hparams,
            report=report,
        )
    except (DivergedError, NotFiniteError) as error:
        fitted = _until_diverged(run, error.step - 1, time.perf_counter() - started)
    return _row(run, fitted, corpus, settings, seconds)


def _until_diverged(run: PlannedRun, steps: int, seconds: float) -> Fitted:
    """What a run reached that could take no more than ``steps`` steps."""
    from toolkit.training.run import Fitted

    tokens, flops = steps * run.training.tokens_per_step, run.cost.training_flops["exact"]
    return Fitted(steps, tokens, tokens * flops, math.nan, math.nan, seconds, math.nan, math.nan, math.nan)


def _row(run: PlannedRun, fitted: Fitted, corpus: Corpus, settings: SweepSettings, seconds: float) -> RunResult:
    """The table's row; ``seconds`` of one step by itself."""
    flops = {name: fitted.tokens * per_token for name, per_token in run.cost.training_flops.items()}
    return RunResult(
        run=run.name,
        family=run.family,
        budget=run.budget,
        dim=run.dim,
        seed=run.seed,
        parameters=run.cost.total_parameters,
        active_parameters=run.cost.total_active_parameters,
        steps=fitted.steps,
        tokens=fitted.tokens,
        epochs=corpus.epochs(fitted.tokens),
        flops_planned=run.flops["exact"],
        flops_spent=fitted.flops,
        flops_palm=flops["palm"],
        flops_hardware=flops["hardware"],
        learning_rate=run.training.learning_rate,
        bits_per_byte=fitted.bits_per_byte,
        train_loss=fitted.train_loss,
        seconds=fitted.steps * seconds,
        seconds_wall=fitted.seconds,
        dropped_share=fitted.dropped_share,
        max_violation=fitted.max_violation,
        token_entropy=fitted.token_entropy,
        layers=len(run.model.blocks),
        batch_size=run.training.batch_size,
        **_parameter_counts(run.cost),
        training_bytes=round(run.memory(settings.parallel.world_size).training),
        stage=run.stage,
        code=settings.code,
        corpus=corpus.digest[:16],
    )


def _parameter_counts(cost: Cost) -> dict[str, int]:
    """The columns of a row that count parameters by kind."""
    columns = {"experts": "expert", "shared_experts": "shared_expert", "norms": "norm"}
    counts = {f"{columns.get(kind, kind)}_parameters": cost.parameters.get(kind, 0) for kind in KINDS}
    return counts | {"active_expert_parameters": cost.active_parameters.get("experts", 0)}


_worker: dict[str, Any] = {}
"""What a worker process opens once for all its runs."""


def _start_worker(settings: SweepSettings, messages: Any, stop: Any, parent: int) -> None:
    _settle(settings.threads)
    threading.Thread(target=_end_with, args=(parent, stop), daemon=True).start()
    corpus = prepare_corpus(settings.corpus, settings.cache)
    _worker.update(settings=settings, messages=messages, corpus=corpus)


def _end_with(parent: int, stop: Any) -> None:
    """A worker whose sweep was stopped or killed must not go on in a folder that a new sweep takes up."""
    while os.getppid() == parent and not stop.is_set():
        time.sleep(POLL_SECONDS)
    os._exit(1)


def _train_in_worker(run: PlannedRun, seconds: float, beginnings: Beginnings) -> RunResult:
    messages = _worker["messages"]

    def report(step: int, steps: int) -> None:
        messages.put((run.name, step, steps))

    return train_one(run, _worker["corpus"], _worker["settings"], seconds, report, beginnings)


def _settle(threads: int) -> None:
    """Set up this process for training and for timing alike."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # attention weights near 0 would otherwise slow a CPU's products


def _cell(run: PlannedRun, threads: int) -> str:
    return f"{run.family}-dim{run.dim}-threads{threads}"
