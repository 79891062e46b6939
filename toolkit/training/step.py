"""The loss of one batch, the same in training, probing and tests."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.layers import auxiliary_losses
from toolkit.models import Decoder


def next_token_nll(decoder: Decoder, windows: Tensor, reduction: str = "mean") -> Tensor:
    """Negative log-likelihood in nats of each token given those before it.

    Shapes: windows (batch, context + 1) int64 -> scalar for ``"mean"`` and ``"sum"``,
    (batch * context,) for ``"none"``. In fp32 at least.
    """
    logits = decoder(windows[:, :-1]).logits.flatten(0, 1)
    compute = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(compute), windows[:, 1:].flatten(), reduction=reduction)


def training_loss(decoder: Decoder, windows: Tensor) -> tuple[Tensor, Tensor]:
    """The loss to minimise and, detached, its language-modelling part: nats per token."""
    nll = next_token_nll(decoder, windows)
    return nll + sum(auxiliary_losses(decoder).values()), nll.detach()
