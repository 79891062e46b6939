"""What the kernels of the experts share: which rows a program has, and the product of rows with an expert's matrix."""

# Triton compiles these functions: their arguments have no Python types, and static branches must stay statements.
# mypy: disallow-untyped-defs=False
from __future__ import annotations

import triton
import triton.language as tl

# Numbers that change from call to call: a kernel is not compiled anew because one of them is 1 or a multiple of 16.
VARYING = ["n_rows", "n_tokens"]


@triton.jit
def find_tile(row_tiles, COLUMN_TILES: tl.constexpr):
    """The expert of this program, its first row, the stop of the rows (all int64), and the number of its column tile.

    Neighbours share their rows, and then the expert: its matrix is read from memory once if the cache holds it.
    """
    program = tl.program_id(0)
    at = row_tiles + 3 * (program // COLUMN_TILES)
    return tl.load(at).to(tl.int64), tl.load(at + 1).to(tl.int64), tl.load(at + 2).to(tl.int64), program % COLUMN_TILES


@triton.jit
def rows_of_tile(first, stop, BLOCK_M: tl.constexpr):
    """The rows (block_m,) of a tile, counted from its first, and which are its own: past the stop, the last one again.

    So all can be read without a mask: rows of a product do not mix. Only what is written needs one. Counted so, and
    added to pointers that 64 bits have taken to the first row, addresses within a tile need 32 bits only.
    """
    places = tl.arange(0, BLOCK_M)
    return tl.minimum(places, (stop - first - 1).to(tl.int32)), places < stop - first


@triton.jit
def grouped_product(
    left, right, columns,
    LENGTH: tl.constexpr, WIDTH: tl.constexpr, RIGHT_K: tl.constexpr, RIGHT_N: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(block_m, block_n) fp32: the rows at ``left`` (block_m,) times the ``columns`` of a matrix (LENGTH, WIDTH).

    ``right`` points to the matrix, whose strides are RIGHT_K and RIGHT_N; columns past WIDTH give 0.
    """
    steps = tl.arange(0, BLOCK_K)
    at_left = left[:, None] + steps[None, :]
    at_right = right + steps[:, None].to(tl.int64) * RIGHT_K + columns[None, :].to(tl.int64) * RIGHT_N
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, LENGTH, BLOCK_K):
        lines = load_lines(at_left, start, LENGTH, BLOCK_K)
        matrix = load_matrix(at_right, start, columns, LENGTH, WIDTH, BLOCK_K, BLOCK_N)
        total = tl.dot(lines, matrix, total, input_precision=PRECISION)
        at_left += BLOCK_K
        at_right += BLOCK_K * RIGHT_K
    return total


@triton.jit
def load_lines(at, start, LENGTH: tl.constexpr, BLOCK_K: tl.constexpr):
    """(block_m, block_k) at ``at``, the steps from ``start``; zeros past LENGTH."""
    if LENGTH % BLOCK_K == 0:
        return tl.load(at)
    else:
        return tl.load(at, mask=(start + tl.arange(0, BLOCK_K))[None, :] < LENGTH, other=0.0)


@triton.jit
def load_matrix(
    at, start, columns, LENGTH: tl.constexpr, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr
):
    """(block_k, block_n) at ``at``, the steps from ``start``; zeros past LENGTH and past WIDTH."""
    steps = start + tl.arange(0, BLOCK_K)
    if LENGTH % BLOCK_K == 0:
        if WIDTH % BLOCK_N == 0:
            return tl.load(at)
        else:
            return tl.load(at, mask=columns[None, :] < WIDTH, other=0.0)
    else:
        return tl.load(at, mask=(steps[:, None] < LENGTH) & (columns[None, :] < WIDTH), other=0.0)
