"""What the end of a run means for the sweep that it is of."""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from launch_work import RUNS

from toolkit.scaling.launch.launcher import named
from toolkit.training.health import NotFiniteError
from toolkit.training.interruption import Interrupted


def test_a_run_that_failed_is_named_and_one_asked_to_end_ends_the_sweep_with_its_code() -> None:
    with pytest.raises(RuntimeError, match=f"run {RUNS[0].name} failed"), named(RUNS[0]):
        raise NotFiniteError(3, "rank 0: loss nan")
    with pytest.raises(Interrupted, match="after step 3"), named(RUNS[0]):
        raise Interrupted(Path("last.ckpt"), 3)
    with pytest.raises(KeyboardInterrupt), named(RUNS[0]):
        sys.exit(1)


def stop(kind: str) -> None:
    raise NotFiniteError(3, "rank 0: loss nan") if kind == "nan" else Interrupted(Path("last.ckpt"), 3)


def test_what_a_worker_stopped_with_reaches_its_sweep() -> None:
    """As it is, and without breaking the pool, in which others are at work."""
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        with pytest.raises(NotFiniteError, match="step 3 is not finite: rank 0: loss nan") as found:
            pool.submit(stop, "nan").result()
        assert found.value.step == 3
        with pytest.raises(Interrupted, match="after step 3") as left:
            pool.submit(stop, "asked").result()
        assert left.value.code == 75
        assert pool.submit(int, 1).result() == 1
