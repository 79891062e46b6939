"""Grouped products: pre-activations and activations of gathered tokens, and plain ones of sorted rows."""

# Triton compiles these functions: their arguments have no Python types, and static branches must stay statements.
# mypy: disallow-untyped-defs=False
from __future__ import annotations

import triton
import triton.language as tl

from toolkit.layers.experts.kernels.activations import activate
from toolkit.layers.experts.kernels.tiles import find_tile, grouped_product, load_lines, load_matrix, rows_of_tile


@triton.jit
def gated_product(
    left, right, columns,
    LENGTH: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Two products (block_m, block_n) fp32 of the rows at ``left``: with rows ``columns`` of a matrix, and WIDTH on.

    ``right`` points to the matrix (2 WIDTH, LENGTH), contiguous.
    """
    steps = tl.arange(0, BLOCK_K)
    at_left = left[:, None] + steps[None, :]
    at_right = right + columns[None, :].to(tl.int64) * LENGTH + steps[:, None]
    gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, LENGTH, BLOCK_K):
        lines = load_lines(at_left, start, LENGTH, BLOCK_K)
        matrix = load_matrix(at_right, start, columns, LENGTH, WIDTH, BLOCK_K, BLOCK_N)
        gate = tl.dot(lines, matrix, gate, input_precision=PRECISION)
        matrix = load_matrix(at_right + WIDTH * LENGTH, start, columns, LENGTH, WIDTH, BLOCK_K, BLOCK_N)
        up = tl.dot(lines, matrix, up, input_precision=PRECISION)
        at_left += BLOCK_K
        at_right += BLOCK_K
    return gate, up


@triton.jit
def hidden_kernel(
    x, token, first, first_bias, row_tiles, hidden, act, alpha, limit,
    X_ROW: tl.constexpr, DIM: tl.constexpr, HIDDEN_DIM: tl.constexpr, ACTIVATION: tl.constexpr,
    GATED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Pre-activations of a tile of rows, ``x[token] @ first[e].T + first_bias[e]``, and their activations.

    Written are ``hidden`` (n, width) and ``act`` (n, hidden_dim), either of which may be None. Grid: row tiles times
    column tiles of hidden_dim.
    """
    COLUMN_TILES: tl.constexpr = (HIDDEN_DIM + BLOCK_N - 1) // BLOCK_N
    WIDTH: tl.constexpr = HIDDEN_DIM * 2 if GATED else HIDDEN_DIM
    expert, start, stop, column_tile = find_tile(row_tiles, COLUMN_TILES)
    if start >= stop:
        return
    rows, own = rows_of_tile(start, stop, BLOCK_M)
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    left = x + tl.load(token + start + rows) * X_ROW
    first += expert * WIDTH * DIM
    if GATED:
        gate, up = gated_product(left, first, columns, DIM, HIDDEN_DIM, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
    else:
        gate = grouped_product(
            left, first, columns, DIM, HIDDEN_DIM, 1, DIM, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K
        )  # fmt: skip
        up = None
    inside = columns < HIDDEN_DIM
    if first_bias is not None:
        first_bias += expert * WIDTH
        gate += tl.load(first_bias + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
        if GATED:
            up += tl.load(first_bias + HIDDEN_DIM + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    written = own[:, None] & inside[None, :]
    if hidden is not None:
        at = hidden + start * WIDTH + rows[:, None] * WIDTH + columns[None, :]
        tl.store(at, gate.to(hidden.dtype.element_ty), mask=written)
        if GATED:
            tl.store(at + HIDDEN_DIM, up.to(hidden.dtype.element_ty), mask=written)
    if act is not None:
        values = activate(gate, up, alpha, limit, ACTIVATION)
        at = act + start * HIDDEN_DIM + rows[:, None] * HIDDEN_DIM + columns[None, :]
        tl.store(at, values.to(act.dtype.element_ty), mask=written)


@triton.jit
def product_kernel(
    left, right, bias, row_tiles, out,
    LENGTH: tl.constexpr, WIDTH: tl.constexpr, RIGHT_K: tl.constexpr, RIGHT_N: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``out`` (n, WIDTH): each sorted row of ``left`` (n, LENGTH) times its expert's matrix, plus its bias.

    The matrices, LENGTH by WIDTH, follow one another in ``right``, strides RIGHT_K and RIGHT_N; ``bias`` is (experts,
    WIDTH) or None. Grid: row tiles times column tiles of WIDTH.
    """
    COLUMN_TILES: tl.constexpr = (WIDTH + BLOCK_N - 1) // BLOCK_N
    expert, start, stop, column_tile = find_tile(row_tiles, COLUMN_TILES)
    if start >= stop:
        return
    rows, own = rows_of_tile(start, stop, BLOCK_M)
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    right += expert * LENGTH * WIDTH
    total = grouped_product(
        left + (start + rows) * LENGTH, right, columns,
        LENGTH, WIDTH, RIGHT_K, RIGHT_N, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    inside = columns < WIDTH
    if bias is not None:
        total += tl.load(bias + expert * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    at = out + start * WIDTH + rows[:, None] * WIDTH + columns[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=own[:, None] & inside[None, :])
