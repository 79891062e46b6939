"""A sweep killed with signal 9 in the middle, started again, against one that was not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from end_to_end_cases import SCRIPT, Settings, arguments, deterministic, environment

from toolkit.scaling import StudyFolder

SECONDS_TO_DIE = 10.0


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended but that nobody waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_a_killed_sweep_goes_on_to_the_results_of_an_unbroken_one(
    study: Settings, unbroken: StudyFolder, tmp_path: Path
) -> None:
    folder, log = StudyFolder(tmp_path / "study"), tmp_path / "log"
    command = [sys.executable, str(SCRIPT), *arguments(study, out=str(folder.path), workers="2")]
    with log.open("w") as output:
        first = subprocess.Popen(command, stdout=output, stderr=output, env=environment())
        try:
            deadline = time.monotonic() + 240
            while len(lines(folder.path / "results.csv")) < 2:  # the header, and a run
                assert first.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            workers = children(first.pid)
        finally:
            first.send_signal(signal.SIGKILL)
            first.wait()
    assert len(workers) >= 2
    deadline = time.monotonic() + SECONDS_TO_DIE
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers outlive their sweep"
        time.sleep(0.05)
    finished = lines(folder.path / "results.csv")
    assert 2 <= len(finished) < 5, "it was to be killed half way"
    begun = {path.name for path in (folder.path / "runs").iterdir()} - {line.split(",")[0] for line in finished}
    assert begun, "a run was to be cut off"
    assert not (folder.path / "report.md").exists()

    second = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300, check=False)
    assert second.returncode == 0, second.stderr[-3000:]
    assert f"{len(finished) - 1} of 4 runs are finished already" in second.stdout
    again = lines(folder.path / "results.csv")
    assert again[: len(finished)] == finished  # not run again
    names = [line.split(",")[0] for line in again[1:]]
    assert len(names) == len(set(names)) == 4
    key = {row.run: row for row in folder.table.read()}
    expected = unbroken.table.read()
    assert deterministic([key[row.run] for row in expected]) == deterministic(expected)
    for row in expected:
        steps = [
            [line.split('"milliseconds"')[0] for line in lines(place.run(row.run) / "metrics.jsonl")]
            for place in (folder, unbroken)
        ]
        assert steps[0] == steps[1]
    for place in (folder, unbroken):
        assert (place.path / "report.md").read_text().startswith("# Dense against sparse at equal compute")
        for name in ("isoflop.png", "frontier.png", "expert_load.png"):
            assert (place.path / name).read_bytes().startswith(b"\x89PNG")
        assert not list(place.path.glob(".*"))  # no half-written file is left


BY_THE_REPORT = (".npz", ".sweep")
"""Ends of what the report, which is written anew, keeps in a run's folder and beside them."""


def test_a_finished_study_run_again_trains_nothing(study: Settings, unbroken: StudyFolder) -> None:
    def state() -> dict[str, int]:
        runs = (path for path in (unbroken.path / "runs").glob("*/*") if path.suffix not in BY_THE_REPORT)
        return {str(path): path.stat().st_mtime_ns for path in (unbroken.table.path, unbroken.step_seconds, *runs)}

    before = state()
    command = [sys.executable, str(SCRIPT), *arguments(study, out=str(unbroken.path), workers="1")]
    run = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "4 of 4 runs are finished already and are not run again" in run.stdout
    assert state() == before
    assert (unbroken.path / "report.md").stat().st_size > 0
