"""Laws of every task: the documented format has one solution, rows are addressed, shapes and labels are as stated."""

from __future__ import annotations

import random
from dataclasses import fields

import numpy as np
import pytest
import torch
from task_cases import CASES, asked_of, solve

from toolkit.data.synthetic import NOT_ASKED, TASKS, Task

each_task = pytest.mark.parametrize("task", CASES, ids=str)


def test_every_kind_of_task_is_among_the_cases() -> None:
    assert {type(task) for task in CASES} == set(TASKS.values())


@each_task
def test_a_solver_that_reads_the_documented_format_gets_everything(task: Task) -> None:
    batch = task.sample(60, seed=3)
    for row, tokens in enumerate(batch.input_ids.tolist()):
        assert solve(task, tokens) == asked_of(batch, row)


@pytest.mark.parametrize("kind", TASKS.values())
def test_defaults_are_solved_too(kind: type[Task]) -> None:
    batch = kind().sample(4, seed=0)
    for row, tokens in enumerate(batch.input_ids.tolist()):
        assert solve(kind(), tokens) == asked_of(batch, row)


@each_task
def test_shapes_ranges_and_answers(task: Task) -> None:
    batch = task.sample(5, seed=0)
    shape = (5, task.length)
    for tensor in (batch.input_ids, batch.labels, batch.answers):
        assert tensor.shape == shape
        assert tensor.dtype == torch.int64
    assert batch.input_ids.min() >= 0
    assert batch.input_ids.max() < task.vocab_size
    asked = batch.labels != NOT_ASKED
    assert asked.any(dim=1).all()
    assert batch.labels[asked].min() >= 0
    assert batch.labels.max() < task.vocab_size
    assert torch.equal(batch.answers >= 0, asked)
    assert torch.equal(batch.labels.gather(1, batch.asked), batch.labels[asked].view(5, -1))
    for row in range(5):
        answers = batch.answers[row][asked[row]].tolist()
        groups = len(answers) // task.answer_length
        assert answers == [group for group in range(groups) for _ in range(task.answer_length)]
        for value in batch.meta.values():
            assert value.shape in {(5,), (5, groups), (5, len(answers))}


@each_task
def test_a_row_depends_on_task_seed_and_number_alone(task: Task) -> None:
    whole = task.sample(6, seed=7)
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    for row in range(6):
        alone = task.sample(1, seed=7, first_row=row)
        assert torch.equal(alone.input_ids[0], whole.input_ids[row])
        assert torch.equal(alone.labels[0], whole.labels[row])
        for name, value in whole.meta.items():
            assert torch.equal(alone.meta[name][0], value[row])


@each_task
def test_rows_and_seeds_differ(task: Task) -> None:
    rows = torch.cat([task.sample(8, seed).input_ids for seed in range(4)])
    assert len(rows.unique(dim=0)) == 32


@each_task
def test_a_teacher_forced_answer_is_the_input_after_it(task: Task) -> None:
    batch = task.sample(4, seed=0)
    for row in range(4):
        for place, label in asked_of(batch, row).items():
            following = batch.answers[row, place + 1] if place + 1 < task.length else -1
            if following == batch.answers[row, place]:
                assert batch.input_ids[row, place + 1] == label


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"batch": 0}, "batch=0"), ({"seed": -1}, "seed=-1"), ({"first_row": -1}, "first_row=-1")],
)
def test_a_bad_batch_is_refused_by_name(settings: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        CASES[0].sample(**{"batch": 1, "seed": 0, **settings})


@pytest.mark.parametrize("kind", TASKS.values(), ids=TASKS)
def test_a_size_that_is_no_whole_number_is_refused_by_name(kind: type[Task]) -> None:
    sizes = [field.name for field in fields(kind) if field.init and field.type == "int"]  # type: ignore[arg-type]
    assert len(sizes) >= 2
    for name in sizes:
        for bad in (64.0, True, "64"):
            with pytest.raises(ValueError, match=f"{name}=.*a whole number"):
                kind(**{name: bad})
