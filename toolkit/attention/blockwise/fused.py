"""Torch's own fused attention for the CPU, where it says the same: dense, causal, or one small mask.

It takes no soft cap, bias, sink or dropout of ours, values as wide as keys only, and has no gradient for the
log-sum-exp; a row that sees nothing it gets wrong. Everywhere else the blocks do the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import reduce
from torch import Tensor

from toolkit.attention.blockwise.blocks import Edge
from toolkit.attention.plan import Pass
from toolkit.attention.scoring import Scoring

SMALL = 256
"""Rows and columns up to which a mask is handed over whole: about one block, in which nothing is skipped anyway."""

DTYPES = torch.float32, torch.bfloat16, torch.float16

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Fused:
    """What torch is told of the pairs: all of them, the causal ones, or a bias (n_rows, n_columns) of 0 and -inf."""

    causal: bool = False
    bias: Tensor | None = None

    def arguments(self, q: Tensor, scoring: Scoring) -> dict[str, Tensor | float | None]:
        """The keyword arguments of torch's operators."""
        bias = None if self.bias is None else self.bias.to(q.dtype)[None, None]
        return {"attn_mask": bias, "scale": scoring.scale}


def fused(q: Tensor, v: Tensor, passes: Sequence[Pass], scoring: Scoring) -> Fused | None:
    """How torch can compute the attention of q (..., head_dim) and v (..., value_dim); None where it cannot."""
    # Torch masks before it scales, and -inf times 0 is nan.
    plain = scoring.scale > 0 and not scoring.softcap and not scoring.dropout_p
    plain = plain and scoring.alibi_slopes is None and scoring.sink_logits is None
    if not plain or len(passes) > 1 or q.shape[3] != v.shape[3] or q.dtype not in DTYPES or 0 in q.shape:
        return None
    (part,) = passes
    if "fused" not in part.cache:
        part.cache["fused"] = _of(part)
    made: Fused | None = part.cache["fused"]
    return made


def _of(part: Pass) -> Fused | None:
    """How torch can be told of the pass's pairs, if it can."""
    simple = part.rows is None and part.columns is None and part.heads is None
    if not simple or part.first.shape[:2] != (1, 1):
        return None
    first, stop = part.first[0, 0], part.stop[0, 0]
    if part.slots == 1 and not bool(first.any()):
        if bool((stop == part.n_columns).all()):
            return Fused()
        rows = torch.arange(part.n_rows, dtype=stop.dtype)[:, None]
        if part.n_rows == part.n_columns and torch.equal(stop, rows + 1):
            return Fused(causal=True)
    if part.n_rows > SMALL or part.n_columns > SMALL:
        return None
    bias = Edge(first, stop, part.n_columns, keep=False).bias(torch.float32)
    seen = bias == 0
    if not bool(seen.any(dim=0).all() and seen.any(dim=1).all()):
        return None  # a column that nobody sees may hold nan
    return Fused(bias=bias)


def forward(q: Tensor, k: Tensor, v: Tensor, how: Fused, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """Shapes as in :func:`toolkit.attention.blockwise.forward`."""
    q, k, v = (_laid_out(_per_query_head(x, q)) for x in (q, k, v))
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, how.causal, **how.arguments(q, scoring))
    return out.contiguous(), lse.contiguous()


def backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, how: Fused, scoring: Scoring
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, where the log-sum-exp has none."""
    queries, keys, values = (_laid_out(_per_query_head(x, q)) for x in (q, k, v))
    dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward(
        _laid_out(d_out), queries, keys, values, out, lse, 0.0, how.causal, **how.arguments(q, scoring)
    )
    if k.shape[1] != q.shape[1]:
        dk, dv = (reduce(x, "b (h g) j d -> b h j d", "sum", h=k.shape[1]) for x in (dk, dv))
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


def _per_query_head(x: Tensor, q: Tensor) -> Tensor:
    """Keys or values (batch, kv_heads, length, d) for each query head, as a view where heads are not shared."""
    group = q.shape[1] // x.shape[1]
    return x if group == 1 else x.repeat_interleave(group, dim=1)


def _laid_out(x: Tensor) -> Tensor:
    """x with neighbouring channels next to each other in memory, as torch takes for granted."""
    return x if x.stride(-1) == 1 else x.contiguous()
