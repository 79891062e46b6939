"""A sweep whose runs take no time, and say in a file who trained them; for processes, which import it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from synthetic_study import run_result

from toolkit.data import CorpusConfig
from toolkit.parallel import ParallelConfig
from toolkit.scaling import Family, Grid, IsoFLOP, ModelShape, PlannedRun, RunResult, StudyFolder, plan_isoflop
from toolkit.scaling.beginnings import Beginnings
from toolkit.scaling.launch import SweepQueue, SweepSettings, SweepWork, ThisProcess
from toolkit.scaling.plan.branches import branches, trunks_first
from toolkit.scaling.progress import SweepProgress
from toolkit.training import TrainingConfig

BASE = TrainingConfig(steps=10**6, context=32, batch_size=2, schedule="wsd", warmup_steps=3, decay_share=0.25)
SHAPE = ModelShape((Family("dense"), Family("moe", num_experts=4)), layers=1)
RUNS = plan_isoflop(Grid(tuple(IsoFLOP(flops, (16,)) for flops in (1.7e8, 2.4e8, 3.4e8)), seeds=2), SHAPE, 256, BASE)
"""Twelve: of each family and seed a trunk, the last, and two branches of it."""

NAMES = [run.name for run in RUNS]
SECONDS = dict.fromkeys(NAMES, 0.01)


class Work(SweepWork):
    """One that reads no corpus."""

    def corpus(self) -> Any:
        return None


def train(run: PlannedRun, corpus: Any, how: SweepSettings, seconds: float, report: Any, begin: Any) -> RunResult:
    """Stands for training: a line in ``trained.log``, a moment, a row."""
    log(how.folder, run)
    time.sleep(0.02)
    report(1, 1)
    return row(run)


def train_or_hang(
    run: PlannedRun, corpus: Any, how: SweepSettings, seconds: float, report: Any, begin: Any
) -> RunResult:
    """The same, but while there is a file ``hang`` never to end."""
    log(how.folder, run)
    while (how.folder.path / "hang").exists():
        time.sleep(0.02)
    return row(run)


def row(run: PlannedRun) -> RunResult:
    return replace(run_result(run.family, run.budget, run.dim, run.seed, 2.0), run=run.name)


def log(folder: StudyFolder, run: PlannedRun) -> None:
    with (folder.path / "trained.log").open("a") as file:
        file.write(f"{run.name} {os.getpid()}\n")


def trained(folder: Path) -> list[str]:
    """Names of the runs that were begun, in that order."""
    path = folder / "trained.log"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def work(folder: Path, how: Callable[..., RunResult] = train, branch: bool = False, **settings: Any) -> Work:
    study = StudyFolder(folder)
    beginnings = Beginnings(study, branches(RUNS) if branch else {})
    made = SweepSettings(
        study, CorpusConfig(), folder, ParallelConfig(accelerator="cpu"), 1, 1, 20, branch=branch, **settings
    )
    return Work(made, SECONDS, beginnings, how)


def sweep_alone(folder: Path, how: Callable[..., RunResult] = train, branch: bool = False) -> None:
    """What one launcher of several in ``folder`` does."""
    given = work(folder, how, branch)
    todo = trunks_first(RUNS, given.beginnings.points)
    with SweepProgress(RUNS, todo, SECONDS, 1) as progress:
        SweepQueue(todo, given.settings.folder, given.beginnings, progress).work_off(
            ThisProcess(given, progress.update)
        )
