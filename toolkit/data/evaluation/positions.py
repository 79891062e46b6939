"""Loss by position: what a model makes of the context it has seen so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from toolkit.checks import require, require_positive
from toolkit.data.evaluation.perplexity import NLL, token_nll
from toolkit.data.examples import LogitsOf


@dataclass(frozen=True)
class PositionLoss:
    """The NLL of what positions low..high-1 predict: the input at position p has seen p + 1 tokens, itself included."""

    low: int
    high: int
    nll: NLL


def loss_by_position(
    logits_of: LogitsOf, windows: Tensor, edges: Sequence[int], batch_size: int = 1
) -> tuple[PositionLoss, ...]:
    """NLL of each bucket of positions, summed over all windows.

    Args:
        logits_of: the model, called without gradients.
        windows: ids (count, context + 1) int64, such as :func:`toolkit.data.validation_windows` gives.
        edges: of the buckets, low included and high not; positions outside them are not counted.
        batch_size: windows at once.

    Raises:
        ValueError: the edges do not increase from at least 0 to at most the context, or the windows have no target.
    """
    right = "of shape (count, context + 1) with a context of at least 1"
    require(
        windows.dim() == 2 and windows.numel() > 0 and windows.shape[1] >= 2, "windows", tuple(windows.shape), right
    )
    require_positive(batch_size=batch_size)
    context = windows.shape[1] - 1
    pairs = list(pairwise(edges))
    rising = len(pairs) > 0 and all(low < high for low, high in pairs) and edges[0] >= 0 and edges[-1] <= context
    require(rising, "edges", edges, f"increasing, from at least 0 to at most context={context}")
    by_position = torch.zeros(context, dtype=torch.float64)
    with torch.no_grad():
        for part in windows.split(batch_size):
            by_position += token_nll(logits_of, part).double().sum(dim=0).cpu()
    count = len(windows)
    return tuple(
        PositionLoss(low, high, NLL(float(by_position[low:high].sum()), count * (high - low))) for low, high in pairs
    )
