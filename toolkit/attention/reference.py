"""Attention as the textbook writes it: the whole mask, one softmax, autograd. The oracle, and slow."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from toolkit.attention.patterns import Pattern


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, scale: float, q_start: int | None = None, kv_start: int = 0
) -> tuple[Tensor, Tensor]:
    """softmax(scale q kᵀ + mask) v, in fp32 at least.

    Shapes: q (batch, heads, q_len, head_dim); k (batch, kv_heads, kv_len, head_dim); v the same with
    its own head_dim. Returns out (batch, heads, q_len, value_dim) in q's dtype and the natural-log
    lse (batch, heads, q_len). A row that sees no key gives zeros and lse = -inf.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), equation 1; grouped queries: Ainslie et al. 2023
    (arXiv 2305.13245).
    """
    compute = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        grouped = rearrange(q.to(compute), "b (h g) i d -> b h g i d", h=k.shape[1])
        scores = scale * torch.einsum("bhgid,bhjd->bhgij", grouped, k.to(compute))
        mask = pattern.mask(q.shape[2], k.shape[2], q_start, kv_start, q.device)
        scores = scores.masked_fill(~mask, -torch.inf)
        lse = torch.logsumexp(scores, dim=-1)
        # An empty row has lse = -inf; subtracting 0 there leaves exp(-inf) = 0, not nan.
        weights = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None])
        out = torch.einsum("bhgij,bhjd->bhgid", weights, v.to(compute))
    return rearrange(out, "b h g i d -> b (h g) i d").to(q.dtype), rearrange(lse, "b h g i -> b (h g) i")
