"""Which windows each process sees, from which step on."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_cases import corpus, training

from toolkit.data import TokenWindows, validation_windows
from toolkit.training import StepBatches


def batches(
    step: int = 0, rank: int = 0, world_size: int = 1, count: int = 40, micro_batches: int = 1, **changes: Any
) -> StepBatches:
    text = corpus()
    data = StepBatches(text.train, text.validation, training(**changes), count)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_step=step, global_rank=rank, world_size=world_size, accumulate_grad_batches=micro_batches
    )
    return data


@pytest.mark.parametrize("step", [0, 7])
def test_the_stream_begins_at_the_trainer_s_step_and_does_not_end(step: int) -> None:
    config = training()
    windows = TokenWindows(corpus().train, config.context, config.batch_size, config.seed)
    for index, batch in enumerate(islice(batches(step).train_dataloader(), 400)):
        assert torch.equal(batch, windows.batch(step + index))


def test_it_reads_the_step_when_iteration_starts() -> None:
    data = batches(0)
    loader = data.train_dataloader()
    data.trainer.global_step = 5  # type: ignore[union-attr, misc]
    assert torch.equal(next(iter(loader)), next(iter(batches(5).train_dataloader())))


@pytest.mark.parametrize("micro_batches", [2, 3])
def test_a_step_that_accumulates_is_as_many_batches_of_the_stream(micro_batches: int) -> None:
    whole = list(islice(batches(micro_batches=micro_batches).train_dataloader(), 6 * micro_batches))
    later = list(islice(batches(step=4, micro_batches=micro_batches).train_dataloader(), 2 * micro_batches))
    assert all(torch.equal(*pair) for pair in zip(later, whole[4 * micro_batches :], strict=True))


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_processes_batches_are_one_process_s_in_order(world_size: int) -> None:
    whole = next(iter(batches(3).train_dataloader()))
    parts = [next(iter(batches(3, rank, world_size).train_dataloader())) for rank in range(world_size)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(("world_size", "count"), [(1, 40), (2, 40), (3, 40), (2, 1)])
def test_every_validation_window_is_some_process_s_once(world_size: int, count: int) -> None:
    expected = validation_windows(corpus().validation, 32, count)
    seen = [
        window
        for rank in range(world_size)
        for batch in batches(0, rank, world_size, count).val_dataloader()
        for window in batch
    ]
    assert sorted(window.tolist() for window in seen) == sorted(expected.tolist())


def test_validation_does_not_depend_on_the_seed_and_training_does() -> None:
    one, other = batches(seed=1), batches(seed=2)
    assert torch.equal(one.windows, other.windows)
    assert not torch.equal(next(iter(one.train_dataloader())), next(iter(other.train_dataloader())))


def test_validation_leaves_the_random_numbers_of_training_alone() -> None:
    loader, before = batches().val_dataloader(), torch.get_rng_state()
    assert len(list(loader)) == len(list(loader)) == 10
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_trainer_it_says_what_is_missing() -> None:
    text = corpus()
    data = StepBatches(text.train, text.validation, training(), 4)
    for loader in (data.train_dataloader, data.val_dataloader):
        with pytest.raises(ValueError, match="trainer=None: pass this data module to a Trainer"):
            loader()
