"""The forward kernel: one program holds a tile of query rows and passes over the key tiles its runs name."""

# Triton compiles these functions: their arguments have no Python types, and static branches must stay statements.
# mypy: disallow-untyped-defs=False
# ruff: noqa: SIM102, SIM108, PLR0912
from __future__ import annotations

import triton
import triton.language as tl

from toolkit.attention.kernels.tiles import (
    LN2,
    LOG2E,
    VARYING,
    counted,
    kept_tile,
    load_vectors,
    places_to_indices,
    score,
    sees,
    store_vectors,
)


@triton.jit
def soften(scores, peak, total, sums):
    """One step of the online softmax in base 2: the tile's weights, and the state rescaled to the new peak.

    Shapes: scores (block_m, block_n); peak and total (block_m,); sums (block_m, block_dv). The total leaves with the
    weights of the tile added, the sums without.
    """
    higher = tl.maximum(peak, tl.max(scores, 1))
    finite = tl.where(higher == float("-inf"), 0.0, higher)  # -inf - -inf is nan
    weights = tl.exp2(scores - finite[:, None])
    shrink = tl.exp2(peak - finite)
    return weights, higher, total * shrink + tl.sum(weights, 1), sums * shrink[:, None]


@triton.jit
def forward_tile(
    peak, total, sums, queries, k, v, tile, columns, seen, first, stop, places, rows, valid_rows, slope, seed,
    k_row, v_row, n_columns, q_start, kv_start, scale, softcap, threshold, head, batch,
    MASKED: tl.constexpr, SLOTS: tl.constexpr, QUADS: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, DIM_V: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Add one tile of keys to the state of the online softmax; ``rows`` (block_m,) are query indices."""
    column_places = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    indices, valid = places_to_indices(column_places, columns, n_columns)
    if MASKED:
        # A column that no row sees may hold anything, nan too, and 0 * nan would spread it.
        load_mask = valid & (tl.load(seen + column_places, mask=valid, other=0) != 0)
    else:
        load_mask = None
    keys = load_vectors(k, indices, load_mask, k_row, DIM, BLOCK_D)
    products = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
    i = (q_start + rows)[:, None]
    j = (kv_start + indices)[None, :]
    scores = score(products, i, j, slope, scale, softcap, SOFTCAP)
    if MASKED:
        visible = sees(column_places, first, stop, places, valid_rows, SLOTS, False)
        scores = tl.where(visible, scores, float("-inf"))
    weights, peak, total, sums = soften(scores, peak, total, sums)
    if seed is not None:
        start = kv_start + tile * BLOCK_N
        keep = kept_tile(
            seed, q_start + rows, kv_start + indices, start, head, batch, threshold, QUADS, BLOCK_N, False
        )  # fmt: skip
        weights = tl.where(keep, weights, 0.0)
    values = load_vectors(v, indices, load_mask, v_row, DIM_V, BLOCK_DV)
    sums = tl.dot(weights.to(values.dtype), values, sums, input_precision=PRECISION)
    return peak, total, sums


@triton.jit(do_not_specialize=VARYING)
def forward_kernel(
    q, k, v, out, lse, rows, columns, seen, first, stop, heads, slopes, sinks, seed,
    full_first, full_stop, full_count, part_first, part_stop, part_count,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, out_batch, out_head, out_row,
    rows_batch, rows_head, columns_batch, seen_batch, bounds_batch, bounds_head,
    full_batch, full_head, full_slots, part_batch, part_head, part_slots,
    n_queries, n_rows, n_columns, q_start, kv_start, scale, softcap, keep_scale, threshold, first_head,
    GROUP: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr, SLOTS: tl.constexpr, CONTINUE: tl.constexpr,
    QUADS: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Attention of one tile of rows, one query head, one batch entry: grid (row tiles, heads, batch).

    With ``CONTINUE`` the state starts from the fp32 ``out`` and ``lse`` that earlier passes left.
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # causal rows near the end see most: they start first
    head = tl.program_id(1)
    batch = tl.program_id(2)
    if heads is not None:
        if tl.load(heads + head) == 0:
            return
    b = batch.to(tl.int64)
    h = head.to(tl.int64)
    kv_head = h // GROUP
    q += b * q_batch + h * q_head
    k += b * k_batch + kv_head * k_head
    v += b * v_batch + kv_head * v_head
    out += b * out_batch + h * out_head
    lse += (b * tl.num_programs(1) + h) * n_queries
    first += b * bounds_batch + h * bounds_head
    stop += b * bounds_batch + h * bounds_head
    seen += b * seen_batch
    if rows is not None:
        rows += b * rows_batch + h * rows_head
    if columns is not None:
        columns += b * columns_batch

    places = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row, valid = places_to_indices(places, rows, n_rows)
    queries = load_vectors(q, row, valid, q_row, DIM, BLOCK_D)
    slope = None
    if slopes is not None:
        slope = tl.load(slopes + head)
    if CONTINUE:
        peak = tl.load(lse + row, mask=valid, other=float("-inf")) * LOG2E
        total = tl.full([BLOCK_M], 1.0, tl.float32)
        sums = load_vectors(out, row, valid, out_row, DIM_V, BLOCK_DV) / keep_scale
    else:
        sums = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
        if sinks is not None:
            peak = tl.full([BLOCK_M], 0.0, tl.float32) + tl.load(sinks + head) * LOG2E
            total = tl.full([BLOCK_M], 1.0, tl.float32)
        else:
            peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
            total = tl.zeros([BLOCK_M], tl.float32)

    full = b * full_batch + h * full_head + tile
    for run in range(tl.load(full_count + full)):
        at = full * full_slots + run
        for key_tile in range(tl.load(full_first + at), tl.load(full_stop + at)):
            peak, total, sums = forward_tile(
                peak, total, sums, queries, k, v, key_tile, columns, seen, first, stop, places, row, valid, slope, seed,
                k_row, v_row, n_columns, q_start, kv_start, scale, softcap, threshold, counted(head, first_head), batch,
                False, SLOTS, QUADS, SOFTCAP, PRECISION, BLOCK_N, DIM, BLOCK_D, DIM_V, BLOCK_DV,
            )  # fmt: skip
    part = b * part_batch + h * part_head + tile
    for run in range(tl.load(part_count + part)):
        at = part * part_slots + run
        for key_tile in range(tl.load(part_first + at), tl.load(part_stop + at)):
            peak, total, sums = forward_tile(
                peak, total, sums, queries, k, v, key_tile, columns, seen, first, stop, places, row, valid, slope, seed,
                k_row, v_row, n_columns, q_start, kv_start, scale, softcap, threshold, counted(head, first_head), batch,
                True, SLOTS, QUADS, SOFTCAP, PRECISION, BLOCK_N, DIM, BLOCK_D, DIM_V, BLOCK_DV,
            )  # fmt: skip

    sums *= (keep_scale / tl.where(total == 0, 1.0, total))[:, None]
    store_vectors(out, row, valid, out_row, sums, DIM_V, BLOCK_DV, False)
    tl.store(lse + row, (peak + tl.log2(total)) * LN2, mask=valid)
