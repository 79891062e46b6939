"""A router whose logits are not finite is an error with a place and a time, never a silent NaN."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.checks import require
from toolkit.routing.valid import only_valid


def require_finite_logits(logits: Tensor, layer: str, step: int, valid: Tensor | None = None) -> None:
    """Refuse router logits (tokens, ...) that are infinite or NaN outside the padding. Waits for the device.

    Raises:
        ValueError: naming the layer and the step.

    >>> require_finite_logits(torch.tensor([[0.0, torch.inf]]), "blocks.3.feed_forward", 120)
    Traceback (most recent call last):
    ValueError: router logits of blocks.3.feed_forward at step 120='1 of 2 are infinite or NaN': it must be finite; \
look for a learning rate that is too high, half precision that overflows, or bad input
    """
    wrong = int(only_valid(~torch.isfinite(logits.detach()), valid).sum())
    require(
        wrong == 0,
        f"router logits of {layer} at step {step}",
        f"{wrong} of {logits.numel()} are infinite or NaN",
        "finite; look for a learning rate that is too high, half precision that overflows, or bad input",
    )
