"""Kernels that do nothing but call one helper, to see what it gives."""

# mypy: disallow-untyped-defs=False
from __future__ import annotations

import triton
import triton.language as tl

from toolkit.attention.kernels.tiles import kept, tanh


@triton.jit
def tanh_kernel(x, y, N: tl.constexpr):
    """``y = tanh(x)``, both (N,)."""
    at = tl.arange(0, N)
    tl.store(y + at, tanh(tl.load(x + at)))


@triton.jit
def kept_kernel(seed, out, row, start, threshold, N: tl.constexpr):
    """``out`` (N,): whether weights start.. of a row, of head 1 and batch entry 1, are kept."""
    at = tl.arange(0, N)
    tl.store(out + at, kept(seed, row + 0 * at, start + at, 1, 1, threshold).to(tl.int32))
