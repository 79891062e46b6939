"""Lightning trains a spread model as it trains one in one process, and goes on with other sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import run_processes
from strategy_work import draws, run, run_both
from training_cases import metrics

from toolkit.parallel import ParallelConfig
from toolkit.training.checkpoints import read_checkpoint
from toolkit.training.strategy import MeshStrategy, batch_reader, strategy_of


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, run(folder, ParallelConfig(accelerator="cpu"))


def assert_same(folder: Path, fitted: dict[str, Any], alone: tuple[Path, dict[str, Any]]) -> None:
    """The same figures, table and trained model."""
    reference, expected = alone
    names = set(expected) - {"seconds"}
    assert {name: fitted[name] for name in names} == pytest.approx({name: expected[name] for name in names}, rel=1e-10)
    here, there = metrics(folder), metrics(reference)
    assert len(here) == len(there)
    for row, right in zip(here, there, strict=True):
        assert row == pytest.approx(right, rel=1e-10)
    one, other = (read_checkpoint(path / "checkpoints" / "last.ckpt") for path in (folder, reference))
    assert one["global_step"] == other["global_step"]
    torch.testing.assert_close(dict(one["state_dict"]), dict(other["state_dict"]), rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"shard": 2}, {"tensor": 2}),
        ({"tensor": 2}, {"context": 2}),
        ({"context": 2}, {"data": 2, "expert": 2}),
        ({"data": 2, "expert": 2}, {"shard": 2, "zero": 2}),
        ({"shard": 2, "expert": 2, "tensor": 2}, {"context": 2, "expert": 2, "data": 2}),
        ({"data": 2, "shard": 2}, {"context": 2, "expert": 2, "tensor": 2}),
    ],
)
def test_a_spread_run_is_the_run_of_one_process_and_goes_on_spread_otherwise(
    before: dict[str, Any], after: dict[str, Any], alone: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    first, then = (ParallelConfig(accelerator="cpu", **sizes) for sizes in (before, after))
    results = run_processes(first.world_size, run_both, tmp_path, first, then)
    for whole, broken in results:
        assert_same(tmp_path / "whole", whole, alone)
        assert_same(tmp_path / "broken", broken, alone)


def test_readers_of_other_sequences_draw_other_numbers_and_sharers_of_a_layer_the_same(tmp_path: Path) -> None:
    """From the first step on, and where a run goes on with processes that share what others did not."""
    sizes: list[dict[str, int]] = [{"data": 2}, {"shard": 2}, {"tensor": 2}]
    ways = [ParallelConfig(accelerator="cpu", **each) for each in sizes]
    one, other = run_processes(2, draws, tmp_path, ways)
    (copied, _), (sharded, warned), (shared, warned_anew) = one
    (copied_too, _), (sharded_too, _), (shared_too, _) = other
    for seen in (copied, sharded, shared):
        assert all(begun != ended for begun, ended in zip(seen[::2], seen[1::2], strict=True)), "every step draws"
    for here, there in ((copied, copied_too), (sharded, sharded_too)):
        assert not set(here) & set(there)
    assert (sharded[0], sharded_too[0], warned) == (copied[-1], copied_too[-1], 0)  # as many readers: they go on
    assert shared == shared_too
    assert warned_anew == 1


@pytest.mark.parametrize(("sizes", "spread"), [({}, False), ({"devices": 2}, False), ({"shard": 2}, True)])
def test_only_a_spread_model_needs_the_mesh(sizes: dict[str, int], spread: bool) -> None:
    assert isinstance(strategy_of(ParallelConfig(accelerator="cpu", **sizes)), MeshStrategy) == spread  # type: ignore[arg-type]


def test_without_a_mesh_every_process_reads_its_own() -> None:
    class Trainer:
        strategy, global_rank, world_size = None, 1, 3

    assert batch_reader(Trainer()) == (1, 3)  # type: ignore[arg-type]


def test_meshes_are_asked_for_too_early() -> None:
    with pytest.raises(ValueError, match="before a trainer has set this strategy up"):
        _ = MeshStrategy(ParallelConfig(shard=2, accelerator="cpu")).meshes
