"""The activations and their derivatives into buffers that are there already, for the CPU: no memory is allocated twice.

Each activation is a pair of functions. ``apply(hidden, active, kept)`` writes the activation of ``hidden`` and may
leave in ``kept`` what its derivative reads again; ``derive(hidden, d_active, d_hidden, kept)`` writes the gradient and
may overwrite ``d_active``. Shapes: hidden, d_hidden (rows, width); active, d_active, kept (rows, hidden_dim).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from toolkit.layers.experts.activations import Activation

aten = torch.ops.aten


class InPlace(NamedTuple):
    """One activation into buffers."""

    apply: Callable[[Tensor, Tensor, Tensor], None]
    derive: Callable[[Tensor, Tensor, Tensor, Tensor], None]


def in_place(activation: Activation) -> InPlace:
    """The pair of functions of ``activation``."""
    if activation.name == "clamped_swiglu":
        alpha, limit = activation.alpha, activation.limit
        return InPlace(
            partial(_clamped_swiglu, alpha=alpha, limit=limit),
            partial(_clamped_swiglu_gradient, alpha=alpha, limit=limit),
        )
    return _PLAIN[activation.name]


def _swiglu(hidden: Tensor, active: Tensor, kept: Tensor) -> None:
    gate, up = hidden.chunk(2, dim=-1)
    aten.silu.out(gate, out=kept)
    torch.mul(kept, up, out=active)


def _swiglu_gradient(hidden: Tensor, d_active: Tensor, d_hidden: Tensor, kept: Tensor) -> None:
    gate, up = hidden.chunk(2, dim=-1)
    d_gate, d_up = d_hidden.chunk(2, dim=-1)
    torch.mul(d_active, kept, out=d_up)
    aten.silu_backward.grad_input(d_active.mul_(up), gate, grad_input=d_gate)


def _gelu(hidden: Tensor, active: Tensor, kept: Tensor) -> None:
    aten.gelu.out(hidden, out=active)


def _gelu_gradient(hidden: Tensor, d_active: Tensor, d_hidden: Tensor, kept: Tensor) -> None:
    aten.gelu_backward.grad_input(d_active, hidden, grad_input=d_hidden)


def _relu2(hidden: Tensor, active: Tensor, kept: Tensor) -> None:
    torch.clamp(hidden, min=0, out=kept)
    torch.mul(kept, kept, out=active)


def _relu2_gradient(hidden: Tensor, d_active: Tensor, d_hidden: Tensor, kept: Tensor) -> None:
    torch.mul(d_active.mul_(2), kept, out=d_hidden)


def _clamped_swiglu(hidden: Tensor, active: Tensor, kept: Tensor, alpha: float, limit: float) -> None:
    gate, up = hidden.chunk(2, dim=-1)
    gate = gate.clamp(max=limit)
    torch.mul(gate, torch.sigmoid(alpha * gate), out=kept)
    torch.mul(kept, up.clamp(-limit, limit).add_(1), out=active)


def _clamped_swiglu_gradient(
    hidden: Tensor, d_active: Tensor, d_hidden: Tensor, kept: Tensor, alpha: float, limit: float
) -> None:
    gate, up = hidden.chunk(2, dim=-1)
    d_gate, d_up = d_hidden.chunk(2, dim=-1)
    torch.mul(d_active, kept, out=d_up)
    d_up.mul_(up.abs() <= limit)
    bent = torch.sigmoid(alpha * gate.clamp(max=limit))
    # (g s(ag))' = s + a g s (1 - s)
    slope = torch.addcmul(bent, kept, 1 - bent, value=alpha)
    torch.mul(d_active.mul_(up.clamp(-limit, limit).add_(1)), slope, out=d_gate)
    d_gate.mul_(gate <= limit)


_PLAIN = {
    "swiglu": InPlace(_swiglu, _swiglu_gradient),
    "gelu": InPlace(_gelu, _gelu_gradient),
    "relu2": InPlace(_relu2, _relu2_gradient),
}
