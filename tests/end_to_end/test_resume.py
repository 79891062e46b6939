"""A run killed with signal 9 at a random step goes on to be, bit for bit, the run that was not."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killed_runs import KINDS, STEPS, final_weights, finish, kill_at, log_of, losses


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a run that was left alone, by kind and processes; each is trained once."""

    @functools.cache
    def trained(kind: str, world_size: int) -> Path:
        folder = tmp_path_factory.mktemp("unbroken") / f"{kind}{world_size}"
        finish(folder, kind, world_size)
        return folder

    return trained


def check_trial(unbroken: Any, tmp_path: Path, kind: str, world_size: int, seed: int) -> None:
    folder, rng = tmp_path / "run", np.random.default_rng(seed)
    first, second = sorted(rng.choice(np.arange(2, STEPS - 12), 2, replace=False).tolist())
    reached = kill_at(folder, kind, world_size, first)
    assert first <= reached < STEPS, "it was to be killed on the way"
    kill_at(folder, kind, world_size, max(second, reached + 1))
    finish(folder, kind, world_size)
    whole = unbroken(kind, world_size)
    assert list(losses(folder)) == list(range(1, STEPS + 1))
    assert losses(folder) == losses(whole)
    one, other = final_weights(folder), final_weights(whole)
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert len(set(losses(whole).values())) > STEPS // 2  # there is something to agree on


@pytest.mark.parametrize(("kind", "world_size", "seed"), [("dense", 1, 0), ("moe", 1, 1), ("moe", 2, 2)])
def test_killed_twice_it_goes_on_bit_for_bit(
    unbroken: Any, tmp_path: Path, kind: str, world_size: int, seed: int
) -> None:
    """Across epochs, which are nine steps; with dropout, router noise and a moving bias."""
    check_trial(unbroken, tmp_path, kind, world_size, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_twenty_trials(unbroken: Any, tmp_path: Path, seed: int) -> None:
    check_trial(unbroken, tmp_path, KINDS[seed % 2], 1 + seed // 2 % 2, seed)


@pytest.mark.parametrize("shard", [2])
def test_a_sharded_run_writes_folders_and_goes_on_exactly(tmp_path: Path, shard: int) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    finish(whole, "moe", shard, shard=shard)
    kill_at(folder, "moe", shard, 25, shard=shard)
    assert (folder / "checkpoints" / "last.ckpt" / "manifest.json").exists() or (folder / "previous.ckpt").is_dir()
    finish(folder, "moe", shard, shard=shard)
    assert losses(folder) == losses(whole)
    for name in ("load.npz", "flip_rate.npz"):  # of which the first process keeps more than the others
        with np.load(folder / name) as one, np.load(whole / name) as other:
            for key in other.files:
                np.testing.assert_array_equal(one[key], other[key])
    assert (folder / "checkpoints" / "last.ckpt" / "manifest.json").exists()


@pytest.mark.slow
def test_a_run_goes_on_in_another_number_of_processes_and_in_another_layout(tmp_path: Path) -> None:
    """Sharded over two, then one process, then sharded again; the losses go on falling from where they were."""
    folder = tmp_path / "run"
    kill_at(folder, "dense", 2, 15, shard=2)
    reached = kill_at(folder, "dense", 1, 30)
    assert "drawn anew from here on" in log_of(folder, 0)
    finish(folder, "dense", 2, shard=2)
    assert list(losses(folder)) == list(range(1, STEPS + 1))
    before, after = losses(folder)[reached - 1], losses(folder)[reached + 1]
    assert abs(after - before) < 0.5
