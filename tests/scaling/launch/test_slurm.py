"""Jobs of a cluster: each run once, the killed again, the same command goes on; with a stand-in, and with submitit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_submitit
import pytest
from launch_work import NAMES, RUNS, SECONDS, Work, sweep_alone, train, train_or_hang, trained, work

from toolkit.scaling import PlannedRun, RunResult, StudyFolder
from toolkit.scaling.launch import Ended, SlurmLauncher, SlurmSettings, SweepQueue, SweepSettings, slurm
from toolkit.scaling.launch.settings import CLUSTERS
from toolkit.scaling.progress import SweepProgress

HERE = SlurmSettings(cluster="local", gpus_per_task=0, jobs_at_once=3)


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> type[fake_submitit.AutoExecutor]:
    monkeypatch.setattr(slurm, "PAUSE_SECONDS", 0.02)
    return fake_submitit.install(monkeypatch)


def watch(given: Work, settings: SlurmSettings, runs: list[PlannedRun] = RUNS) -> None:
    """What the command does, from planning on."""
    done = {row.run for row in given.settings.folder.table.read()}
    todo = [run for run in runs if run.name not in done]
    with SweepProgress(runs, todo, SECONDS, 1) as progress:
        queue = SweepQueue(todo, given.settings.folder, given.beginnings, progress)
        queue.work_off(SlurmLauncher(given, settings, given.settings.folder.jobs))


def in_table(folder: Path) -> list[str]:
    return sorted(row.run for row in StudyFolder(folder).table.read())


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_every_run_is_a_job_and_no_more_are_submitted_than_may_be(
    tmp_path: Path, executor: type[fake_submitit.AutoExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = []
    submit = executor.submit

    def counted(self: Any, *call: Any) -> Any:
        job = submit(self, *call)
        at_once.append(sum(not job.done() for job in executor.jobs))
        return job

    monkeypatch.setattr(executor, "submit", counted)
    watch(work(tmp_path), HERE)
    assert sorted(trained(tmp_path)) == in_table(tmp_path) == sorted(NAMES)
    assert len(executor.jobs) == len(NAMES)
    assert max(at_once) <= 3
    assert {path.name.split("_")[0] for path in tmp_path.glob("jobs/*_result.pkl")} == {
        job.job_id for job in executor.jobs
    }


def test_a_job_that_is_killed_is_submitted_again(tmp_path: Path, executor: type[fake_submitit.AutoExecutor]) -> None:
    (tmp_path / "hang").touch()

    def kill() -> None:
        until(lambda: len(trained(tmp_path)) == 3)
        (tmp_path / "hang").unlink()
        os.kill(executor.jobs[1].process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    watch(work(tmp_path, hang_until_killed), HERE)
    killer.join()
    assert in_table(tmp_path) == sorted(NAMES)
    assert sorted(trained(tmp_path)) == sorted([*NAMES, NAMES[1]])


def hang_until_killed(
    run: PlannedRun, corpus: Any, how: SweepSettings, seconds: float, report: Any, begin: Any
) -> RunResult:
    """The second run's first job never ends by itself."""
    if run.name == NAMES[1] and run.name not in trained(how.folder.path):
        (how.folder.path / "trained.log").open("a").write(f"{run.name} {os.getpid()}\n")
        time.sleep(60)
    return train_or_hang(run, corpus, how, seconds, report, begin)


def failing(run: PlannedRun, corpus: Any, how: SweepSettings, seconds: float, report: Any, begin: Any) -> RunResult:
    if run.name == NAMES[2]:
        raise ValueError("context=5000: it must be at most 100")
    return train(run, corpus, how, seconds, report, begin)


def test_a_job_that_fails_ends_the_sweep_with_its_reason_and_is_not_submitted_again(
    tmp_path: Path, executor: type[fake_submitit.AutoExecutor]
) -> None:
    with pytest.raises(RuntimeError, match=f"run {NAMES[2]} failed; finished runs are kept") as error:
        watch(work(tmp_path, failing), HERE)
    assert "context=5000: it must be at most 100" in str(error.value.__cause__)
    for job in executor.jobs:
        job.process.join()
    assert NAMES[2] not in in_table(tmp_path)


def test_jobs_outlive_their_launcher_and_the_same_command_goes_on(
    tmp_path: Path, executor: type[fake_submitit.AutoExecutor], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hang").touch()
    given = work(tmp_path, train_or_hang)
    with pytest.raises(KeyboardInterrupt), SlurmLauncher(given, HERE, given.settings.folder.jobs) as first:
        for run in RUNS[:3]:
            first.start(run)
        until(lambda: len(trained(tmp_path)) == 3)
        raise KeyboardInterrupt
    assert "scancel 1000 1001 1002" in capsys.readouterr().err
    opener = threading.Timer(0.5, (tmp_path / "hang").unlink)
    opener.start()
    watch(given, HERE)
    opener.join()
    assert sorted(trained(tmp_path)) == in_table(tmp_path) == sorted(NAMES)  # none twice
    assert len(executor.jobs) == len(NAMES)


def test_jobs_and_a_launcher_of_this_machine_share_the_runs(
    tmp_path: Path, executor: type[fake_submitit.AutoExecutor]
) -> None:
    beside = multiprocessing.get_context("fork").Process(target=sweep_alone, args=(tmp_path,))
    beside.start()
    watch(work(tmp_path), HERE)
    beside.join(60)
    assert beside.exitcode == 0
    assert sorted(trained(tmp_path)) == in_table(tmp_path) == sorted(NAMES)


def test_a_requeued_job_is_the_same_call(tmp_path: Path, executor: type[fake_submitit.AutoExecutor]) -> None:
    job = slurm.SlurmJob(work(tmp_path), "cpu")
    again = job.checkpoint(RUNS[0])
    assert (again.function, again.args) == (job, (RUNS[0],))


def test_a_machine_with_another_device_than_was_planned_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="accelerator='cpu': it must be 'gpu' where the jobs run"):
        slurm.SlurmJob(work(tmp_path), "gpu")(RUNS[0])
    assert trained(tmp_path) == []


def test_settings_reach_the_executor_by_submitit_s_names(
    tmp_path: Path, executor: type[fake_submitit.AutoExecutor]
) -> None:
    asked = replace(HERE, partition="long", minutes=90, gpus_per_task=1, memory_gb=7, options={"account": "mine"})
    given = work(tmp_path)
    SlurmLauncher(given, asked, tmp_path / "jobs")
    made = executor.last
    assert made is not None
    assert (made.cluster, made.folder) == ("local", tmp_path / "jobs")
    assert made.parameters == {
        "name": "sweep",
        "timeout_min": 90,
        "cpus_per_task": 1,
        "mem_gb": 7,
        "slurm_partition": "long",
        "slurm_gpus_per_task": 1,
        "slurm_additional_parameters": {"account": "mine"},
        "slurm_setup": ["export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE"],
    }
    SlurmLauncher(given, HERE, tmp_path / "jobs")
    assert executor.last is not None
    assert set(executor.last.parameters) == {"name", "timeout_min", "cpus_per_task", "slurm_setup"}


def test_without_submitit_or_slurm_it_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "submitit", None)
        with pytest.raises(ImportError, match=r'needs submitit: pip install "sparse-toolkit\[slurm\]"'):
            SlurmLauncher(work(tmp_path), HERE, tmp_path)
    fake_submitit.install(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="slurm.cluster='slurm': it must be 'local' where there is no SLURM"):
        SlurmLauncher(work(tmp_path), SlurmSettings(), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"minutes": 0}, "minutes=0: it must be positive"),
        ({"jobs_at_once": 0}, "jobs_at_once=0: it must be positive"),
        ({"gpus_per_task": 2}, "gpus_per_task=2: it must be 0 or 1"),
        ({"memory_gb": -1}, "memory_gb=-1: it must be 0"),
        ({"cluster": "pbs"}, "cluster='pbs': it must be one of 'slurm', 'local', 'debug'"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlurmSettings(**settings)


@pytest.fixture
def submitit(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real one, whose jobs are started anew and find what these tests import."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return pytest.importorskip("submitit")


@pytest.mark.slow
@pytest.mark.parametrize("cluster", CLUSTERS[1:])
def test_submitit_itself_does_the_same(tmp_path: Path, submitit: Any, cluster: str) -> None:
    watch(work(tmp_path), replace(HERE, cluster=cluster), RUNS[:4])
    assert sorted(trained(tmp_path)) == in_table(tmp_path) == sorted(NAMES[:4])


@pytest.mark.slow
def test_submitit_requeues_a_job_that_is_preempted(tmp_path: Path, submitit: Any) -> None:
    (tmp_path / "hang").touch()
    given = work(tmp_path, train_or_hang)
    with SlurmLauncher(given, HERE, given.settings.folder.jobs) as launcher:
        launcher.start(RUNS[0])
        until(lambda: len(trained(tmp_path)) == 1, seconds=120)
        job = int((tmp_path / "trained.log").read_text().split()[1])
        os.kill(job, signal.SIGUSR2)  # what SLURM is asked to send before it takes the machine away
        until(lambda: len(trained(tmp_path)) == 2, seconds=120)
        (tmp_path / "hang").unlink()
        ended: list[Ended] = []
        until(lambda: ended.extend(launcher.wait(0.0)) or ended, seconds=120)
    assert ended == [Ended(RUNS[0])]
    assert in_table(tmp_path) == NAMES[:1]
