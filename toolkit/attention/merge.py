"""One softmax over keys that were attended to in parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def merge(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over several disjoint sets of keys, from the attention over each.

    Shapes: outs (..., q_len, value_dim) each, lses (..., q_len) each, natural logarithms -> out and lse of
    the same shapes, in outs' dtype and lses'. A row that saw no key in any part gives zeros and -inf.
    Differentiable in both. Sink logits must not be in the parts: they join once, see :func:`add_sink`.

    Source: Dao et al. 2022, FlashAttention (arXiv 2205.14135), section 3.1.
    """
    stacked = torch.stack(list(lses))
    highest = stacked.detach().amax(dim=0)
    highest = highest.masked_fill(highest == -torch.inf, 0.0)  # exp(-inf - 0) = 0 where exp(-inf - -inf) is nan
    shares = (stacked - highest).exp()
    total = shares.sum(dim=0)
    seen = total > 0
    total = total.where(seen, 1.0)
    lse = (highest + total.log()).where(seen, -torch.inf)
    out = torch.stack([share[..., None] * part for share, part in zip(shares, outs, strict=True)]).sum(dim=0)
    return (out / total[..., None]).to(outs[0].dtype), lse


def add_sink(out: Tensor, lse: Tensor, sink_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Attention with a sink logit in the denominator, from the attention without.

    Shapes: out (batch, heads, q_len, value_dim), lse (batch, heads, q_len), sink_logits (heads,).
    """
    with_sink = torch.logaddexp(lse, sink_logits[:, None].to(lse.dtype))
    return (out * (lse - with_sink).exp()[..., None]).to(out.dtype), with_sink
