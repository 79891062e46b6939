"""A whole model's router logits, held to be finite before an optimizer steps on what they led to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from toolkit.layers.depths import MixtureOfDepths
from toolkit.layers.moe import MoE
from toolkit.routing.finite import count_non_finite, require_none_non_finite


def non_finite_logits(model: nn.Module) -> dict[str, Tensor]:
    """How many router logits of the last forward are infinite or NaN, by path of every MoE and MixtureOfDepths.

    int64 scalars on the layers' device, which is not waited for; padding is not counted, and where noise was added
    both sides of it are looked at. A layer that has not run has 0.
    """
    return {path: _count(layer) for path, layer in model.named_modules() if isinstance(layer, (MoE, MixtureOfDepths))}


def require_finite_routing(model: nn.Module, step: int, counts: Mapping[str, Tensor] | None = None) -> None:
    """Refuse a model with router logits that are infinite or NaN; call it between ``backward`` and ``optimizer.step``.

    Waits for the device once, however many layers there are. A model without routers passes.

    Args:
        model: any module with :class:`MoE` or :class:`MixtureOfDepths` layers in it.
        step: the optimizer step that is about to be taken.
        counts: what :func:`non_finite_logits` gave, added up where a step has several forwards (accumulated
            gradients, processes); by default that of the last forward.

    Raises:
        DivergedError: a ``ValueError`` that names the first such layer and the step.

    >>> moe = MoE(dim=16, hidden_dim=32, num_experts=4, top_k=2)
    >>> _ = moe(torch.full((3, 16), torch.nan))
    >>> require_finite_routing(nn.Sequential(moe), step=7)
    Traceback (most recent call last):
    toolkit.routing.finite.DivergedError: router logits of 0 at step 7='12 infinite or NaN': it must be finite; look \
for a learning rate that is too high, half precision that overflows, or bad input
    """
    counts = non_finite_logits(model) if counts is None else counts
    if counts:
        for path, count in zip(counts, torch.stack(list(counts.values())).tolist(), strict=True):
            require_none_non_finite(count, path or "the model", step)


def _count(layer: MoE | MixtureOfDepths) -> Tensor:
    if not layer.has_run:
        return torch.zeros((), dtype=torch.int64, device=next(layer.parameters()).device)
    if isinstance(layer, MixtureOfDepths):
        choice = layer.choice
        logits = torch.stack([choice.weight, choice.prediction], dim=-1).flatten(0, 1)
        return count_non_finite(logits, None if choice.real is None else choice.real.flatten())
    assignment = layer.assignment
    valid, noisy = (getattr(assignment, name, None) for name in ("valid", "noisy_logits"))  # a soft one has neither
    count = count_non_finite(assignment.logits, valid)
    return count if noisy is None else count + count_non_finite(noisy, valid)
