"""A kernel that does nothing but call the activation and its gradient, to see what they give."""

# mypy: disallow-untyped-defs=False
from __future__ import annotations

import triton
import triton.language as tl

from toolkit.layers.experts.kernels.activations import activate, activation_gradient


@triton.jit
def activation_kernel(
    gate, up, gradient, act, d_gate, d_up, alpha, limit,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """All (N,), N a power of two."""
    at = tl.arange(0, N)
    a = tl.load(gate + at)
    b = None
    if GATED:
        b = tl.load(up + at)
    tl.store(act + at, activate(a, b, alpha, limit, ACTIVATION))
    by_gate, by_up = activation_gradient(a, b, tl.load(gradient + at), alpha, limit, ACTIVATION)
    tl.store(d_gate + at, by_gate)
    tl.store(d_up + at, by_up)
