"""What the kernels share: addresses, the mask of a tile, the score of a product, and which weights dropout keeps."""

# Triton compiles these functions: their arguments have no Python types, and static branches must stay statements.
# mypy: disallow-untyped-defs=False
# ruff: noqa: SIM108
from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

# Numbers that change from call to call: a kernel is not compiled anew because one of them is 1 or a multiple of 16.
VARYING = [
    "q_start", "kv_start", "first_head", "n_queries", "n_rows", "n_columns", "n_parts", "part_offset", "threshold",
]  # fmt: skip


@triton.jit
def places_to_indices(places, listed, n_places):
    """Row or column at each place, and whether there is one: ``listed`` holds them (-1: none), or they are in order.

    Shapes: (block,) -> (block,) int32, (block,) bool.
    """
    inside = places < n_places
    if listed is not None:
        indices = tl.load(listed + places, mask=inside, other=-1)
        return indices, indices >= 0
    else:
        return places, inside


@triton.jit
def load_vectors(base, indices, valid, stride, dim: tl.constexpr, block_dim: tl.constexpr):
    """(block, block_dim): vector ``indices[r]`` in line r; zeros past ``dim`` and, if given, where not ``valid``."""
    channels = tl.arange(0, block_dim)
    at = base + indices.to(tl.int64)[:, None] * stride + channels[None, :]
    if valid is None:
        if dim == block_dim:
            return tl.load(at)
        else:
            return tl.load(at, mask=channels[None, :] < dim, other=0.0)
    elif dim == block_dim:
        return tl.load(at, mask=valid[:, None], other=0.0)
    else:
        return tl.load(at, mask=valid[:, None] & (channels[None, :] < dim), other=0.0)


@triton.jit
def store_vectors(
    base, indices, valid, stride, values, dim: tl.constexpr, block_dim: tl.constexpr, ACCUMULATE: tl.constexpr
):
    """Write (block, block_dim) ``values`` as the vectors ``indices``, or add them to what is there."""
    channels = tl.arange(0, block_dim)
    at = base + indices.to(tl.int64)[:, None] * stride + channels[None, :]
    inside = valid[:, None] & (channels[None, :] < dim)
    if ACCUMULATE:
        values += tl.load(at, mask=inside, other=0.0)
    tl.store(at, values.to(base.dtype.element_ty), mask=inside)


@triton.jit
def sees(columns, first, stop, places, valid, SLOTS: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Mask of a tile: row place r sees column place c if ``first <= c < stop`` in one of its slots.

    Shapes: columns (block_n,), places and valid (block_m,); result (block_m, block_n), or its transpose.
    """
    low, high = _bounds(first, stop, places, valid, 0, SLOTS)
    visible = _between(columns, low, high, TRANSPOSED)
    for slot in tl.static_range(1, SLOTS):
        low, high = _bounds(first, stop, places, valid, slot, SLOTS)
        visible = visible | _between(columns, low, high, TRANSPOSED)
    return visible


@triton.jit
def has_keys(first, stop, places, valid, SLOTS: tl.constexpr):
    """(block_m,) bool: the row place sees at least one column."""
    low, high = _bounds(first, stop, places, valid, 0, SLOTS)
    return low < high  # empty slots come last


@triton.jit
def _bounds(first, stop, places, valid, slot: tl.constexpr, SLOTS: tl.constexpr):
    at = places.to(tl.int64) * SLOTS + slot
    return tl.load(first + at, mask=valid, other=0), tl.load(stop + at, mask=valid, other=0)


@triton.jit
def _between(columns, low, high, TRANSPOSED: tl.constexpr):
    if TRANSPOSED:
        return (low[None, :] <= columns[:, None]) & (columns[:, None] < high[None, :])
    else:
        return (low[:, None] <= columns[None, :]) & (columns[None, :] < high[:, None])


@triton.jit
def tanh(x):
    """Hyperbolic tangent in fp32; near 0 by its continued fraction, since 1 - 2 / (1 + e^2x) cancels there."""
    square = x * x
    near = x * (945 + square * (105 + square)) / (945 + square * (420 + 15 * square))
    far = 1 - 2 / (1 + tl.exp2(x * (2 * LOG2E)))
    return tl.where(square < 0.25, near, far)


@triton.jit
def score(products, rows, columns, slope, scale, softcap, SOFTCAP: tl.constexpr):
    """Scores in base 2 (times log2 e) of query-key products: scale, soft cap, then ALiBi (``slope`` None: without).

    ``rows`` and ``columns`` are absolute positions that broadcast to the shape of ``products``.
    """
    if SOFTCAP:
        scores = (softcap * LOG2E) * tanh(products * (scale / softcap))
    else:
        scores = products * (scale * LOG2E)
    if slope is not None:
        scores -= (slope * LOG2E) * tl.abs(rows - columns).to(tl.float32)
    return scores


@triton.jit
def through_softcap(gradient, products, scale, softcap, SOFTCAP: tl.constexpr):
    """Gradient by the scaled product from that by the score: times 1 - tanh^2."""
    if SOFTCAP:
        bent = tanh(products * (scale / softcap))
        gradient *= 1 - bent * bent
    return gradient


@triton.jit
def counted(head, first_head):
    """The number by which dropout counts a head: among all heads, of which ``first_head`` (None: 0) are elsewhere."""
    if first_head is not None:
        return first_head + head
    else:
        return head


@triton.jit
def kept(seed, rows, columns, head, batch, threshold):
    """Which weights dropout keeps: lane j % 4 of Philox4x32-10(seed; j // 4, i, head, batch) is >= the threshold.

    ``rows`` i, ``columns`` j and ``head`` are absolute indices that broadcast to the tile; ``threshold`` is int32 bits.
    """
    lane = columns & 3
    r0, r1, r2, r3 = tl.philox(tl.load(seed), columns >> 2, rows, head, batch)
    low = tl.where((lane & 1) == 0, r0, r1)
    high = tl.where((lane & 1) == 0, r2, r3)
    return tl.where(lane < 2, low, high) >= threshold.to(tl.uint32, bitcast=True)


@triton.jit
def kept_tile(
    seed, rows, columns, start, head, batch, threshold, QUADS: tl.constexpr, BLOCK_N: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """``kept`` of a tile: (block_m, block_n) or its transpose, for rows (block_m,) and columns (block_n,).

    ``QUADS``: the columns follow ``start``, a multiple of 4, so that one Philox serves four neighbours.
    """
    if QUADS:
        quads = (start >> 2) + tl.arange(0, BLOCK_N // 4)
        r0, r1, r2, r3 = tl.philox(tl.load(seed), quads[None, :], rows[:, None], head, batch)
        bar = threshold.to(tl.uint32, bitcast=True)
        keep = tl.interleave(tl.interleave(r0 >= bar, r2 >= bar), tl.interleave(r1 >= bar, r3 >= bar))
        if TRANSPOSED:
            return tl.trans(keep)
        else:
            return keep
    elif TRANSPOSED:
        return kept(seed, rows[None, :], columns[:, None], head, batch, threshold)
    else:
        return kept(seed, rows[:, None], columns[None, :], head, batch, threshold)
