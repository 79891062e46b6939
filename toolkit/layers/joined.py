"""Auxiliary losses on the output's graph: whoever delivers the output's gradient delivers theirs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def join_losses(y: Tensor, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """y (any shape) and scalar losses, unchanged, as outputs of one node.

    The engine runs a node once, when the gradients of all its outputs are there, so the losses' gradient enters
    a layer together with its output's: hooks on the output (FSDP's gathering of parameters, checkpointing) have
    run by then.
    """
    if not losses:
        return y, losses
    y, *left = _Together.apply(y, *losses.values())
    return y, dict(zip(losses, left, strict=True))


class _Together(torch.autograd.Function):
    @staticmethod
    def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
        # detached and not viewed: torch refuses to change in place a view that is one of several outputs
        return tuple(tensor.detach() for tensor in tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept; apart from ``forward``, as torch.func wants it."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients
