"""Rows of a task among text: a function of the step and the rank, with ids of their own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from toolkit.data import Examples, TaskMixture, as_examples
from toolkit.data.examples import NOT_ASKED
from toolkit.data.synthetic import Passkey

CONTEXT, TEXT = 24, 50
TASK = Passkey(length=CONTEXT, digits=2, words=4)


def windows(rows: int) -> torch.Tensor:
    """Text, whose ids are below ``TEXT``."""
    return torch.randint(TEXT, (rows, CONTEXT + 1), generator=torch.Generator().manual_seed(rows))


def mixture(share: float = 0.5, first_id: int = TEXT) -> TaskMixture:
    return TaskMixture(TASK, share, first_id)


def same(one: Examples, other: Examples) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@given(rows=st.integers(2, 12), share=st.floats(0, 1), step=st.integers(0, 9))
def test_the_first_rows_are_the_text_s_and_the_last_the_task_s(rows: int, share: float, step: int) -> None:
    asked = round(share * rows)
    assume((asked == 0) == (share == 0) and (asked == rows) == (share == 1))
    text, mixed = windows(rows), mixture(share).mix(windows(rows), step, seed=3)
    expected = as_examples(text)
    assert mixed.input_ids.shape == mixed.labels.shape == (rows, CONTEXT)
    assert torch.equal(mixed.input_ids[: rows - asked], expected.input_ids[: rows - asked])
    assert torch.equal(mixed.labels[: rows - asked], expected.labels[: rows - asked])
    tail = mixed.input_ids[rows - asked :]
    assert (tail >= TEXT).all()
    assert (tail < mixture().vocab_size).all()


def test_the_task_s_ids_and_labels_are_moved_and_what_is_not_asked_stays_so() -> None:
    mixed = mixture(1.0, first_id=1000).mix(windows(6), step=0, seed=3)
    alone = TASK.sample(6, seed=3)
    assert torch.equal(mixed.input_ids, alone.input_ids + 1000)
    for row in range(6):
        for place in range(CONTEXT):
            label = int(alone.labels[row, place])
            assert mixed.labels[row, place] == (NOT_ASKED if label == NOT_ASKED else label + 1000)


def test_it_is_a_function_of_the_step_and_no_row_comes_twice() -> None:
    one, again = (mixture().mix(windows(8), step=5, seed=3) for _ in range(2))
    assert same(one, again)
    assert not torch.equal(one.input_ids, mixture().mix(windows(8), step=5, seed=4).input_ids)
    rows = [tuple(row) for step in range(20) for row in mixture().mix(windows(8), step, seed=3).input_ids[4:].tolist()]
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("share", [0.0, 0.125, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_processes_see_together_what_one_would(share: float, world_size: int) -> None:
    step, text = 7, windows(8)
    whole = mixture(share).mix(text, step, seed=3)
    parts = [
        mixture(share).mix(mine, step, 3, rank, world_size) for rank, mine in enumerate(text.split(8 // world_size))
    ]
    assert same(Examples(*(torch.cat(part) for part in zip(*parts, strict=True))), whole)


def test_no_share_leaves_the_text() -> None:
    assert same(mixture(0.0).mix(windows(4), 0, 0), as_examples(windows(4)))


@pytest.mark.parametrize(("share", "rows"), [(0.1, 4), (0.9, 4), (0.5, 1)])
def test_a_share_that_rounds_to_no_row_or_to_all_is_refused(share: float, rows: int) -> None:
    with pytest.raises(ValueError, match=f"share={share}: it must be such that of {rows} rows"):
        mixture(share).mix(windows(rows), 0, 0)


def test_settings_that_cannot_be_used() -> None:
    with pytest.raises(ValueError, match=r"share=1\.5: it must be between 0 and 1"):
        TaskMixture(TASK, 1.5, 0)
    with pytest.raises(ValueError, match="first_id=-1: it must be 0 or more"):
        TaskMixture(TASK, 0.5, -1)
    with pytest.raises(ValueError, match="task.length=24: it must be context=9"):
        mixture().mix(torch.zeros(2, 10, dtype=torch.long), 0, 0)
