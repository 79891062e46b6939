"""The queue: every run in the table once, whoever trained it, branches after their trunks, the killed again."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from launch_work import NAMES, RUNS, SECONDS, row, sweep_alone, train, train_or_hang, trained, work

from toolkit.scaling import PlannedRun, StudyFolder
from toolkit.scaling.launch import Ended, RunClaims, SweepQueue, ThisProcess
from toolkit.scaling.launch import queue as queue_module
from toolkit.scaling.launch.claim import Owner
from toolkit.scaling.plan.branches import branches, trunks_first
from toolkit.scaling.sweep import SweepProgress

FORK = multiprocessing.get_context("fork")


def in_table(folder: Path) -> list[str]:
    return [row.run for row in StudyFolder(folder).table.read()]


@pytest.mark.parametrize("branch", [False, True])
def test_launchers_side_by_side_in_one_folder_train_each_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, branch: bool
) -> None:
    monkeypatch.setattr(queue_module, "LOOK_SECONDS", 0.1)
    launchers = [FORK.Process(target=sweep_alone, args=(tmp_path, train, branch)) for _ in range(3)]
    for launcher in launchers:
        launcher.start()
    for launcher in launchers:
        launcher.join(120)
        assert launcher.exitcode == 0  # each came back, and only when all was done
    assert sorted(trained(tmp_path)) == sorted(in_table(tmp_path)) == sorted(NAMES)
    pids = {line.split()[1] for line in (tmp_path / "trained.log").read_text().splitlines()}
    assert len(pids) > 1, "one of them did it all"
    if branch:
        order = in_table(tmp_path)
        assert all(order.index(point.trunk) < order.index(name) for name, point in branches(RUNS).items())


def test_the_run_of_a_launcher_that_was_killed_is_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "hang").touch()
    first = FORK.Process(target=sweep_alone, args=(tmp_path, train_or_hang))
    first.start()
    deadline = time.monotonic() + 30
    while not trained(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    (tmp_path / "hang").unlink()
    sweep_alone(tmp_path, train_or_hang)
    assert trained(tmp_path) == [NAMES[0], *NAMES]
    assert in_table(tmp_path) == NAMES


def test_what_another_has_claimed_is_left_to_it_and_taken_up_when_it_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_module, "LOOK_SECONDS", 0.1)
    claims = RunClaims(StudyFolder(tmp_path).claims)
    path = claims.folder / f"{NAMES[0]}.json"
    claims.folder.mkdir(parents=True)
    path.write_text(json.dumps(asdict(replace(Owner.here(), host="elsewhere"))))
    given = work(tmp_path)

    class Progress(SweepProgress):
        def finished(self, run: PlannedRun, row: Any) -> None:
            super().finished(run, row)
            if self._done == len(RUNS) - 1:
                path.unlink()  # all others are done: the other one gives up

    with Progress(RUNS, RUNS, SECONDS, 1) as progress:
        queue = SweepQueue(RUNS, given.settings.folder, given.beginnings, progress)
        queue.work_off(ThisProcess(given, progress.update))
    assert in_table(tmp_path) == [*NAMES[1:], NAMES[0]]


class Elsewhere:
    """A launcher of ``room`` places whose workers do what the test says when it is waited for."""

    def __init__(self, folder: Path, room: int, kills: dict[str, int]) -> None:
        self.folder, self.places, self.kills = StudyFolder(folder), room, dict(kills)
        self.at: list[PlannedRun] = []
        self.started: list[str] = []

    @property
    def room(self) -> int:
        return self.places - len(self.at)

    def start(self, run: PlannedRun) -> None:
        assert self.room > 0
        self.at.append(run)
        self.started.append(run.name)

    def wait(self, timeout: float) -> list[Ended]:
        """The last that was started ends, so that the order of ends is not that of starts."""
        if not self.at:
            return []
        run = self.at.pop()
        if self.kills.get(run.name, 0) > 0:
            self.kills[run.name] -= 1
            return [Ended(run, killed=True)]
        self.folder.table.append(row(run))
        return [Ended(run)]

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def worked_off(folder: Path, launcher: Elsewhere, branch: bool = False) -> None:
    given = work(folder, branch=branch)
    todo = trunks_first(RUNS, given.beginnings.points)
    with SweepProgress(RUNS, todo, SECONDS, 1) as progress:
        SweepQueue(todo, given.settings.folder, given.beginnings, progress).work_off(launcher)


@pytest.mark.parametrize("room", [1, 3, 100])
def test_a_branch_is_not_started_before_its_trunk_is_in_the_table(tmp_path: Path, room: int) -> None:
    points = branches(RUNS)
    assert len(points) == 8

    class Watched(Elsewhere):
        def start(self, run: PlannedRun) -> None:
            assert run.name not in points or points[run.name].trunk in in_table(tmp_path)
            super().start(run)

    launcher = Watched(tmp_path, room, {})
    worked_off(tmp_path, launcher, branch=True)
    assert sorted(launcher.started) == sorted(in_table(tmp_path)) == sorted(NAMES)


def test_a_run_whose_worker_was_killed_is_started_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launcher = Elsewhere(tmp_path, 2, {NAMES[3]: 2, NAMES[5]: 1})
    worked_off(tmp_path, launcher)
    times = {name: launcher.started.count(name) for name in NAMES}
    assert times == {name: 1 + {NAMES[3]: 2, NAMES[5]: 1}.get(name, 0) for name in NAMES}
    assert sorted(in_table(tmp_path)) == sorted(NAMES)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert [line.split("]")[0] for line in told] == [f"[{number}/12" for number in range(1, 13)]


def test_a_run_that_is_always_killed_ends_the_sweep(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=f"run {NAMES[0]} was killed 6 times; finished runs are kept"):
        worked_off(tmp_path, Elsewhere(tmp_path, 1, {NAMES[0]: 99}))
