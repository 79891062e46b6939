"""What a model is trained on: tokens it reads, and at each what it must predict, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

NOT_ASKED = -100
"""A label where nothing is asked: what torch's cross-entropy ignores."""


LogitsOf = Callable[[Tensor], Tensor]
"""A model: input_ids (batch, length) int64 -> logits (batch, length, vocab_size)."""


class Examples(NamedTuple):
    """A batch of rows.

    Attributes:
        input_ids: int64 (batch, length).
        labels: int64 (batch, length), what the logits at each position must give, not shifted; -100 where nothing is
            asked.
    """

    input_ids: Tensor
    labels: Tensor


def as_examples(batch: Tensor | Examples) -> Examples:
    """The same batch, or windows (batch, context + 1) int64 of text, in which every next token is asked."""
    return batch if isinstance(batch, Examples) else Examples(batch[:, :-1], batch[:, 1:])
