"""Decoding: few queries against a long cache, whose key tiles are shared out over programs and merged by lse."""

# Triton compiles these functions: their arguments have no Python types, and static branches must stay statements.
# mypy: disallow-untyped-defs=False
# ruff: noqa: PLR0915
from __future__ import annotations

import triton
import triton.language as tl

from toolkit.attention.kernels.forward import forward_tile
from toolkit.attention.kernels.tiles import LN2, LOG2E, VARYING, counted, places_to_indices, store_vectors


@triton.jit
def tiles_in_runs(first, stop, count):
    """How many tiles ``count`` runs have in all."""
    tiles = 0
    for run in range(count):
        tiles += tl.load(stop + run) - tl.load(first + run)
    return tiles


@triton.jit
def share_of_run(first, stop, before, low, high):
    """The part of the run ``first <= t < stop`` whose rank, ``before`` tiles being in earlier runs, is in low..high."""
    return tl.maximum(first, first + low - before), tl.minimum(stop, first + high - before)


@triton.jit(do_not_specialize=VARYING)
def decode_kernel(
    q, k, v, part_out, part_lse, rows, columns, seen, first, stop, slopes, seed,
    full_first, full_stop, full_count, part_first, part_stop, part_count,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    rows_batch, columns_batch, seen_batch, bounds_batch, full_batch, full_slots, part_batch, part_slots,
    n_queries, n_rows, n_columns, n_parts, part_offset, q_start, kv_start, scale, softcap, keep_scale, threshold,
    first_head,
    GROUP: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr, SLOTS: tl.constexpr,
    QUADS: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Attention of all rows of one group of heads over one share of the visited tiles: grid (shares, key heads, batch).

    Line m of the tile is row place m // GROUP of the group's head m % GROUP. Share s writes its fp32 outputs and lse
    at ``part_out`` (b, h, n_queries, n_parts, dv) and ``part_lse`` (b, h, n_queries, n_parts), part_offset + s.
    """
    share = tl.program_id(0)
    shares = tl.num_programs(0)
    b = tl.program_id(2).to(tl.int64)
    kv_head = tl.program_id(1)
    k += b * k_batch + kv_head.to(tl.int64) * k_head
    v += b * v_batch + kv_head.to(tl.int64) * v_head
    q += b * q_batch
    first += b * bounds_batch
    stop += b * bounds_batch
    seen += b * seen_batch
    if rows is not None:
        rows += b * rows_batch
    if columns is not None:
        columns += b * columns_batch

    line = tl.arange(0, BLOCK_M)
    places = line // GROUP
    head = kv_head * GROUP + line % GROUP
    number = counted(head, first_head)[:, None]
    row, valid = places_to_indices(places, rows, n_rows)
    channels = tl.arange(0, BLOCK_D)[None, :]
    at_query = q + (head.to(tl.int64) * q_head + row.to(tl.int64) * q_row)[:, None] + channels
    queries = tl.load(at_query, mask=valid[:, None] & (channels < DIM), other=0.0)
    slope = None
    if slopes is not None:
        slope = tl.load(slopes + head)[:, None]
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)

    full = b * full_batch
    part = b * part_batch
    n_full = tl.load(full_count + full)
    n_part = tl.load(part_count + part)
    full_first += full * full_slots
    full_stop += full * full_slots
    part_first += part * part_slots
    part_stop += part * part_slots
    tiles = tiles_in_runs(full_first, full_stop, n_full) + tiles_in_runs(part_first, part_stop, n_part)
    low = (tiles.to(tl.int64) * share // shares).to(tl.int32)
    high = (tiles.to(tl.int64) * (share + 1) // shares).to(tl.int32)
    before = 0
    for run in range(n_full):
        run_first = tl.load(full_first + run)
        run_stop = tl.load(full_stop + run)
        start, end = share_of_run(run_first, run_stop, before, low, high)
        for key_tile in range(start, end):
            peak, total, sums = forward_tile(
                peak, total, sums, queries, k, v, key_tile, columns, seen, first, stop, places, row, valid, slope, seed,
                k_row, v_row, n_columns, q_start, kv_start, scale, softcap, threshold, number, b.to(tl.int32),
                False, SLOTS, QUADS, SOFTCAP, PRECISION, BLOCK_N, DIM, BLOCK_D, DIM_V, BLOCK_DV,
            )  # fmt: skip
        before += run_stop - run_first
    for run in range(n_part):
        run_first = tl.load(part_first + run)
        run_stop = tl.load(part_stop + run)
        start, end = share_of_run(run_first, run_stop, before, low, high)
        for key_tile in range(start, end):
            peak, total, sums = forward_tile(
                peak, total, sums, queries, k, v, key_tile, columns, seen, first, stop, places, row, valid, slope, seed,
                k_row, v_row, n_columns, q_start, kv_start, scale, softcap, threshold, number, b.to(tl.int32),
                True, SLOTS, QUADS, SOFTCAP, PRECISION, BLOCK_N, DIM, BLOCK_D, DIM_V, BLOCK_DV,
            )  # fmt: skip
        before += run_stop - run_first

    sums *= (keep_scale / tl.where(total == 0, 1.0, total))[:, None]
    n_heads = tl.num_programs(1) * GROUP
    at = ((b * n_heads + head) * n_queries + row) * n_parts + part_offset + share
    store_vectors(part_out, at, valid, DIM_V, sums, DIM_V, BLOCK_DV, False)
    tl.store(part_lse + at, (peak + tl.log2(total)) * LN2, mask=valid)


@triton.jit(do_not_specialize=VARYING)
def combine_kernel(
    part_out, part_lse, out, lse, sinks, out_batch, out_head, out_row, n_queries, n_parts,
    DIM_V: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_PARTS: tl.constexpr,
):  # fmt: skip
    """Merge the parts of one row by their lse, the sink joining once: grid (rows, heads, batch)."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    at_row = (b * tl.num_programs(1) + head) * n_queries + row
    part = tl.arange(0, BLOCK_PARTS)
    channels = tl.arange(0, BLOCK_DV)[None, :]
    if sinks is not None:
        peak = tl.load(sinks + head) * LOG2E
        total = 1.0
    else:
        peak = tl.full([], float("-inf"), tl.float32)
        total = 0.0
    sums = tl.zeros([BLOCK_DV], tl.float32)
    for start in range(0, n_parts, BLOCK_PARTS):
        at = at_row * n_parts + start + part
        logs = tl.load(part_lse + at, mask=start + part < n_parts, other=float("-inf")) * LOG2E
        higher = tl.maximum(peak, tl.max(logs, 0))
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(logs - finite)
        shrink = tl.exp2(peak - finite)
        there = (logs > float("-inf"))[:, None] & (channels < DIM_V)  # a part of nothing may not have been written
        outputs = tl.load(part_out + at[:, None] * DIM_V + channels, mask=there, other=0.0)
        sums = sums * shrink + tl.sum(weights[:, None] * outputs, 0)
        total = total * shrink + tl.sum(weights, 0)
        peak = higher
    sums /= tl.where(total == 0, 1.0, total)
    at_out = out + b * out_batch + head.to(tl.int64) * out_head + row.to(tl.int64) * out_row + channels
    tl.store(at_out, sums[None, :].to(out.dtype.element_ty), mask=channels < DIM_V)
    tl.store(lse + at_row, (peak + tl.log2(total)) * LN2)
