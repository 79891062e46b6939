"""Gradients of the parameters: each expert's sum of outer products of its rows, and its sum of rows; no atomics."""

# Triton compiles these functions: their arguments have no Python types, and static branches must stay statements.
# mypy: disallow-untyped-defs=False
# ruff: noqa: SIM108
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def outer_kernel(
    left, left_token, right, right_token, ends, out,
    LEFT_ROW: tl.constexpr, RIGHT_ROW: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``out`` (experts, HEIGHT, WIDTH): the sum over an expert's rows of left^T right, 0 for one without rows.

    A side with a ``token`` list is (tokens, HEIGHT or WIDTH) and its rows are gathered; the other is in sorted order.
    Grid: tiles of (HEIGHT, WIDTH), experts.
    """
    ACROSS: tl.constexpr = (WIDTH + BLOCK_N - 1) // BLOCK_N
    expert = tl.program_id(1)
    begin, stop = rows_of_expert(ends, expert)
    lines = (tl.program_id(0) // ACROSS) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = (tl.program_id(0) % ACROSS) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(begin, stop, BLOCK_K):
        rows = start + tl.arange(0, BLOCK_K)
        own = rows < stop
        a = load_rows(left, left_token, rows, own, LEFT_ROW, lines, HEIGHT, BLOCK_M)
        b = load_rows(right, right_token, rows, own, RIGHT_ROW, columns, WIDTH, BLOCK_N)
        total = tl.dot(tl.trans(a), b, total, input_precision=PRECISION)
    out += expert.to(tl.int64) * HEIGHT * WIDTH
    at = out + lines[:, None].to(tl.int64) * WIDTH + columns[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=(lines < HEIGHT)[:, None] & (columns < WIDTH)[None, :])


@triton.jit
def bias_kernel(
    values, token, order, weight, ends, out,
    VALUES_ROW: tl.constexpr, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``out`` (experts, WIDTH): the sum of an expert's rows of ``values``, 0 for one without rows.

    With ``token`` the rows are gathered, and with ``weight``, by triple, each counts that much. Grid: column tiles of
    WIDTH, experts.
    """
    expert = tl.program_id(1)
    begin, stop = rows_of_expert(ends, expert)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_N], tl.float32)
    for start in range(begin, stop, BLOCK_K):
        rows = start + tl.arange(0, BLOCK_K)
        own = rows < stop
        block = load_rows(values, token, rows, own, VALUES_ROW, columns, WIDTH, BLOCK_N).to(tl.float32)
        if weight is not None:
            triple = tl.load(order + rows, mask=own, other=0)
            block *= tl.load(weight + triple, mask=own, other=0.0)[:, None]
        total += tl.sum(block, 0)
    at = out + expert.to(tl.int64) * WIDTH + columns
    tl.store(at, total.to(out.dtype.element_ty), mask=columns < WIDTH)


@triton.jit
def rows_of_expert(ends, expert):
    """First row and stop of an expert's rows."""
    return tl.load(ends + expert - 1, mask=expert > 0, other=0), tl.load(ends + expert)


@triton.jit
def load_rows(base, token, rows, own, ROW: tl.constexpr, columns, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """(block_k, block): the ``columns`` of sorted ``rows``, gathered if there is a ``token`` list; zeros outside."""
    if token is not None:
        indices = tl.load(token + rows, mask=own, other=0)
    else:
        indices = rows.to(tl.int64)
    at = base + indices[:, None] * ROW + columns[None, :]
    if WIDTH % BLOCK == 0:
        return tl.load(at, mask=own[:, None], other=0.0)
    else:
        return tl.load(at, mask=own[:, None] & (columns < WIDTH)[None, :], other=0.0)
