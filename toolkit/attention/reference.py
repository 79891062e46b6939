"""Attention as the textbook writes it: the whole mask, one softmax, autograd. The oracle, and slow."""

from __future__ import annotations

import torch
from einops import repeat
from torch import Tensor

from toolkit.attention.dropout import keep_mask
from toolkit.attention.patterns import Pattern, query_positions
from toolkit.attention.scoring import Scoring


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    scoring: Scoring,
    q_start: int | None = None,
    kv_start: int = 0,
) -> tuple[Tensor, Tensor]:
    """The softmax of the scores that ``scoring`` defines, over the keys that ``pattern`` sees, times v.

    Shapes: q (batch, heads, q_len, head_dim); k (batch, kv_heads, kv_len, head_dim); v the same with
    its own head_dim. Returns out (batch, heads, q_len, value_dim) in q's dtype and the natural-log
    lse (batch, heads, q_len), which includes the sink. Computed in fp32 at least and differentiable any
    number of times. A row that sees no key gives zeros and lse = -inf, or the sink's logit.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), equation 1; grouped queries: Ainslie et al. 2023
    (arXiv 2305.13245); the rest of the score: see :class:`Scoring`.
    """
    compute = torch.promote_types(q.dtype, torch.float32)
    query = query_positions(pattern, q.shape[2], k.shape[2], q_start, kv_start, q.device)
    key = torch.arange(kv_start, kv_start + k.shape[2], device=q.device)
    with torch.autocast(q.device.type, enabled=False):
        k, v = (repeat(x.to(compute), "b h j d -> b (h g) j d", g=q.shape[1] // k.shape[1]) for x in (k, v))
        scores = _scores(q.to(compute), k, scoring, query, key)
        scores = scores.masked_fill(~pattern.mask(len(query), len(key), q_start, kv_start, q.device), -torch.inf)
        lse = torch.logsumexp(_with_sink(scores, scoring), dim=-1)
        # An empty row has lse = -inf; subtracting 0 there leaves exp(-inf) = 0, not nan.
        weights = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None])
        out = _dropped(weights, scoring, query, key) @ v
    return out.to(q.dtype), lse


def _scores(q: Tensor, k: Tensor, scoring: Scoring, query: Tensor, key: Tensor) -> Tensor:
    """Scores (b, h, i, j) before the mask: q (b, h, i, d), k (b, h, j, d), positions (i,) and (j,)."""
    scores = scoring.scale * q @ k.transpose(-1, -2)
    if scoring.softcap:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    if scoring.alibi_slopes is not None:
        distance = (query[:, None] - key).abs()
        scores = scores - scoring.alibi_slopes.to(scores.dtype)[:, None, None] * distance
    return scores


def _with_sink(scores: Tensor, scoring: Scoring) -> Tensor:
    """Scores (b, h, i, j) and, where there is a sink, one more column for it."""
    if scoring.sink_logits is None:
        return scores
    sink = scoring.sink_logits.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
    return torch.cat([scores, sink], dim=-1)


def _dropped(weights: Tensor, scoring: Scoring, query: Tensor, key: Tensor) -> Tensor:
    """Weights (b, h, i, j) after dropout: zeroed, or scaled by 1 / (1 - p)."""
    if not scoring.dropout_p:
        return weights
    assert scoring.seed is not None, "dropout needs a seed"
    batch, head = (torch.arange(size, device=weights.device) for size in weights.shape[:2])
    head = scoring.first_head + head
    keep = keep_mask(
        scoring.seed, batch[:, None, None, None], head[:, None, None], query[:, None], key, scoring.dropout_p
    )
    return weights * keep / (1 - scoring.dropout_p)
