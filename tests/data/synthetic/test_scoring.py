"""Exact match against a plain loop, buckets against numpy, and the same rows whatever the batch size."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from task_cases import CASES
from torch import Tensor

from toolkit.data.synthetic import Induction, Needles, Task, exact_match, score

TASK = Needles(length=64, keys=4, values_per_key=3, queries=2)


def noisy(labels: Tensor, share: float) -> Tensor:
    """Labels of which a share is wrong."""
    wrong = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0)) < share
    return torch.where(wrong, labels + 1, labels).clamp(min=0)


@pytest.mark.parametrize("task", CASES, ids=str)
def test_accuracy_and_whole_answers_are_those_of_a_loop(task: Task) -> None:
    batch = task.sample(20, 0)
    guesses = noisy(batch.labels, 0.3)
    right: dict[tuple[int, int], list[bool]] = {}
    for row in range(20):
        for place in range(task.length):
            if batch.labels[row, place] != -100:
                key = row, int(batch.answers[row, place])
                right.setdefault(key, []).append(bool(guesses[row, place] == batch.labels[row, place]))
    result = exact_match(guesses, batch)
    assert result.accuracy == pytest.approx(np.mean([one for answer in right.values() for one in answer]))
    assert result.exact == pytest.approx(np.mean([all(answer) for answer in right.values()]))
    assert exact_match(batch.labels, batch).exact == 1


def test_logits_and_their_largest_score_alike_unshifted() -> None:
    batch = TASK.sample(10, 0)
    guesses = noisy(batch.labels, 0.5)
    logits = torch.nn.functional.one_hot(guesses, TASK.vocab_size).float()
    assert torch.equal(exact_match(logits, batch).correct, exact_match(guesses, batch).correct)
    assert exact_match(batch.labels.roll(1, dims=1), batch).accuracy < 0.5


def test_buckets_are_those_of_numpy() -> None:
    batch = TASK.sample(50, 0)
    result = exact_match(noisy(batch.labels, 0.4), batch)
    depth, correct = batch.meta["depth"].numpy().ravel(), result.correct.numpy().ravel()
    edges = [0.0, 0.1, 0.5, 1.0]
    tokens, _ = np.histogram(depth, edges)
    hits, _ = np.histogram(depth[correct], edges)
    buckets = result.by("depth", edges)
    assert [bucket.tokens for bucket in buckets] == tokens.tolist()
    assert [bucket.accuracy for bucket in buckets] == pytest.approx((hits / tokens).tolist())
    assert [(bucket.low, bucket.high) for bucket in buckets] == [(0.0, 0.1), (0.1, 0.5), (0.5, 1.0)]


def test_the_last_edge_is_inside_and_an_empty_bucket_has_no_accuracy() -> None:
    batch = Induction(length=16, distance=8).sample(4, 0)
    last, empty = exact_match(batch.labels, batch).by("distance", [0, 4, 8])[::-1]
    assert (last.tokens, last.accuracy) == (4, 1.0)
    assert empty.tokens == 0
    assert math.isnan(empty.accuracy)


def test_a_value_on_an_edge_is_in_the_bucket_above_it() -> None:
    batch = Induction(length=16, distance=(3, 5)).sample(60, 0)
    below, above = exact_match(batch.labels, batch).by("distance", [3, 4, 5])
    assert below.tokens == int((batch.meta["distance"] == 3).sum())
    assert below.tokens + above.tokens == 60


def test_without_edges_there_is_a_bucket_for_each_value() -> None:
    batch = Induction(length=16, distance=(3, 5)).sample(60, 0)
    buckets = exact_match(batch.labels, batch).by("distance")
    assert [bucket.low for bucket in buckets] == [bucket.high for bucket in buckets] == [3, 4, 5]
    assert sum(bucket.tokens for bucket in buckets) == 60


def test_meta_of_an_answer_is_spread_over_its_tokens() -> None:
    batch = TASK.sample(3, 0)
    batch.meta["query"] = torch.tensor([[5.0, 6.0]] * 3)  # type: ignore[index]
    assert [bucket.tokens for bucket in exact_match(batch.labels, batch).by("query")] == [9, 9]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 50])
def test_a_score_does_not_depend_on_the_batch_size(batch_size: int) -> None:
    seen: list[Tensor] = []

    def guess(input_ids: Tensor) -> Tensor:
        return (input_ids * 7 + 1) % TASK.vocab_size

    def logits_of(input_ids: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        seen.append(input_ids)
        return torch.nn.functional.one_hot(guess(input_ids), TASK.vocab_size).float()

    result = score(logits_of, TASK, rows=7, seed=2, batch_size=batch_size)
    whole = TASK.sample(7, 2)
    assert torch.equal(torch.cat(seen), whole.input_ids)
    assert max(map(len, seen)) <= batch_size
    expected = exact_match(guess(whole.input_ids), whole)
    assert torch.equal(result.correct, expected.correct)
    assert torch.equal(result.answers, expected.answers)
    assert torch.equal(result.meta["gap"], expected.meta["gap"])


@pytest.mark.parametrize(
    ("name", "edges", "match"),
    [
        ("deep", None, "name='deep'.*'depth', 'gap'"),
        ("gap", [0], r"edges=\[0\].*at least two"),
        ("gap", [0, 0, 100], "edges=.*increasing"),
        ("gap", [0, 2], "edges=.*from at most"),
        ("gap", [60, 90], "edges=.*from at most"),
    ],
)
def test_bad_buckets_are_refused(name: str, edges: list[float] | None, match: str) -> None:
    batch = TASK.sample(5, 0)
    with pytest.raises(ValueError, match=match):
        exact_match(batch.labels, batch).by(name, edges)


@pytest.mark.parametrize("shape", [(5, 63), (4, 64), (64,), (5, 64, 2, 2)])
def test_predictions_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="predictions="):
        exact_match(torch.zeros(shape, dtype=torch.int64), TASK.sample(5, 0))
