"""Runs what a study planned: several runs at once, each finished one recorded before the next begins."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence

import torch

from toolkit.data import Corpus
from toolkit.files import write_atomically
from toolkit.parallel import is_main_process
from toolkit.routing.finite import DivergedError
from toolkit.scaling.beginnings import Beginnings
from toolkit.scaling.folder import StudyFolder
from toolkit.scaling.launch import (
    Launcher,
    LocalLauncher,
    SlurmLauncher,
    SweepQueue,
    SweepSettings,
    SweepWork,
    ThisProcess,
)
from toolkit.scaling.launch.launcher import named
from toolkit.scaling.launch.queue import STOPPED
from toolkit.scaling.launch.work import settle
from toolkit.scaling.plan import PlannedRun
from toolkit.scaling.plan.branches import branches, trunks_first
from toolkit.scaling.progress import SweepProgress
from toolkit.scaling.results import RunResult
from toolkit.scaling.run_row import run_row, until_diverged
from toolkit.training.probe import probe_step_seconds
from toolkit.training.termination import AskedToEnd, TermNote, any_process


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
        settle(threads)
        load = os.getloadavg()[0]
        measured = probe_step_seconds([(run.model, run.training) for run in cells.values()], _kind(device))
        known |= dict(zip(cells, measured, strict=True))
        if folder is not None and folder.path.exists():
            write_atomically(folder.step_load, json.dumps(round(load, 2)) + "\n")
            write_atomically(folder.step_seconds, json.dumps(known, indent=2) + "\n")
    return {run.name: known[_cell(run, threads)] for run in runs}


def run_sweep(runs: Sequence[PlannedRun], settings: SweepSettings, seconds: dict[str, float]) -> list[RunResult]:
    """Execute every run that the table does not hold yet; return all finished rows in planned order.

    A killed sweep is gone on with by calling this again: finished runs are not run again, and a run
    that was cut off goes on from its last checkpoint, or starts anew where it has none. Several of these may be at work
    in one folder, on one machine or on many: each run is claimed by one of them (:mod:`toolkit.scaling.launch`), and
    all return when it is finished. A run of several processes is not, and its sweep must be alone in the folder.

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
    with SweepProgress(runs, todo, seconds, settings.at_once) as progress:
        _execute(todo, SweepWork(settings, seconds, beginnings, train_one), progress)
    rows = {row.run: row for row in table.read()} if is_main_process() else {}
    return [rows[run.name] for run in runs if run.name in rows]


def _execute(todo: Sequence[PlannedRun], work: SweepWork, progress: SweepProgress) -> None:
    """Have every run of ``todo`` trained and recorded, here or elsewhere."""
    if todo and work.settings.parallel.world_size > 1:
        _execute_in_step(todo, work, progress)
    elif todo:
        queue = SweepQueue(todo, work.settings.folder, work.beginnings, progress)
        queue.work_off(_launcher(len(todo), work, progress))


def _launcher(runs: int, work: SweepWork, progress: SweepProgress) -> Launcher:
    settings = work.settings
    if settings.launcher == "slurm":
        return SlurmLauncher(work, settings.slurm, settings.folder.jobs)
    workers = min(settings.workers, runs)
    return LocalLauncher(work, workers, progress.update) if workers > 1 else ThisProcess(work, progress.update)


def _execute_in_step(todo: Sequence[PlannedRun], work: SweepWork, progress: SweepProgress) -> None:
    """Runs of several processes, all of which come here and take one run after the other in the same order.

    Nothing is claimed: what one of them found at work elsewhere the others might not. The folder must be theirs alone.

    Raises:
        AskedToEnd: in all, between two runs, if one got SIGTERM.
    """
    settings, corpus = work.settings, work.corpus()
    with TermNote() as term:
        for run in todo:
            with named(run):
                report = progress.reporter(run.name)
                row = work.train(run, corpus, settings, work.seconds[run.name], report, work.beginnings)
            if is_main_process():
                settings.folder.table.append(row)
                progress.finished(run, row)
                work.beginnings.discard({each.run for each in settings.folder.table.read()})
            if any_process(term.asked, torch.device(_kind(settings.parallel.device))):
                raise AskedToEnd(STOPPED)


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
        fitted = until_diverged(run, error.step - 1, time.perf_counter() - started)
    return run_row(run, fitted, corpus, seconds, settings.parallel, settings.code)


def _cell(run: PlannedRun, threads: int) -> str:
    return f"{run.family}-dim{run.dim}-threads{threads}"


def _kind(device: str) -> str:
    """torch's name of a device."""
    return "cuda" if device == "gpu" else "cpu"
