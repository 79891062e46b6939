"""A router whose logits are not finite is an error with a place and a time, never a silent NaN."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.routing.valid import only_valid


class DivergedError(ValueError):
    """Training has diverged: what a step depends on is not finite.

    Attributes:
        step: that was about to be taken; the one before it was the last.
    """

    def __init__(self, message: str, step: int = 0) -> None:
        super().__init__(message)
        self.step = step


def count_non_finite(logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """How many router logits (tokens, ...) are infinite or NaN outside the padding: int64 scalar, on their device."""
    return only_valid(~torch.isfinite(logits.detach()), valid).sum()


def require_finite_logits(logits: Tensor, layer: str, step: int, valid: Tensor | None = None) -> None:
    """Refuse router logits (tokens, ...) that are infinite or NaN outside the padding. Waits for the device.

    Raises:
        DivergedError: naming the layer and the step.

    >>> require_finite_logits(torch.tensor([[0.0, torch.inf]]), "blocks.3.feed_forward", 120)
    Traceback (most recent call last):
    toolkit.routing.finite.DivergedError: router logits of blocks.3.feed_forward at step 120='1 infinite or NaN': it \
must be finite; look for a learning rate that is too high, half precision that overflows, or bad input
    """
    require_none_non_finite(int(count_non_finite(logits, valid)), layer, step)


def require_none_non_finite(count: int, layer: str, step: int) -> None:
    """Refuse a :func:`count_non_finite` above 0.

    Raises:
        DivergedError: naming the layer and the step.
    """
    if count:
        causes = "a learning rate that is too high, half precision that overflows, or bad input"
        where = f"router logits of {layer} at step {step}"
        raise DivergedError(f"{where}='{count} infinite or NaN': it must be finite; look for {causes}", step)
