"""Attention in blocks of queries that visit only the keys their pattern reaches: the CPU path.

Memory is linear in the sequence: the backward pass computes each block's weights again from the
saved log-sum-exp, as FlashAttention does (Dao et al. 2022, arXiv 2205.14135, algorithm 4). Inside,
softmax is in base 2, so scores are scaled by log2(e).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from toolkit.attention.patterns import Pattern
from toolkit.attention.schedule import Bias, QueryBlock, block_biases, schedule
from toolkit.checks import refuse_double_backward

COMPUTED_BACKWARD = 2.5
"""Five products backward (scores again, dV, dP, dQ, dK) for the two of the forward pass."""

LN_2 = math.log(2.0)


def blockwise_attention(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, scale: float, q_start: int | None = None, kv_start: int = 0
) -> tuple[Tensor, Tensor]:
    """The same function as :func:`toolkit.attention.reference.reference_attention`, block by block.

    Shapes: q (batch, heads, q_len, head_dim); k (batch, kv_heads, kv_len, head_dim); v the same with
    its own head_dim. Returns out (batch, heads, q_len, value_dim) in q's dtype and the natural-log
    lse (batch, heads, q_len), both differentiable once.
    """
    plan = pattern, q.shape[2], k.shape[2], q_start, kv_start
    compute = torch.promote_types(q.dtype, torch.float32)
    out, lse = _Blockwise.apply(q, k, v, scale, schedule(*plan), block_biases(*plan, q.device, compute))
    return out, lse


class _Blockwise(torch.autograd.Function):
    """Grouped queries share a key head: (batch, kv_heads) is one batch axis, (group, rows) one row axis."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        blocks: tuple[QueryBlock, ...],
        biases: tuple[tuple[Bias, ...], ...],
    ) -> tuple[Tensor, Tensor]:
        compute = torch.promote_types(q.dtype, torch.float32)
        batch = k.shape[0]
        with torch.autocast(q.device.type, enabled=False):
            grouped, keys, values = _grouped(q, k, v, compute, scale / LN_2)
            out = grouped.new_zeros(*grouped.shape[:3], v.shape[-1])
            lse = grouped.new_full(grouped.shape[:3], -torch.inf)  # in base 2
            for block, sides in zip(blocks, biases, strict=True):
                rows, columns = slice(block.start, block.stop), slice(block.first, block.last)
                scores = _scores(grouped[:, :, rows], keys[:, columns], sides)
                highest = _finite(scores.amax(dim=-1), block)
                weights = scores.sub_(highest[..., None]).exp2_()
                total = weights.sum(dim=-1)
                lse[:, :, rows] = highest + total.log2()
                if block.blind:
                    total.masked_fill_(total == 0.0, 1.0)  # a row that sees nothing: out = 0 / 1
                out[:, :, rows] = _product(weights, values[:, columns]).div_(total[..., None])
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan = scale, blocks, biases
        return (
            rearrange(out, "(b h) g i d -> b (h g) i d", b=batch).to(q.dtype),
            rearrange(lse * LN_2, "(b h) g i -> b (h g) i", b=batch),
        )

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("the blockwise attention")
        q, k, v, out, lse = ctx.saved_tensors
        scale, blocks, biases = ctx.plan
        batch, kv_heads = k.shape[:2]
        with torch.autocast(q.device.type, enabled=False):
            grouped, keys, values = _grouped(q, k, v, out.dtype, scale / LN_2)
            d_out = rearrange(d_out, "b (h g) i d -> (b h) g i d", h=kv_heads).to(out.dtype)
            # dS = P (dP - D) with D = rowsum(dO * O) - dLSE: the log-sum-exp is an output like any other.
            shift = (d_out * out).sum(-1) - rearrange(d_lse, "b (h g) i -> (b h) g i", h=kv_heads)
            dq, dk, dv = torch.zeros_like(grouped), torch.zeros_like(keys), torch.zeros_like(values)
            for block, sides in zip(blocks, biases, strict=True):
                rows, columns = slice(block.start, block.stop), slice(block.first, block.last)
                scores = _scores(grouped[:, :, rows], keys[:, columns], sides)
                weights = scores.sub_(_finite(lse[:, :, rows], block)[..., None]).exp2_()
                d_weights = _product(d_out[:, :, rows], values[:, columns].transpose(1, 2))
                d_scores = d_weights.sub_(shift[:, :, rows, None]).mul_(weights)
                dq[:, :, rows] = _product(d_scores, keys[:, columns])
                dk[:, columns] += _transposed_product(d_scores, grouped[:, :, rows])
                dv[:, columns] += _transposed_product(weights, d_out[:, :, rows])
            dq.mul_(scale)
            dk.mul_(LN_2)  # its queries carried scale / ln 2
        dk, dv = (rearrange(x, "(b h) j d -> b h j d", b=batch).to(k.dtype) for x in (dk, dv))
        return rearrange(dq, "(b h) g i d -> b (h g) i d", b=batch).to(q.dtype), dk, dv, None, None, None


def _grouped(q: Tensor, k: Tensor, v: Tensor, compute: torch.dtype, factor: float) -> tuple[Tensor, Tensor, Tensor]:
    """q times ``factor`` as (b * kv_heads, group, i, d); k and v as (b * kv_heads, j, d)."""
    grouped = rearrange(q.to(compute) * factor, "b (h g) i d -> (b h) g i d", h=k.shape[1])
    keys, values = (rearrange(x.to(compute), "b h j d -> (b h) j d") for x in (k, v))
    return grouped, keys, values


def _scores(q: Tensor, k: Tensor, biases: tuple[Bias, ...]) -> Tensor:
    """Scores (bh, g, rows, columns) in base 2, -inf where masked."""
    scores = _product(q, k.transpose(1, 2))
    for bias in biases:
        scores[..., bias.columns] += bias.values
    return scores


def _finite(x: Tensor, block: QueryBlock) -> Tensor:
    """-inf, which only a row that sees nothing has, as 0: there 2^(-inf - 0) = 0 where -inf - -inf is nan."""
    return x.masked_fill(x == -torch.inf, 0.0) if block.blind else x


def _product(x: Tensor, y: Tensor) -> Tensor:
    """(bh, g, i, d) x (bh, d, j) -> (bh, g, i, j): the group's rows share one product."""
    return torch.bmm(x.flatten(1, 2), y).unflatten(1, x.shape[1:3])


def _transposed_product(x: Tensor, y: Tensor) -> Tensor:
    """(bh, g, i, j), (bh, g, i, d) -> (bh, j, d), summed over the group and its rows."""
    return torch.bmm(x.flatten(1, 2).transpose(1, 2), y.flatten(1, 2))
