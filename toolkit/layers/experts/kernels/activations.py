"""The activations of :mod:`toolkit.layers.experts.activations` and their derivatives, in fp32."""

# Triton compiles these functions: their arguments have no Python types, and static branches must stay statements.
# mypy: disallow-untyped-defs=False
from __future__ import annotations

import triton
import triton.language as tl

SQRT_HALF = tl.constexpr(0.7071067811865476)
INVERSE_SQRT_2PI = tl.constexpr(0.3989422804014327)


@triton.jit
def activate(gate, up, alpha, limit, ACTIVATION: tl.constexpr):
    """Activations (block_m, block_n) of pre-activations of that shape; ``up`` is None where there is no gate."""
    if ACTIVATION == "swiglu":
        return gate * tl.sigmoid(gate) * up
    elif ACTIVATION == "clamped_swiglu":
        bounded = tl.minimum(gate, limit)
        return bounded * tl.sigmoid(alpha * bounded) * (_clamp(up, limit) + 1)
    elif ACTIVATION == "gelu":
        return gate * _normal_cdf(gate)
    else:
        positive = tl.maximum(gate, 0.0)
        return positive * positive


@triton.jit
def activation_gradient(gate, up, gradient, alpha, limit, ACTIVATION: tl.constexpr):
    """Gradients by ``gate`` and ``up`` of what has ``gradient`` (block_m, block_n) by the activations.

    Where a clamp cuts off there is none; without ``up`` the second is the first again.
    """
    if ACTIVATION == "swiglu":
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        return gradient * up * (sigmoid + silu * (1 - sigmoid)), gradient * silu
    elif ACTIVATION == "clamped_swiglu":
        bounded = tl.minimum(gate, limit)
        sigmoid = tl.sigmoid(alpha * bounded)
        swish = bounded * sigmoid
        slope = sigmoid + alpha * swish * (1 - sigmoid)
        d_gate = gradient * (_clamp(up, limit) + 1) * slope
        d_up = tl.where((up >= -limit) & (up <= limit), gradient * swish, 0.0)
        return tl.where(gate <= limit, d_gate, 0.0), d_up
    elif ACTIVATION == "gelu":
        density = INVERSE_SQRT_2PI * tl.exp(-0.5 * gate * gate)
        d_gate = gradient * (_normal_cdf(gate) + gate * density)
        return d_gate, d_gate
    else:
        d_gate = gradient * 2 * tl.maximum(gate, 0.0)
        return d_gate, d_gate


@triton.jit
def _clamp(x, limit):
    return tl.minimum(tl.maximum(x, -limit), limit)


@triton.jit
def _normal_cdf(x):
    return 0.5 * (1 + tl.erf(x * SQRT_HALF))
