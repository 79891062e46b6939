"""Rows of a synthetic task among windows of text, addressed by step as they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.checks import require
from toolkit.data.examples import NOT_ASKED, Examples, as_examples
from toolkit.data.synthetic import Task


@dataclass(frozen=True)
class TaskMixture:
    """Puts rows of ``task`` in the place of the last rows of every batch of text.

    The task has token ids of its own, from ``first_id`` on, so that text says nothing of it. Which rows a batch gets is
    a function of (seed, step, rank), so a resumed run sees what an unbroken one would have.

    Args:
        task: what is asked; as long as a window's context.
        share: of the rows of a batch, rounded.
        first_id: the id of the task's token 0: the size of the text's vocabulary, or more.

    Raises:
        ValueError: if ``share`` is not between 0 and 1 or ``first_id`` negative.
    """

    task: Task
    share: float
    first_id: int

    def __post_init__(self) -> None:
        require(0 <= self.share <= 1, "share", self.share, "between 0 and 1")
        require(self.first_id >= 0, "first_id", self.first_id, "0 or more")

    @property
    def vocab_size(self) -> int:
        """Ids that the model needs, the text's included."""
        return self.first_id + self.task.vocab_size

    def mix(self, windows: Tensor, step: int, seed: int, rank: int = 0, world_size: int = 1) -> Examples:
        """windows (rows, context + 1) of this process's text at ``step`` -> Examples, (rows, context) each.

        Raises:
            ValueError: if the task's rows are not as long as the context.
        """
        text = as_examples(windows)
        context, rows = text.input_ids.shape[1], round(self.share * len(windows))
        require(self.task.length == context, "task.length", self.task.length, f"context={context}")
        if rows == 0:
            return text
        batch = self.task.sample(rows, seed, (step * world_size + rank) * rows)
        asked = batch.labels != NOT_ASKED
        labels = torch.where(asked, batch.labels + self.first_id, NOT_ASKED)
        parts = (text.input_ids[:-rows], batch.input_ids + self.first_id), (text.labels[:-rows], labels)
        return Examples(*(torch.cat(part) for part in parts))
