"""How many of the asked tokens, and of the whole answers, are exactly right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from toolkit.checks import require, require_choice, require_positive
from toolkit.data.examples import LogitsOf
from toolkit.data.synthetic.task import Task, TaskBatch


@dataclass(frozen=True)
class Bucket:
    """The asked tokens whose meta is from ``low`` to ``high``: how many, and the share that is right (nan of none)."""

    low: float
    high: float
    accuracy: float
    tokens: int


@dataclass(frozen=True, eq=False)
class TaskScore:
    """What was right.

    Attributes:
        correct: bool (rows, asked), each asked token in the order of positions.
        answers: int64 (rows, asked), which answer of its row each belongs to.
        meta: as in :class:`TaskBatch`, each spread over the asked tokens: (rows, asked).
    """

    correct: Tensor
    answers: Tensor
    meta: Mapping[str, Tensor]

    @property
    def accuracy(self) -> float:
        """The share of asked tokens that are right."""
        return float(self.correct.double().mean())

    @property
    def exact(self) -> float:
        """The share of answers all of whose tokens are right."""
        return float(self._whole().double().mean())

    def by(self, name: str, edges: Sequence[float] | None = None) -> tuple[Bucket, ...]:
        """Accuracy over asked tokens, bucket by bucket of what ``meta[name]`` says of them.

        Args:
            name: one of ``meta``.
            edges: of the buckets: each has its lower edge and not its upper, but the last has both (as
                ``numpy.histogram``). By default a bucket for each value that occurs.

        Raises:
            ValueError: there is no such meta, the edges do not increase, or a value is outside them.
        """
        require_choice("name", name, tuple(self.meta))
        values = self.meta[name].double()
        if edges is None:
            each = values.unique().tolist()
            return tuple(self._bucket(values == value, value, value) for value in each)
        require(len(edges) >= 2, "edges", edges, "at least two")
        require(all(a < b for a, b in pairwise(edges)), "edges", edges, "increasing")
        low, high = float(values.min()), float(values.max())
        require(edges[0] <= low and high <= edges[-1], "edges", edges, f"from at most {low} to at least {high}")
        inner = torch.tensor(edges[1:-1], dtype=values.dtype)
        place = torch.bucketize(values, inner, right=True)
        return tuple(self._bucket(place == index, edges[index], edges[index + 1]) for index in range(len(edges) - 1))

    def _bucket(self, inside: Tensor, low: float, high: float) -> Bucket:
        tokens = int(inside.sum())
        right = int(self.correct[inside].sum())
        return Bucket(low, high, right / tokens if tokens else math.nan, tokens)

    def _whole(self) -> Tensor:
        """bool (rows, answers): whether every token of an answer is right."""
        wrong = torch.zeros(len(self.answers), int(self.answers.max()) + 1, dtype=torch.int64)
        return wrong.scatter_add_(1, self.answers, (~self.correct).long()) == 0


def exact_match(predictions: Tensor, batch: TaskBatch) -> TaskScore:
    """Compare predictions with the labels, at the same positions: nothing is shifted.

    Args:
        predictions: logits (batch, length, vocab_size), of which the largest counts (with a NaN among them none, which
            is wrong), or token ids (batch, length).
        batch: what was asked.

    Raises:
        ValueError: the shapes differ.
    """
    shape = tuple(batch.labels.shape)
    right = f"of shape {shape}, or {shape} and the vocabulary"
    require(tuple(predictions.shape[:2]) == shape, "predictions", tuple(predictions.shape), right)
    require(predictions.dim() in (2, 3), "predictions", tuple(predictions.shape), right)
    rows = torch.arange(len(batch.labels))[:, None]
    asked = batch.asked
    there = rows.to(predictions.device), asked.to(predictions.device)
    chosen = predictions[there]
    if predictions.dim() == 3:  # of NaN there is no largest, though argmax names one: it would score as a guess does
        chosen = torch.where(chosen.isnan().any(dim=-1), -1, chosen.argmax(dim=-1))
    answers = batch.answers[rows, asked]
    meta = {name: _spread(value, answers) for name, value in batch.meta.items()}
    return TaskScore(chosen.cpu() == batch.labels[rows, asked], answers, meta)


def score(logits_of: LogitsOf, task: Task, rows: int, seed: int, batch_size: int = 32) -> TaskScore:
    """Score a model on rows 0..rows-1 of (task, seed), in batches; the rows do not depend on the batch size.

    Args:
        logits_of: input_ids (batch, length) -> logits (batch, length, vocab_size), called without gradients.
        task: what to ask.
        rows: how many rows.
        seed: of the rows; other than those trained on.
        batch_size: rows at once.
    """
    require_positive(rows=rows, batch_size=batch_size)
    parts = []
    with torch.no_grad():
        for first in range(0, rows, batch_size):
            batch = task.sample(min(batch_size, rows - first), seed, first)
            parts.append(exact_match(logits_of(batch.input_ids), batch))
    meta = {name: torch.cat([part.meta[name] for part in parts]) for name in parts[0].meta}
    correct, answers = (torch.cat([getattr(part, name) for part in parts]) for name in ("correct", "answers"))
    return TaskScore(correct, answers, meta)


def _spread(value: Tensor, answers: Tensor) -> Tensor:
    """Meta of rows (batch,), of answers (batch, answers) or of asked tokens, as (batch, asked)."""
    if value.dim() == 1:
        return value[:, None].expand(answers.shape)
    return value if value.shape == answers.shape else value.gather(1, answers)
