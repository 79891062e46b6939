"""Pairs of dimensions turned by given angles: every element read once and written once, in fp32 between."""

# Triton compiles these functions: their arguments have no Python types, and static branches must stay statements.
# mypy: disallow-untyped-defs=False
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["length"])
def rotate_kernel(
    x, cos, sin, out, x_batch, x_head, x_row, out_batch, out_head, out_row, table_batch, length, n_heads, n_rotated,
    sign, HEAD_DIM: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """``out`` (b, h, n, HEAD_DIM): the first n_rotated heads of ``x`` turned by ``sign`` times the angle, others as is.

    ``cos``, ``sin`` (b or 1, n, HALF) in fp32, contiguous, ``table_batch`` 0 for one row. Dims from 2 HALF on pass.
    One program turns GROUP heads at BLOCK_N positions, whose table it reads once. Grid: tiles of positions, groups of
    heads, batch.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    batch = tl.program_id(2).to(tl.int64)
    pairs = tl.arange(0, BLOCK_HALF)
    inside = rows < length
    known = inside[:, None] & (pairs < HALF)[None, :]
    at = batch * table_batch + rows[:, None] * HALF + pairs[None, :]
    c = tl.load(cos + at, mask=known, other=0.0)
    s = tl.load(sin + at, mask=known, other=0.0) * sign
    for n in tl.static_range(GROUP):
        head = tl.program_id(1).to(tl.int64) * GROUP + n
        source = x + batch * x_batch + head * x_head + rows * x_row
        target = out + batch * out_batch + head * out_head + rows * out_row
        live, turns = inside & (head < n_heads), head < n_rotated
        if INTERLEAVED:
            _turn_neighbours(source, target, c, s, live, turns, HALF, BLOCK_N, BLOCK_HALF)
        else:
            _turn_halves(source, target, c, s, live, turns, HALF, BLOCK_HALF)
        if 2 * HALF < HEAD_DIM:
            rest = 2 * HALF + tl.arange(0, BLOCK_REST)
            own = live[:, None] & (rest < HEAD_DIM)[None, :]
            tl.store(target[:, None] + rest[None, :], tl.load(source[:, None] + rest[None, :], mask=own), mask=own)


@triton.jit
def _turn_halves(source, target, c, s, live, turns, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
    """Pairs (k, k + HALF) of the rows at ``source`` (n,), to those at ``target``."""
    pairs = tl.arange(0, BLOCK_HALF)
    own = live[:, None] & (pairs < HALF)[None, :]
    first = tl.load(source[:, None] + pairs[None, :], mask=own, other=0.0)
    second = tl.load(source[:, None] + (HALF + pairs)[None, :], mask=own, other=0.0)
    first, second = _turned(first.to(tl.float32), second.to(tl.float32), c, s, turns)
    tl.store(target[:, None] + pairs[None, :], first.to(target.dtype.element_ty), mask=own)
    tl.store(target[:, None] + (HALF + pairs)[None, :], second.to(target.dtype.element_ty), mask=own)


@triton.jit
def _turn_neighbours(
    source, target, c, s, live, turns, HALF: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_HALF: tl.constexpr
):
    """Pairs (2k, 2k + 1) of the rows at ``source`` (n,), to those at ``target``; read and written side by side."""
    dims = tl.arange(0, 2 * BLOCK_HALF)
    own = live[:, None] & (dims < 2 * HALF)[None, :]
    values = tl.load(source[:, None] + dims[None, :], mask=own, other=0.0).to(tl.float32)
    first, second = tl.split(tl.reshape(values, [BLOCK_N, BLOCK_HALF, 2]))
    first, second = _turned(first, second, c, s, turns)
    values = tl.reshape(tl.join(first, second), [BLOCK_N, 2 * BLOCK_HALF])
    tl.store(target[:, None] + dims[None, :], values.to(target.dtype.element_ty), mask=own)


@triton.jit
def _turned(first, second, c, s, turns):
    """The pairs (first, second) turned, or as they are; not by an angle of 0, which spreads infinities and nan."""
    return tl.where(turns, first * c - second * s, first), tl.where(turns, second * c + first * s, second)
