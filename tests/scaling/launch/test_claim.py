"""Claims: one process at most is at work on a run, and what a dead one left is taken over."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from toolkit.scaling.launch import ClaimLostError, RunClaims
from toolkit.scaling.launch.claim import Owner

FORK = multiprocessing.get_context("fork")


def compete(folder: Path, rounds: int) -> None:
    """Where two are in the claimed part at once, one finds the other's file."""
    claims = RunClaims(folder / "claims")
    inside, held = folder / "inside", 0
    while held < rounds:
        with claims.hold("run") as claim:
            if claim is None:
                continue
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
            time.sleep(0.001)
            inside.unlink()
            held += 1


def test_of_several_processes_one_at_a_time_has_the_claim(tmp_path: Path) -> None:
    processes = [FORK.Process(target=compete, args=(tmp_path, 15)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert RunClaims(tmp_path / "claims").owner("run") is None


def test_a_claim_says_whose_it_is_and_excludes_others_until_it_is_released(tmp_path: Path) -> None:
    claims = RunClaims(tmp_path)
    before = time.time()
    with claims.hold("run") as mine, claims.hold("run") as second, claims.hold("another") as other:
        assert mine is not None
        assert other is not None
        assert second is None
        owner = claims.owner("run")
        assert owner == mine.owner
        assert (owner.pid, owner.host) == (os.getpid(), os.uname().nodename)
        assert before <= owner.since <= time.time()
    assert claims.owner("run") is claims.owner("another") is None


def test_an_error_releases_the_claim(tmp_path: Path) -> None:
    claims = RunClaims(tmp_path)
    with pytest.raises(ZeroDivisionError), claims.hold("run"):
        raise ZeroDivisionError
    with claims.hold("run") as again:
        assert again is not None


def hang(folder: Path, ready: Any) -> None:
    with RunClaims(folder).hold("run"):
        ready.set()
        time.sleep(60)


def test_the_claim_of_a_process_that_was_killed_here_is_free_at_once(tmp_path: Path) -> None:
    ready = FORK.Event()
    process = FORK.Process(target=hang, args=(tmp_path, ready))
    process.start()
    assert ready.wait(20)
    claims = RunClaims(tmp_path)
    with claims.hold("run") as claim:
        assert claim is None
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has waited for it: a zombie
    with claims.hold("run") as claim:
        assert claim is not None
    process.join()


def left(folder: Path, age: float, **who: Any) -> None:
    """A claim whose owner showed its last sign of life ``age`` seconds ago."""
    with RunClaims(folder).hold("of the lock"):
        pass
    path = folder / "run.json"
    path.write_text(json.dumps(asdict(replace(Owner.here(), **who))))
    os.utime(path, (time.time() - age,) * 2)


@pytest.mark.parametrize(
    ("age", "who", "alive"),
    [
        (0, {"host": "elsewhere"}, True),
        (250, {"host": "elsewhere"}, True),
        (350, {"host": "elsewhere"}, False),
        (0, {"system": "before the machine was started again"}, True),
        (350, {"system": "before the machine was started again"}, False),
        (0, {}, True),
        (350, {}, True),  # stopped, say, with its run's folder locked
        (350, {"born": ""}, False),  # the system does not tell
        (0, {"born": "1"}, False),  # its number is now another's, this process's
        (0, {"pid": 2**22 + 1}, False),  # beyond the largest number of a process
    ],
)
def test_dead_is_who_is_gone_here_or_was_silent_elsewhere(
    tmp_path: Path, age: float, who: dict[str, Any], alive: bool
) -> None:
    left(tmp_path, age, **who)
    claims = RunClaims(tmp_path)
    assert (claims.owner("run") is not None) == alive
    with claims.hold("run") as claim:
        assert (claim is None) == alive


def test_signs_of_life_keep_a_claim_from_growing_stale(tmp_path: Path) -> None:
    claims = RunClaims(tmp_path, heartbeat=0.05, stale=1.0)
    with claims.hold("run") as mine:
        assert mine is not None
        first = mine.path.stat().st_mtime_ns
        time.sleep(1.5)
        assert claims.owner("run") == mine.owner
        assert mine.path.stat().st_mtime_ns > first


def test_who_was_stopped_meanwhile_sees_at_once_that_it_was_taken_over(tmp_path: Path) -> None:
    """Before its next sign of life is due."""
    claims = RunClaims(tmp_path)
    with claims.hold("run") as mine:
        assert mine is not None
        mine.require()
        mine.path.write_text(json.dumps(asdict(replace(mine.owner, host="elsewhere", token="another"))))
        with pytest.raises(ClaimLostError, match="run was taken over by another process"):
            mine.require()


def test_who_was_taken_over_does_not_go_on_and_leaves_the_other_s_claim(tmp_path: Path) -> None:
    claims, told = RunClaims(tmp_path, heartbeat=0.05, stale=1.0), []
    with claims.hold("run") as mine:
        assert mine is not None
        report = mine.watched(lambda step, steps: told.append(step))
        report(1, 9)
        other = replace(mine.owner, host="elsewhere", token="another")
        mine.path.write_text(json.dumps(asdict(other)))
        deadline = time.monotonic() + 20
        with pytest.raises(ClaimLostError, match="run was taken over by another process"):
            while time.monotonic() < deadline:
                report(2, 9)
                time.sleep(0.01)
    assert told[0] == 1
    assert json.loads((tmp_path / "run.json").read_text())["token"] == "another"


def test_a_stale_time_that_one_late_sign_of_life_exceeds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stale=10.0: it must be 3 heartbeats=20.0 or more"):
        RunClaims(tmp_path, stale=10.0)
