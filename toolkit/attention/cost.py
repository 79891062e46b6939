"""What an attention costs: the same pattern that drives the computation counts it."""

from __future__ import annotations

from toolkit.attention.blockwise import COMPUTED_BACKWARD
from toolkit.attention.patterns import Pattern
from toolkit.attention.schedule import visited
from toolkit.work import Work


def attention_work(pattern: Pattern, seq_len: int, heads: int, head_dim: int, value_dim: int | None = None) -> Work:
    """Multiply-adds of the query-key and weight-value products over one sequence of ``seq_len``.

    ``needed`` counts visible pairs, ``square`` all of them, ``computed`` the pairs in the rectangles
    that the blockwise path visits.
    """
    per_pair = heads * (head_dim + (value_dim or head_dim))
    return Work(
        kind="scores",
        needed=per_pair * pattern.area(seq_len, seq_len),
        square=per_pair * seq_len**2,
        computed=per_pair * visited(pattern, seq_len, seq_len),
        computed_backward=COMPUTED_BACKWARD,
    )
