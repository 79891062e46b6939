"""Processes that watch one another: a death is named, a slow one is left alone."""

from __future__ import annotations

import time

import pytest
from failure_work import frozen, suspended, watched
from gloo import run_processes

from toolkit.parallel.failure import PeerWatch


def test_a_process_that_is_slow_is_not_taken_for_dead() -> None:
    (said, seconds), (other, _) = run_processes(2, watched, "slow")
    assert said == other == ""
    assert seconds > 3  # longer than the timeout of a beat


def test_what_a_process_stopped_with_is_told_to_the_others() -> None:
    (said, _), (own, _) = run_processes(2, watched, "raises")
    assert own == "own error: the disk is full"  # as it was
    assert said == "rank 1 is gone, after ValueError: the disk is full, so rank 0 stops"


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_freezes_does_not_keep_the_others_waiting(rank: int) -> None:
    """Also the one that keeps the store, at which the others look for signs of life."""
    start = time.monotonic()
    with pytest.raises(AssertionError, match=rf"ranks \[{1 - rank}\] ended without a word"):
        run_processes(2, frozen, rank, timeout=30)
    assert time.monotonic() - start < 20


def test_a_job_that_is_suspended_as_a_whole_goes_on() -> None:
    assert run_processes(2, suspended) == ["", ""]


def test_alone_it_does_nothing() -> None:
    watch = PeerWatch()
    watch.start()
    with pytest.raises(RuntimeError, match="connection"), watch.naming():
        raise RuntimeError("connection")
    assert watch.dead() == ""
    watch.stop()


@pytest.mark.parametrize("setting", ["beat", "patience", "timeout"])
def test_settings_that_are_not_positive_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting}=0: it must be positive"):
        PeerWatch(**{setting: 0})
