"""Laws of batches: pure in the step, parted by rank, each window once an epoch; and of validation windows."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolkit.data.tokenizer import Tokens
from toolkit.data.windows import TokenWindows, validation_windows

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(0, 99), st.integers(0, 3))


def counting(length: int) -> Tokens:
    """Tokens that say where they stand, so that a window shows where it starts."""
    return np.arange(length, dtype=np.uint32)


def first_tokens(windows: TokenWindows, count: int) -> list[int]:
    """Where the first ``count`` windows of the sequence of epochs start, read from batches of one."""
    return [int(windows.batch(step)[0, 0]) for step in range(count)]


@given(st.data(), SHAPES)
def test_a_row_is_a_run_of_tokens_and_a_batch_depends_on_its_step_alone(
    data: st.DataObject, shape: tuple[int, int, int, int]
) -> None:
    context, batch_size, seed, step = shape
    length = data.draw(st.integers(context + 1, 200))
    make = lambda: TokenWindows(counting(length), context, batch_size, seed)  # noqa: E731
    unbroken = make()
    for passed in range(step):
        unbroken.batch(passed)
    batch = unbroken.batch(step)
    assert batch.dtype == torch.int64
    assert batch.shape == (batch_size, context + 1)
    assert torch.equal(batch, batch[:, :1] + torch.arange(context + 1))
    assert batch.min() >= 0
    assert batch.max() < length
    assert torch.equal(make().batch(step), batch)  # the resumed run
    unbroken.batch(step + 50)
    unbroken.batch(0)
    assert torch.equal(unbroken.batch(step), batch)


@given(SHAPES, st.integers(1, 5))
def test_the_ranks_batches_concatenate_to_the_batch_of_one_process(
    shape: tuple[int, int, int, int], world_size: int
) -> None:
    context, rows, seed, step = shape
    tokens, batch_size = counting(97), rows * world_size
    ranks = [
        TokenWindows(tokens, context, batch_size, seed, rank=rank, world_size=world_size).batch(step)
        for rank in range(world_size)
    ]
    assert torch.equal(torch.cat(ranks), TokenWindows(tokens, context, batch_size, seed).batch(step))


@given(st.integers(1, 9), st.integers(1, 7), st.integers(2, 120), st.integers(0, 99))
def test_the_batch_size_does_not_change_the_sequence(context: int, batch_size: int, extra: int, seed: int) -> None:
    tokens = counting(context + extra)
    rows = torch.cat([TokenWindows(tokens, context, batch_size, seed).batch(step) for step in range(5)])
    assert rows[:, 0].tolist() == first_tokens(TokenWindows(tokens, context, 1, seed), 5 * batch_size)


@given(st.integers(1, 9), st.integers(1, 200), st.integers(0, 99))
def test_an_epoch_visits_each_window_once_and_no_token_is_a_target_twice(context: int, extra: int, seed: int) -> None:
    windows = TokenWindows(counting(context + extra), context, 1, seed)
    count = windows.windows_per_epoch
    starts = first_tokens(windows, 3 * count)
    for epoch in range(3):
        visited = sorted(starts[epoch * count : (epoch + 1) * count])
        assert visited == [visited[0] + place * context for place in range(count)]
        # What an epoch leaves out is under two windows: the offset and the end.
        assert context + extra - 1 - count * context < 2 * context
        assert 0 <= visited[0] < context


def test_an_exact_fit_is_one_window() -> None:
    windows = TokenWindows(counting(9), 8, 3, 0)
    assert windows.windows_per_epoch == 1
    assert windows.batch(7).tolist() == [list(range(9))] * 3


def test_seeds_and_epochs_differ_in_order_and_offset() -> None:
    tokens, count = counting(4000), TokenWindows(counting(4000), 8, 1, 0).windows_per_epoch
    orders = []
    for seed in range(4):
        starts = first_tokens(TokenWindows(tokens, 8, 1, seed), 2 * count)
        orders += [tuple(starts[:count]), tuple(starts[count:])]
    assert len({tuple(np.argsort(order)) for order in orders}) == 8
    assert len({min(order) for order in orders}) > 2


def test_the_order_is_uniform_and_every_offset_is_drawn() -> None:
    context, epochs = 4, 2000
    windows = TokenWindows(counting(4 * context + 4), context, 1, 0)
    assert windows.windows_per_epoch == 4
    starts = np.array([windows.starts(epoch) for epoch in range(epochs)])
    for counts in (np.bincount(starts.min(axis=1)), np.bincount(starts.argmin(axis=1))):
        assert len(counts) == 4
        assert np.abs(counts - epochs / 4).max() < 5 * np.sqrt(epochs * 3 / 16)


def test_a_batch_that_spans_many_epochs_is_the_epochs_one_after_another() -> None:
    windows = TokenWindows(counting(20), 4, 10, 5)
    count = windows.windows_per_epoch
    expected = np.concatenate([windows.starts(epoch) for epoch in range(10 // count + 2)])
    assert windows.batch(0)[:, 0].tolist() == expected[:10].tolist()


def test_each_epoch_is_drawn_once_when_steps_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    windows, drawn = TokenWindows(counting(300), 4, 7, 5), []
    draw = windows._draw
    monkeypatch.setattr(windows, "_draw", lambda epoch: drawn.append(epoch) or draw(epoch))  # type: ignore[func-returns-value]
    for step in range(60):
        windows.batch(step)
    assert drawn == list(range(60 * 7 // windows.windows_per_epoch + 1))


def test_a_batch_from_a_memory_map_is_fast(tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", np.zeros(2_000_000, dtype=np.uint8))
    windows = TokenWindows(np.load(tmp_path / "tokens.npy", mmap_mode="r"), 128, 8, 0)
    windows.batch(0)
    times = []
    for step in range(200):
        start = time.perf_counter()
        windows.batch(step)
        times.append(time.perf_counter() - start)
    assert np.median(times) < 2e-4


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"context": 100}, "context=100.*at most 99"),
        ({"context": 0}, "context=0.*positive"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 6, "world_size": 4}, "batch_size=6.*world_size=4"),
        ({"rank": 2, "world_size": 2}, "rank=2"),
        ({"rank": -1}, "rank=-1"),
        ({"world_size": 0}, "world_size=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_a_bad_setting_is_refused_by_name(settings: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        TokenWindows(counting(100), **{"context": 8, "batch_size": 4, "seed": 0, **settings})


def test_a_negative_step_is_refused() -> None:
    with pytest.raises(ValueError, match="step=-1"):
        TokenWindows(counting(100), 8, 4, 0).batch(-1)


@given(st.integers(1, 9), st.integers(2, 200), st.data())
def test_validation_windows_are_spread_from_end_to_end_without_overlap(
    context: int, extra: int, data: st.DataObject
) -> None:
    tokens = counting(context + extra)
    count = data.draw(st.integers(1, (len(tokens) - 1) // context))
    windows = validation_windows(tokens, context, count)
    assert windows.dtype == torch.int64
    assert windows.shape == (count, context + 1)
    assert torch.equal(windows, windows[:, :1] + torch.arange(context + 1))
    assert windows[0, 0] == 0
    if count > 1:
        gaps = windows[:, 0].diff()
        assert gaps.min() >= context  # no token is a target twice
        assert gaps.max() - gaps.min() <= 1
        assert windows[-1, -1] == len(tokens) - 1
    assert torch.equal(windows, validation_windows(tokens, context, count))


@given(st.integers(1, 5), st.sampled_from([(1, 2), (2, 6), (3, 3), (4, 8), (1, 12)]), st.integers(0, 50))
def test_windows_of_one_block_have_the_same_targets_at_every_context(
    blocks: int, sizes: tuple[int, int], spare: int
) -> None:
    context, block = sizes
    tokens = counting(blocks * block + 1 + spare)
    pieces = validation_windows(tokens, context, blocks * (block // context), block)
    whole = validation_windows(tokens, block, blocks)
    assert torch.equal(pieces[:, 1:].flatten(), whole[:, 1:].flatten())
    assert torch.equal(pieces[:, :-1].flatten(), whole[:, :-1].flatten())
    assert torch.equal(whole, validation_windows(tokens, block, blocks, block))


@pytest.mark.parametrize(
    ("count", "block", "match"),
    [
        (4, 12, "block=12.*a multiple of context=8"),
        (4, 0, "block=0"),
        (3, 16, "count=3.*a multiple of 2, the windows in a block of 16 tokens"),
        (14, 16, "count=14.*at most 12"),
        (2, 104, "context=104"),
    ],
)
def test_windows_that_make_no_whole_blocks_are_refused(count: int, block: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        validation_windows(counting(100), 8, count, block)


@pytest.mark.parametrize(
    ("context", "count", "match"),
    [
        (8, 13, "count=13.*at most 12.*context=8"),
        (100, 1, "context=100"),
        (8, 0, "count=0"),
        (0, 1, "context=0"),
    ],
)
def test_more_validation_windows_than_there_are_is_refused(context: int, count: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        validation_windows(counting(100), context, count)


@given(st.integers(1, 9), st.integers(2, 200))
def test_as_many_validation_windows_fit_as_the_tokens_have_targets_for(context: int, extra: int) -> None:
    tokens = counting(context + extra)
    most = sum(1 for _ in range(context, len(tokens), context))  # the last target of each
    assert len(validation_windows(tokens, context, most)) == most
    with pytest.raises(ValueError, match=rf"count={most + 1}.*at most {most},"):
        validation_windows(tokens, context, most + 1)
