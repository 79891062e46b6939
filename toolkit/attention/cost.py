"""What an attention costs: the same plan that drives the computation counts it."""

from __future__ import annotations

from toolkit.attention.patterns import Pattern
from toolkit.attention.plan import plan, plan_total
from toolkit.attention.schedule import schedule
from toolkit.work import Work

TILE = 128, 64
"""Rows and columns of the tiles in which visited pairs are counted."""

COMPUTED_BACKWARD = 3.5
"""Products the kernels run backward for each one forward: scores and dP twice, in the kernel for dQ and in the
one for dK and dV, and one product for each of the three gradients; 7 for 2."""


def attention_work(
    pattern: Pattern, seq_len: int, heads: int, head_dim: int, value_dim: int | None = None, q_len: int | None = None
) -> Work:
    """Multiply-adds of the query-key and weight-value products over one sequence of ``seq_len`` keys.

    Of a pattern that differs by batch row, over one sequence for each of its rows.

    ``needed`` counts visible pairs, ``square`` all of them, ``computed`` the pairs in the tiles that the
    kernels visit, recomputed as they do it in the backward pass. With ``q_len`` given, that many queries
    stand at positions 0 and on; else every key has its query.
    """
    per_pair = head_dim + (value_dim or head_dim)
    q_len = seq_len if q_len is None else q_len
    return Work(
        kind="scores",
        needed=per_pair * pattern.area(q_len, seq_len, 0, heads=heads),
        square=per_pair * pattern.planes[0] * heads * q_len * seq_len,
        computed=per_pair * visited(pattern, q_len, seq_len, heads),
        computed_backward=COMPUTED_BACKWARD,
        scores=pattern.planes[0] * heads * q_len * seq_len,
    )


def visited(pattern: Pattern, q_len: int, kv_len: int, heads: int = 1, tile: tuple[int, int] = TILE) -> int:
    """Pairs in the tiles that hold a visible one, masked pairs included; queries start at 0.

    Over all heads, and all batch rows that the pattern differs by.
    """
    passes, batch = plan(pattern, q_len, kv_len, 0), pattern.planes[0]
    tiles = plan_total(passes, lambda part: schedule(part, *tile).visited(), batch, heads)
    return tiles * tile[0] * tile[1]
