"""What a synthetic task is: a configuration that gives seeded batches and states what guessing is worth."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from toolkit.checks import require, require_positive
from toolkit.data.examples import NOT_ASKED
from toolkit.data.synthetic.draws import Draws, Ints


@dataclass(frozen=True, eq=False)
class TaskBatch:
    """A batch of a task.

    **Labels are not shifted**: ``labels[b, t]`` is what the logits at position t, which have seen
    ``input_ids[b, :t + 1]``, must give. An answer of several tokens is teacher-forced: each of its tokens but the last
    is the input after it.

    Attributes:
        input_ids: int64 (batch, length).
        labels: int64 (batch, length), -100 where nothing is asked; each row asks equally many tokens.
        answers: int64 (batch, length), which answer of its row (0, 1, ...) a token belongs to, -1 where none is asked.
        meta: what is known of each row (batch,), of each answer (batch, answers) or of each asked token
            (batch, asked), in the order of their positions.
    """

    input_ids: Tensor
    labels: Tensor
    answers: Tensor
    meta: Mapping[str, Tensor]

    @property
    def asked(self) -> Tensor:
        """Positions of the asked tokens, int64 (batch, asked), in increasing order."""
        return (self.labels != NOT_ASKED).nonzero()[:, 1].view(len(self.labels), -1)


@dataclass(frozen=True)
class Row:
    """One row before it is a tensor: tokens (length,), asked positions and labels (asked,), answers (asked,), meta."""

    tokens: Ints
    asked: Ints
    labels: Ints
    answers: Ints
    meta: Mapping[str, npt.ArrayLike]


class Task(ABC):
    """A synthetic task: an immutable configuration, printed as :func:`parse_task` reads it.

    Attributes:
        length: tokens in a row.
    """

    length: int

    @property
    def answer_length(self) -> int:
        """Tokens in an answer."""
        return 1

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Token ids are 0..vocab_size-1."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """Expected share of asked tokens that one gets right who knows the format but cannot look back at the context.

        What he sees is the question and what he has answered so far.
        """

    @property
    @abstractmethod
    def counting_chance(self) -> float:
        """The most that one can expect who sees also how often each token occurs, but not where: an upper bound."""

    @property
    def answer_chance(self) -> float:
        """Expected share of whole answers got right without looking back."""
        return self.chance**self.answer_length

    def require_whole(self) -> None:
        """Refuse a size that is no whole number; every task asks first of all.

        Raises:
            ValueError: naming the field.
        """
        for field in fields(self):  # type: ignore[arg-type]  # every task is a dataclass
            if field.init and field.type == "int":
                value = getattr(self, field.name)
                require(type(value) is int, field.name, value, "a whole number")

    def sample(self, batch: int, seed: int, first_row: int = 0) -> TaskBatch:
        """Rows ``first_row`` to ``first_row + batch - 1`` of the endless sequence that (task, seed) determines.

        A row depends on the task, the seed and its own number alone: not on the batch size, the device, the rank or
        any global generator.

        Raises:
            ValueError: batch is not positive, or the seed or the first row is negative.
        """
        require_positive(batch=batch)
        require(seed >= 0, "seed", seed, "at least 0")
        require(first_row >= 0, "first_row", first_row, "at least 0")
        rows = [self._row(Draws(f"{self!r} {seed} {first_row + row}")) for row in range(batch)]
        labels, answers = (np.full((batch, self.length), empty) for empty in (NOT_ASKED, -1))
        for place, row in enumerate(rows):
            labels[place, row.asked], answers[place, row.asked] = row.labels, row.answers
        return TaskBatch(
            input_ids=torch.from_numpy(np.stack([row.tokens for row in rows])),
            labels=torch.from_numpy(labels),
            answers=torch.from_numpy(answers),
            meta={name: torch.from_numpy(np.array([row.meta[name] for row in rows])) for name in rows[0].meta},
        )

    @abstractmethod
    def _row(self, draws: Draws) -> Row:
        """One row."""


def commonest_share(draws: int, kinds: int) -> float:
    """An upper bound on the expected share of the commonest of ``kinds`` among that many independent uniform draws.

    It is what counting can get when the answer is one of the draws. Boucheron, Lugosi and Massart, Concentration
    Inequalities (2013), corollary 2.6, for sums of Bernoulli variables of variance v: E max - mean is at most
    sqrt(2 v ln kinds) + ln(kinds) / 3.
    """
    variance = draws / kinds * (1 - 1 / kinds)
    above = math.sqrt(2 * variance * math.log(kinds)) + math.log(kinds) / 3
    return min(1.0, 1 / kinds + above / draws)


def mean_chance(choices: Sequence[int]) -> float:
    """The mean of 1 / n over the number n of choices that are open at each asked token."""
    return sum(1 / max(1, open_) for open_ in choices) / len(choices)
