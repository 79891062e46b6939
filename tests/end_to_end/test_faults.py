"""What goes wrong in a run of several processes: one dies, one computes NaN, all are asked to end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_runs import finish, log_of, losses, start
from test_resume import unbroken  # noqa: F401  # a fixture

LONGEST = 20.0
"""Seconds in which the processes that are left must end."""


def ended(folder: Path, processes: list[Any], after: float = 0.0) -> list[int]:
    """Exit codes, once all have ended; within LONGEST of the first that does."""
    end = time.monotonic() + 60
    while all(process.is_alive() for process in processes):
        assert time.monotonic() < end, [log_of(folder, rank) for rank in range(len(processes))]
        time.sleep(0.01)
    end = time.monotonic() + LONGEST
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    assert not any(process.is_alive() for process in processes), [log_of(folder, r) for r in range(len(processes))]
    return [process.exitcode for process in processes]


@pytest.mark.parametrize(("world_size", "dies"), [(2, 1), (2, 0), pytest.param(4, 2, marks=pytest.mark.slow)])
def test_if_a_process_dies_the_others_end_and_name_it(tmp_path: Path, world_size: int, dies: int) -> None:
    folder = tmp_path / "run"
    codes = ended(folder, start(folder, "dense", world_size, die_at=(dies, 7)))
    assert codes[dies] == 9
    for rank in set(range(world_size)) - {dies}:
        assert codes[rank] == 1
        said = log_of(folder, rank)
        assert f"rank {dies} is gone" in said or (dies == 0 and "key-value store is gone" in said and "rank 0" in said)
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 7


@pytest.mark.parametrize("rank", [0, 1])
def test_a_loss_that_is_not_finite_stops_all_with_step_rank_and_layer(tmp_path: Path, rank: int) -> None:
    folder = tmp_path / "run"
    assert ended(folder, start(folder, "dense", 2, nan_at=(rank, 11))) == [1, 1]
    for other in range(2):
        said = log_of(folder, other).splitlines()[-1]
        assert said.startswith("toolkit.training.health.NotFiniteError: step 12 is not finite: ")
        assert f"rank {rank}: loss nan, from blocks.1.feed_forward" in said
        assert f"rank {1 - rank}: loss nan" not in said
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 11
    assert all(bool(torch.isfinite(weight).all()) for weight in saved["state_dict"].values())


@pytest.mark.parametrize(("world_size", "asked"), [(1, 0), (2, 1)])
def test_on_sigterm_it_saves_ends_with_75_and_goes_on_exactly(
    unbroken: Any,  # noqa: F811
    tmp_path: Path,
    world_size: int,
    asked: int,
) -> None:
    """One process of two is asked; the clock had saved nothing."""
    folder = tmp_path / "run"
    processes = start(folder, "moe", world_size, slow_clock=True, pause=0.01)
    while max(losses(folder), default=0) < 10:
        assert all(process.is_alive() for process in processes), log_of(folder, 0)
        time.sleep(0.01)
    assert not (folder / "checkpoints").exists()
    os.kill(processes[asked].pid, signal.SIGTERM)
    assert ended(folder, processes) == [75] * world_size
    step = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert f"interrupted after step {step}, which {folder}/checkpoints/last.ckpt holds" in log_of(folder, 0)
    assert max(losses(folder)) == step >= 10
    finish(folder, "moe", world_size)
    assert losses(folder) == losses(unbroken("moe", world_size))


def test_a_second_run_in_a_folder_is_refused_while_the_first_is_at_work(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (first,) = start(folder, "dense", 1, pause=0.05)
    while not losses(folder):
        time.sleep(0.01)
    first_log = log_of(folder, 0)
    (second,) = start(folder, "dense", 1)
    second.join(60)
    assert second.exitcode == 1
    assert f"folder='{folder}': it must be a folder that no other run is at work in" in log_of(folder, 0)
    assert first.is_alive(), first_log
    first.kill()
    first.join()
    finish(folder, "dense", 1)  # the system let go of the lock
