"""The first product of the backward pass, and with it the gradients by pre-activations and by gates."""

# Triton compiles these functions: their arguments have no Python types, and static branches must stay statements.
# mypy: disallow-untyped-defs=False
from __future__ import annotations

import triton
import triton.language as tl

from toolkit.layers.experts.kernels.activations import activate, activation_gradient
from toolkit.layers.experts.kernels.tiles import VARYING, find_tile, grouped_product, rows_of_tile


@triton.jit(do_not_specialize=VARYING)
def gradient_kernel(
    d_out, token, order, weight, second, hidden, row_tiles, d_hidden, weighted, partial,
    n_rows, alpha, limit,
    D_OUT_ROW: tl.constexpr, DIM: tl.constexpr, HIDDEN_DIM: tl.constexpr, ACTIVATION: tl.constexpr,
    GATED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dA = w dA' with dA' = ``d_out[token] @ second[e]``, taken through the activation while it is at hand.

    Written are ``d_hidden`` (n, width); ``weighted`` (n, hidden_dim), w A, A computed again from ``hidden``; and
    ``partial`` (column tiles, n) fp32, the part of <dA', A> that this tile of columns has. Grid: row tiles times
    column tiles of hidden_dim.
    """
    COLUMN_TILES: tl.constexpr = (HIDDEN_DIM + BLOCK_N - 1) // BLOCK_N
    WIDTH: tl.constexpr = HIDDEN_DIM * 2 if GATED else HIDDEN_DIM
    expert, start, stop, column_tile = find_tile(row_tiles, COLUMN_TILES)
    if start >= stop:
        return
    rows, own = rows_of_tile(start, stop, BLOCK_M)
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    left = d_out + tl.load(token + start + rows) * D_OUT_ROW
    d_act = grouped_product(
        left, second + expert * DIM * HIDDEN_DIM, columns,
        DIM, HIDDEN_DIM, HIDDEN_DIM, 1, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    written = own[:, None] & (columns < HIDDEN_DIM)[None, :]
    at_hidden = rows[:, None] * WIDTH + columns[None, :]
    hidden += start * WIDTH
    d_hidden += start * WIDTH
    gate = tl.load(hidden + at_hidden, mask=written, other=0.0).to(tl.float32)
    up = None
    if GATED:
        up = tl.load(hidden + at_hidden + HIDDEN_DIM, mask=written, other=0.0).to(tl.float32)
    act = activate(gate, up, alpha, limit, ACTIVATION)
    tl.store(partial + column_tile.to(tl.int64) * n_rows + start + rows, tl.sum(d_act * act, 1), mask=own)
    w = tl.load(weight + tl.load(order + start + rows))[:, None]
    at = weighted + start * HIDDEN_DIM + rows[:, None] * HIDDEN_DIM + columns[None, :]
    tl.store(at, (w * act).to(weighted.dtype.element_ty), mask=written)
    # Read again, from the cache: held from the first time on, what hidden holds would take the registers of a product.
    gate = tl.load(hidden + at_hidden, mask=written, other=0.0).to(tl.float32)
    if GATED:
        up = tl.load(hidden + at_hidden + HIDDEN_DIM, mask=written, other=0.0).to(tl.float32)
    d_gate, d_up = activation_gradient(gate, up, w * d_act, alpha, limit, ACTIVATION)
    tl.store(d_hidden + at_hidden, d_gate.to(d_hidden.dtype.element_ty), mask=written)
    if GATED:
        tl.store(d_hidden + at_hidden + HIDDEN_DIM, d_up.to(d_hidden.dtype.element_ty), mask=written)
