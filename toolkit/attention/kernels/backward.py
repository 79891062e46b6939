"""The backward kernels: D, the gradient of queries by row tiles, and of keys and values by column tiles; no atomics."""

# Triton compiles these functions: their arguments have no Python types, and static branches must stay statements.
# mypy: disallow-untyped-defs=False
# ruff: noqa: SIM102, SIM108
from __future__ import annotations

import triton
import triton.language as tl

from toolkit.attention.kernels.tiles import (
    LOG2E,
    VARYING,
    counted,
    has_keys,
    kept_tile,
    load_vectors,
    places_to_indices,
    score,
    sees,
    store_vectors,
    through_softcap,
)


@triton.jit(do_not_specialize=VARYING)
def delta_kernel(
    out, d_out, lse, d_lse, delta,
    out_batch, out_head, out_row, d_out_batch, d_out_head, d_out_row, n_queries,
    DIM_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """``delta`` (b, h, i) = sum over channels of d_out * out, less d_lse; 0 in rows that see nothing."""
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = row < n_queries
    state = (batch * tl.num_programs(1) + head) * n_queries
    live = tl.load(lse + state + row, mask=valid, other=float("-inf")) != float("-inf")
    out += batch * out_batch + head * out_head
    d_out += batch * d_out_batch + head * d_out_head
    outputs = load_vectors(out, row, live, out_row, DIM_V, BLOCK_DV).to(tl.float32)
    gradients = load_vectors(d_out, row, live, d_out_row, DIM_V, BLOCK_DV).to(tl.float32)
    sums = tl.sum(outputs * gradients, 1)
    if d_lse is not None:
        sums -= tl.load(d_lse + state + row, mask=live, other=0.0)
    tl.store(delta + state + row, sums, mask=valid)


@triton.jit
def load_state(lse, delta, rows, live):
    """Base-2 lse and D of rows, (block_m,) fp32; lse is inf where a row is not ``live``, so its weights are 0."""
    log_total = tl.load(lse + rows, mask=live, other=float("inf")) * LOG2E
    return log_total, tl.load(delta + rows, mask=live, other=0.0)


@triton.jit
def queries_tile(
    grad, queries, gradients, log_total, delta, k, v, tile, columns, seen, first, stop, places, rows, valid_rows,
    slope, seed, k_row, v_row, n_columns, q_start, kv_start, scale, softcap, keep_scale, threshold, head, batch,
    MASKED: tl.constexpr, SLOTS: tl.constexpr, QUADS: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, DIM_V: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Add what one tile of keys gives to the gradient of the queries (block_m, block_d), not yet times the scale."""
    column_places = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    indices, valid = places_to_indices(column_places, columns, n_columns)
    if MASKED:
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
    weights = tl.exp2(scores - log_total[:, None])
    values = load_vectors(v, indices, load_mask, v_row, DIM_V, BLOCK_DV)
    by_weight = tl.dot(gradients, tl.trans(values), input_precision=PRECISION)
    if seed is not None:
        start = kv_start + tile * BLOCK_N
        keep = kept_tile(
            seed, q_start + rows, kv_start + indices, start, head, batch, threshold, QUADS, BLOCK_N, False
        )  # fmt: skip
        by_weight = tl.where(keep, by_weight * keep_scale, 0.0)
    by_score = weights * (by_weight - delta[:, None])
    by_product = through_softcap(by_score, products, scale, softcap, SOFTCAP)
    return tl.dot(by_product.to(keys.dtype), keys, grad, input_precision=PRECISION)


@triton.jit(do_not_specialize=VARYING)
def queries_kernel(
    q, k, v, d_out, lse, delta, dq, rows, columns, seen, first, stop, heads, slopes, seed,
    full_first, full_stop, full_count, part_first, part_stop, part_count,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, d_out_batch, d_out_head, d_out_row,
    dq_batch, dq_head, dq_row,
    rows_batch, rows_head, columns_batch, seen_batch, bounds_batch, bounds_head,
    full_batch, full_head, full_slots, part_batch, part_head, part_slots,
    n_queries, n_rows, n_columns, q_start, kv_start, scale, softcap, keep_scale, threshold, first_head,
    GROUP: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr, SLOTS: tl.constexpr, ACCUMULATE: tl.constexpr,
    QUADS: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile of queries: grid (row tiles, heads, batch)."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
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
    d_out += b * d_out_batch + h * d_out_head
    dq += b * dq_batch + h * dq_head
    lse += (b * tl.num_programs(1) + h) * n_queries
    delta += (b * tl.num_programs(1) + h) * n_queries
    first += b * bounds_batch + h * bounds_head
    stop += b * bounds_batch + h * bounds_head
    seen += b * seen_batch
    if rows is not None:
        rows += b * rows_batch + h * rows_head
    if columns is not None:
        columns += b * columns_batch

    places = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row, valid = places_to_indices(places, rows, n_rows)
    live = valid & has_keys(first, stop, places, valid, SLOTS)  # what stands in a row that sees nothing may be nan
    queries = load_vectors(q, row, live, q_row, DIM, BLOCK_D)
    gradients = load_vectors(d_out, row, live, d_out_row, DIM_V, BLOCK_DV)
    log_total, d = load_state(lse, delta, row, live)
    slope = None
    if slopes is not None:
        slope = tl.load(slopes + head)
    grad = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    full = b * full_batch + h * full_head + tile
    for run in range(tl.load(full_count + full)):
        at = full * full_slots + run
        for key_tile in range(tl.load(full_first + at), tl.load(full_stop + at)):
            grad = queries_tile(
                grad, queries, gradients, log_total, d, k, v, key_tile, columns, seen, first, stop, places, row, valid,
                slope, seed, k_row, v_row, n_columns, q_start, kv_start, scale, softcap, keep_scale, threshold,
                counted(head, first_head), batch,
                False, SLOTS, QUADS, SOFTCAP, PRECISION, BLOCK_N, DIM, BLOCK_D, DIM_V, BLOCK_DV,
            )  # fmt: skip
    part = b * part_batch + h * part_head + tile
    for run in range(tl.load(part_count + part)):
        at = part * part_slots + run
        for key_tile in range(tl.load(part_first + at), tl.load(part_stop + at)):
            grad = queries_tile(
                grad, queries, gradients, log_total, d, k, v, key_tile, columns, seen, first, stop, places, row, valid,
                slope, seed, k_row, v_row, n_columns, q_start, kv_start, scale, softcap, keep_scale, threshold,
                counted(head, first_head), batch,
                True, SLOTS, QUADS, SOFTCAP, PRECISION, BLOCK_N, DIM, BLOCK_D, DIM_V, BLOCK_DV,
            )  # fmt: skip
    store_vectors(dq, row, valid, dq_row, grad * scale, DIM, BLOCK_D, ACCUMULATE)


@triton.jit
def keys_tile(
    grad_k, grad_v, keys, values, q, d_out, lse, delta, tile, columns, column_tile, rows, first, stop, slope, seed,
    q_row, d_out_row, n_rows, q_start, kv_start, scale, softcap, keep_scale, threshold, head, batch,
    MASKED: tl.constexpr, SLOTS: tl.constexpr, QUADS: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    DIM_V: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Add what one tile of rows of one head gives to the gradients of keys and values; tiles are (block_n, block_m)."""
    places = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row, valid = places_to_indices(places, rows, n_rows)
    live = valid
    if MASKED:
        live = valid & has_keys(first, stop, places, valid, SLOTS)
    queries = load_vectors(q, row, live, q_row, DIM, BLOCK_D)
    log_total, d = load_state(lse, delta, row, live)
    products = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
    i = (q_start + row)[None, :]
    j = (kv_start + columns)[:, None]
    scores = score(products, i, j, slope, scale, softcap, SOFTCAP)
    if MASKED:
        visible = sees(column_tile * BLOCK_N + tl.arange(0, BLOCK_N), first, stop, places, valid, SLOTS, True)
        scores = tl.where(visible, scores, float("-inf"))
    weights = tl.exp2(scores - log_total[None, :])
    gradients = load_vectors(d_out, row, live, d_out_row, DIM_V, BLOCK_DV)
    by_weight = tl.dot(values, tl.trans(gradients), input_precision=PRECISION)
    dropped = weights
    if seed is not None:
        start = kv_start + column_tile * BLOCK_N
        keep = kept_tile(
            seed, q_start + row, kv_start + columns, start, head, batch, threshold, QUADS, BLOCK_N, True
        )  # fmt: skip
        dropped = tl.where(keep, weights * keep_scale, 0.0)
        by_weight = tl.where(keep, by_weight * keep_scale, 0.0)
    grad_v = tl.dot(dropped.to(gradients.dtype), gradients, grad_v, input_precision=PRECISION)
    by_score = weights * (by_weight - d[None, :])
    by_product = through_softcap(by_score, products, scale, softcap, SOFTCAP)
    grad_k = tl.dot(by_product.to(queries.dtype), queries, grad_k, input_precision=PRECISION)
    return grad_k, grad_v


@triton.jit(do_not_specialize=VARYING)
def keys_kernel(
    q, k, v, d_out, lse, delta, dk, dv, rows, columns, seen, first, stop, heads, slopes, seed,
    full_first, full_stop, full_count, part_first, part_stop, part_count,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, d_out_batch, d_out_head, d_out_row,
    dk_batch, dk_head, dk_row, dv_batch, dv_head, dv_row,
    rows_batch, rows_head, columns_batch, seen_batch, bounds_batch, bounds_head,
    full_batch, full_head, full_slots, part_batch, part_head, part_slots,
    n_queries, n_rows, n_columns, q_start, kv_start, scale, softcap, keep_scale, threshold, first_head,
    GROUP: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr, SLOTS: tl.constexpr, ACCUMULATE: tl.constexpr,
    QUADS: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of keys and values: grid (column tiles, key heads, batch); the group's heads in turn."""
    tile = tl.program_id(0)
    b = tl.program_id(2).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    k += b * k_batch + kv_head * k_head
    v += b * v_batch + kv_head * v_head
    dk += b * dk_batch + kv_head * dk_head
    dv += b * dv_batch + kv_head * dv_head
    if columns is not None:
        columns += b * columns_batch
    column_places = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    column, valid = places_to_indices(column_places, columns, n_columns)
    any_sees = valid & (tl.load(seen + b * seen_batch + column_places, mask=valid, other=0) != 0)
    keys = load_vectors(k, column, any_sees, k_row, DIM, BLOCK_D)
    values = load_vectors(v, column, any_sees, v_row, DIM_V, BLOCK_DV)
    grad_k = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    grad_v = tl.zeros([BLOCK_N, BLOCK_DV], tl.float32)

    for member in range(GROUP):
        h = kv_head * GROUP + member
        full = b * full_batch + h * full_head + tile
        part = b * part_batch + h * part_head + tile
        n_full = tl.load(full_count + full)
        n_part = tl.load(part_count + part)
        if heads is not None:
            here = tl.load(heads + h).to(tl.int32)
            n_full *= here
            n_part *= here
        state = (b * tl.num_programs(1) * GROUP + h) * n_queries
        bounds = b * bounds_batch + h * bounds_head
        q_here = q + b * q_batch + h * q_head
        d_out_here = d_out + b * d_out_batch + h * d_out_head
        rows_here = None
        if rows is not None:
            rows_here = rows + b * rows_batch + h * rows_head
        slope = None
        if slopes is not None:
            slope = tl.load(slopes + h)
        head = counted(h.to(tl.int32), first_head)
        batch = b.to(tl.int32)
        for run in range(n_full):
            at = full * full_slots + run
            for row_tile in range(tl.load(full_first + at), tl.load(full_stop + at)):
                grad_k, grad_v = keys_tile(
                    grad_k, grad_v, keys, values, q_here, d_out_here, lse + state, delta + state, row_tile, column,
                    tile, rows_here, first + bounds, stop + bounds, slope, seed, q_row, d_out_row, n_rows,
                    q_start, kv_start, scale, softcap, keep_scale, threshold, head, batch,
                    False, SLOTS, QUADS, SOFTCAP, PRECISION, BLOCK_M, BLOCK_N, DIM, BLOCK_D, DIM_V, BLOCK_DV,
                )  # fmt: skip
        for run in range(n_part):
            at = part * part_slots + run
            for row_tile in range(tl.load(part_first + at), tl.load(part_stop + at)):
                grad_k, grad_v = keys_tile(
                    grad_k, grad_v, keys, values, q_here, d_out_here, lse + state, delta + state, row_tile, column,
                    tile, rows_here, first + bounds, stop + bounds, slope, seed, q_row, d_out_row, n_rows,
                    q_start, kv_start, scale, softcap, keep_scale, threshold, head, batch,
                    True, SLOTS, QUADS, SOFTCAP, PRECISION, BLOCK_M, BLOCK_N, DIM, BLOCK_D, DIM_V, BLOCK_DV,
                )  # fmt: skip
    store_vectors(dk, column, valid, dk_row, grad_k * scale, DIM, BLOCK_D, ACCUMULATE)
    store_vectors(dv, column, valid, dv_row, grad_v, DIM_V, BLOCK_DV, ACCUMULATE)
