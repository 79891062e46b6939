"""No task's answer can be read off position, length, the token before or how often tokens occur."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from baselines import accuracies, bound
from task_cases import CASES

from toolkit.data.synthetic import GlobalSummary, Task, TaskBatch
from toolkit.data.synthetic.task import commonest_share, mean_chance

ROWS = 2000
TRAIN, TEST = 1, 2


@cache
def rows_of(task: Task, seed: int) -> TaskBatch:
    """Enough rows to fit or to try on; not to be written to."""
    return task.sample(ROWS, seed)


def first_asked(batch: TaskBatch) -> TaskBatch:
    """Only the first asked token of each row."""
    labels = torch.full_like(batch.labels, -100)
    first = batch.asked[:, :1]
    return replace(batch, labels=labels.scatter(1, first, batch.labels.gather(1, first)))


def by_position(batch: TaskBatch) -> TaskBatch:
    """The answer follows from where it is asked."""
    answers = batch.labels[batch.labels != -100].unique()
    places = torch.arange(batch.labels.shape[1]).expand(batch.labels.shape)
    labels = torch.where(batch.labels == -100, -100, answers[places % len(answers)])
    return replace(batch, labels=labels)


def by_token_before(batch: TaskBatch) -> TaskBatch:
    """The answer stands just before the question."""
    batch = first_asked(batch)
    first = batch.asked
    return replace(batch, input_ids=batch.input_ids.scatter(1, first - 1, batch.labels.gather(1, first)))


def by_frequency(batch: TaskBatch) -> TaskBatch:
    """A third of the context is the answer."""
    batch = first_asked(batch)
    tokens = batch.input_ids.clone()
    tokens[:, : tokens.shape[1] // 3] = batch.labels.gather(1, batch.asked)
    return replace(batch, input_ids=tokens)


@pytest.mark.parametrize("task", CASES, ids=str)
def test_guessers_without_structure_are_at_chance(task: Task) -> None:
    blind, counting = accuracies(task, rows_of(task, TRAIN), rows_of(task, TEST))
    for name, accuracy in blind.items():
        assert abs(accuracy - task.chance) < bound(task.chance, ROWS), (name, accuracy)
    for name, accuracy in counting.items():
        assert accuracy < task.counting_chance + bound(task.counting_chance, ROWS), (name, accuracy)


@pytest.mark.parametrize("leak", [by_position, by_token_before, by_frequency])
@pytest.mark.parametrize("task", CASES, ids=str)
def test_a_leak_is_caught_by_the_same_test(task: Task, leak: Callable[[TaskBatch], TaskBatch]) -> None:
    blind, counting = accuracies(task, leak(rows_of(task, TRAIN)), leak(rows_of(task, TEST)))
    caught_blind = max(blind.values()) > task.chance + bound(task.chance, ROWS)
    caught_counting = max(counting.values()) > task.counting_chance + bound(task.counting_chance, ROWS)
    if leak is by_frequency:
        # Where counting is the task itself there is nothing to catch.
        assert caught_counting or task.counting_chance == 1
    else:
        assert caught_blind


@pytest.mark.parametrize("task", CASES, ids=str)
def test_chances_are_in_order(task: Task) -> None:
    assert 0 < task.answer_chance <= task.chance <= task.counting_chance <= 1


def test_where_counts_say_nothing_the_two_chances_are_one() -> None:
    task = GlobalSummary(length=48, marks=8, kind="count")
    assert task.counting_chance == task.chance
    batch = task.sample(50, 0)
    for token in (1, 2, 3):
        assert set((batch.input_ids == token).sum(dim=1).tolist()) == {8}


@pytest.mark.parametrize("marks", [1, 2, 3, 4])
def test_the_parity_a_counter_can_guess_is_the_brute_force_one(marks: int) -> None:
    seen: dict[int, list[int]] = {}
    for bits in itertools.product((0, 1), repeat=2 * marks):
        seen.setdefault(sum(bits), []).append(sum(bits[:marks]) % 2)
    best = sum(max(parities.count(0), parities.count(1)) for parities in seen.values()) / 4**marks
    assert GlobalSummary(length=32, marks=marks).counting_chance == pytest.approx(best)


@pytest.mark.parametrize(("draws", "kinds"), [(1, 2), (4, 2), (5, 3), (8, 3), (6, 5)])
def test_the_commonest_share_is_bounded(draws: int, kinds: int) -> None:
    every = itertools.product(range(kinds), repeat=draws)
    exact = np.mean([np.bincount(one).max() / draws for one in every])
    assert exact <= commonest_share(draws, kinds) <= 1


def test_the_commonest_share_tends_to_chance() -> None:
    shares = [commonest_share(10**power, 10) for power in range(1, 9)]
    assert shares == sorted(shares, reverse=True)
    assert math.isclose(shares[-1], 0.1, rel_tol=1e-2)


def test_mean_chance_is_a_mean_over_asked_tokens() -> None:
    assert mean_chance([2, 4]) == pytest.approx(3 / 8)
