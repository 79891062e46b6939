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

    The task has token ids of its own, from ``first_id`` on, so that text says nothing of it. The rows of a step are a
    function of (seed, step) alone, however many processes share its batch: a resumed run sees what an unbroken one
    would have, and N processes what one would.

    Args:
        task: what is asked; as long as a window's context.
        share: of the rows of a batch over all processes, rounded.
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
            ValueError: if the task's rows are not as long as the context, or the share of so small a batch is no row,
                or all of them.
        """
        text = as_examples(windows)
        mine, context = text.input_ids.shape
        require(self.task.length == context, "task.length", self.task.length, f"context={context}")
        whole = mine * world_size
        of_task = round(self.share * whole)
        right = f"such that of {whole} rows a step there are both, or 0 or 1"
        require((of_task == 0) == (self.share == 0), "share", self.share, right)
        require((of_task == whole) == (self.share == 1), "share", self.share, right)
        first = max(0, whole - of_task - rank * mine)  # of this process's rows, the first of the task's
        rows = max(0, mine - first)
        if rows == 0:
            return text
        batch = self.task.sample(rows, seed, step * of_task + rank * mine + first - (whole - of_task))
        asked = batch.labels != NOT_ASKED
        labels = torch.where(asked, batch.labels + self.first_id, NOT_ASKED)
        parts = (text.input_ids[:-rows], batch.input_ids + self.first_id), (text.labels[:-rows], labels)
        return Examples(*(torch.cat(part) for part in parts))
