"""A sweep of this machine that is asked to end: its runs save, none is begun, and it leaves with code 75."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launch_work import RUNS, SECONDS, log, row, sweep_alone, trained, work

from toolkit.scaling import PlannedRun, RunResult, StudyFolder
from toolkit.scaling.launch import LocalLauncher, RunClaims, SweepQueue, SweepSettings
from toolkit.scaling.progress import SweepProgress
from toolkit.scaling.sweep import _execute_in_step
from toolkit.training.interruption import Interrupted
from toolkit.training.termination import START_AGAIN, AskedToEnd, TermNote

WORKERS = 2


def train_until_asked(
    run: PlannedRun, corpus: Any, how: SweepSettings, seconds: float, report: Any, begin: Any
) -> RunResult:
    """Stands for training, which saves when it is asked to end."""
    log(how.folder, run)
    with TermNote() as term:
        while not term.asked:
            time.sleep(0.02)
    (how.folder.path / f"{run.name}.saved").touch()
    raise Interrupted(how.folder.path, 1)


def asked_in_the_end(
    run: PlannedRun, corpus: Any, how: SweepSettings, seconds: float, report: Any, begin: Any
) -> RunResult:
    """Stands for a run that is asked to end when it has done its last step, and finishes."""
    log(how.folder, run)
    with TermNote():
        signal.raise_signal(signal.SIGTERM)
    return row(run)


def ask(folder: Path, whom: Callable[[], int]) -> None:
    while len(trained(folder)) < WORKERS:
        time.sleep(0.02)
    os.kill(whom(), signal.SIGTERM)


def first_worker(folder: Path) -> int:
    return int((folder / "trained.log").read_text().split()[1])


@pytest.mark.parametrize("asked", ["sweep", "worker"])
def test_when_a_sweep_or_one_of_its_workers_is_asked_to_end_all_its_runs_save(tmp_path: Path, asked: str) -> None:
    given = work(tmp_path, train_until_asked)
    whom = os.getpid if asked == "sweep" else lambda: first_worker(tmp_path)
    threading.Thread(target=ask, args=(tmp_path, whom), daemon=True).start()
    with SweepProgress(RUNS, RUNS, SECONDS, WORKERS) as progress:
        launcher = LocalLauncher(given, WORKERS, progress.update)
        launcher._context = multiprocessing.get_context("fork")  # type: ignore[assignment]  # seconds faster
        with pytest.raises(AskedToEnd) as left:
            SweepQueue(RUNS, given.settings.folder, given.beginnings, progress).work_off(launcher)
    assert left.value.code == START_AGAIN
    names = trained(tmp_path)
    assert len(names) == WORKERS, "another run was begun"
    assert all((tmp_path / f"{name}.saved").exists() for name in names)
    claims = RunClaims(StudyFolder(tmp_path).claims)
    assert all(claims.owner(name) is None for name in names)


def test_after_a_run_that_was_asked_in_its_end_no_other_is_begun(tmp_path: Path) -> None:
    with pytest.raises(AskedToEnd):
        sweep_alone(tmp_path, asked_in_the_end)
    assert [row.run for row in StudyFolder(tmp_path).table.read()] == trained(tmp_path) == [RUNS[0].name]


def test_nor_where_a_run_has_several_processes(tmp_path: Path) -> None:
    given = work(tmp_path, asked_in_the_end)
    with SweepProgress(RUNS, RUNS, SECONDS, 1) as progress, pytest.raises(AskedToEnd):
        _execute_in_step(RUNS, given, progress)
    assert [row.run for row in StudyFolder(tmp_path).table.read()] == trained(tmp_path) == [RUNS[0].name]
