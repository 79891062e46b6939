"""From rows of experts back to tokens and triples: gather and sum in a fixed order, no atomics."""

# Triton compiles these functions: their arguments have no Python types, and static branches must stay statements.
# mypy: disallow-untyped-defs=False
from __future__ import annotations

import triton
import triton.language as tl

from toolkit.layers.experts.kernels.tiles import VARYING


@triton.jit
def combine_kernel(
    y, weight, place, starts, ends, out, n_experts,
    DIM: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``out`` (tokens, DIM): the sum in fp32 of each token's rows of ``y`` (n, DIM), times their ``weight`` if given.

    Triples without an expert stand behind all experts' rows and are not read; a token without triples gives 0.
    Grid: tokens times column tiles of DIM.
    """
    COLUMN_TILES: tl.constexpr = (DIM + BLOCK_N - 1) // BLOCK_N
    token = (tl.program_id(0) // COLUMN_TILES).to(tl.int64)
    columns = (tl.program_id(0) % COLUMN_TILES) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < DIM
    n_live = tl.load(ends + n_experts - 1)
    total = tl.zeros([BLOCK_N], tl.float32)
    for triple in range(tl.load(starts + token), tl.load(starts + token + 1)):
        row = tl.load(place + triple)
        live = row < n_live
        values = tl.load(y + row * DIM + columns, mask=inside & live, other=0.0).to(tl.float32)
        if weight is not None:
            values *= tl.load(weight + triple, mask=live, other=0.0)
        total += values
    tl.store(out + token * DIM + columns, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=VARYING)
def weight_kernel(
    partial, token, order, ends, d_out, second_bias, d_weight, n_rows, n_experts,
    D_OUT_ROW: tl.constexpr, DIM: tl.constexpr, PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``d_weight`` (n,) by triple: its row's ``partial`` (PARTS, n) summed, plus <d_out, second_bias> if there is one.

    0 for a triple without an expert, whose parts nobody wrote. Grid: tiles of rows.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    written = rows < n_rows
    own = rows < tl.load(ends + n_experts - 1)
    total = tl.zeros([BLOCK_M], tl.float32)
    for part in range(PARTS):
        total += tl.load(partial + part * n_rows.to(tl.int64) + rows, mask=own, other=0.0)
    if second_bias is not None:
        at_d_out = d_out + tl.load(token + rows, mask=own, other=0) * D_OUT_ROW
        expert = tl.zeros([BLOCK_M], tl.int64)
        for number in range(n_experts):
            expert += (rows >= tl.load(ends + number)).to(tl.int64)
        at_bias = second_bias + expert * DIM
        for start in range(0, DIM, BLOCK_K):
            steps = start + tl.arange(0, BLOCK_K)
            inside = own[:, None] & (steps < DIM)[None, :]
            gradients = tl.load(at_d_out[:, None] + steps[None, :], mask=inside, other=0.0).to(tl.float32)
            bias = tl.load(at_bias[:, None] + steps[None, :], mask=inside, other=0.0).to(tl.float32)
            total += tl.sum(gradients * bias, 1)
    tl.store(d_weight + tl.load(order + rows, mask=written, other=0), total, mask=written)
