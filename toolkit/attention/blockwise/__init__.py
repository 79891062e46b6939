"""Attention in blocks of queries that visit only the columns their pass reaches: the CPU path.

Memory is linear in the sequence. Every pattern and feature takes one way: a block of rows, of all heads that
see alike, is one batched product with the columns it visits, side by side. Where there is nothing to skip and
torch's own fused attention says the same, that is used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toolkit.attention.blockwise import fused
from toolkit.attention.blockwise.backward import backward as _backward
from toolkit.attention.blockwise.forward import forward as _forward
from toolkit.attention.plan import Pass
from toolkit.attention.scoring import Scoring

__all__ = ["backward", "forward"]


@torch.no_grad()
def forward(
    q: Tensor, k: Tensor, v: Tensor, passes: Sequence[Pass], scoring: Scoring, q_start: int, kv_start: int
) -> tuple[Tensor, Tensor]:
    """Attention over the pairs in ``passes``.

    Shapes: q (batch, heads, q_len, head_dim); k (batch, kv_heads, kv_len, head_dim); v the same with its own
    head_dim -> out (batch, heads, q_len, value_dim) in q's dtype and the natural-log lse (batch, heads,
    q_len) in fp32 (fp64 for fp64). Computed in fp32 at least. Rows that see nothing: out 0, lse -inf or the
    sink's logit.
    """
    how = fused.fused(q, v, passes, scoring)
    if how is not None:
        return fused.forward(q, k, v, how, scoring)
    return _forward(q, k, v, passes, scoring, q_start, kv_start)


@torch.no_grad()
def backward(
    d_out: Tensor,
    d_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    passes: Sequence[Pass],
    scoring: Scoring,
    q_start: int,
    kv_start: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of :func:`forward`.

    Shapes: d_out and out (batch, heads, q_len, value_dim), d_lse and lse (batch, heads, q_len); the others
    as in :func:`forward`. Returns dq, dk, dv in the shapes and dtypes of q, k, v, and d_sink (heads,), None
    without a sink. Adds in a fixed order: running it again gives the same bits.
    """
    how = fused.fused(q, v, passes, scoring)
    if how is not None and not bool(d_lse.any()):
        return *fused.backward(d_out, q, k, v, out, lse, how, scoring), None
    return _backward(d_out, d_lse, q, k, v, out, lse, passes, scoring, q_start, kv_start)
