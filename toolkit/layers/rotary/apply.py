"""Turning pairs of dimensions by given angles: the one place where queries and keys are rotated."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.checks import require
from toolkit.layers.rotary.operator import operator_rotate, runs_kernel


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, heads: int | None = None) -> Tensor:
    """x (batch, all heads, length, head_dim) -> the same, its first ``heads`` heads rotated, all by default.

    For the rest see :func:`plain_rotate_pairs`, which this is but where the kernel runs: on a GPU with Triton, x in
    fp32, bf16 or fp16 and angles in fp32. There the result is contiguous, and cos and sin are tables, which get no
    gradient. With ``heads`` queries and keys are rotated in one launch, where they lie in one tensor with the values.

    Raises:
        ValueError: if ``heads`` is below 0 or above x's, or where the kernel runs, shapes do not fit or cos or sin
            requires a gradient.
    """
    heads = x.shape[1] if heads is None else heads
    require(0 <= heads <= x.shape[1], "heads", heads, f"at least 0 and at most the {x.shape[1]} of x")
    if runs_kernel(x, cos):
        return operator_rotate(x, cos, sin, interleaved, heads)
    if heads == x.shape[1]:
        return plain_rotate_pairs(x, cos, sin, interleaved)
    return torch.cat([plain_rotate_pairs(x[:, :heads], cos, sin, interleaved), x[:, heads:]], dim=1)


def plain_rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """x (batch, heads, length, head_dim) -> the same, its first rotary_dim dims rotated, in x's dtype; a new tensor.

    cos, sin (batch or 1, length, rotary_dim / 2) are fp32, or fp64 for fp64: the rotation is computed in their dtype
    and rounded once. Pair k is (k, k + rotary_dim / 2), or with ``interleaved`` (2k, 2k + 1); dims from rotary_dim on
    pass as they are.

    Source: Su et al. 2021, RoFormer (arXiv 2104.09864), equation 34.
    """
    pairs = cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]  # the same for every head
    if interleaved:
        first, second = x[..., 0 : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2]
    else:
        first, second = x[..., :pairs], x[..., pairs : 2 * pairs]
    turned = [(first * cos - second * sin).to(x.dtype), (second * cos + first * sin).to(x.dtype)]
    if interleaved:
        turned = [torch.stack(turned, dim=-1).flatten(-2)]
    if 2 * pairs < x.shape[-1]:
        turned.append(x[..., 2 * pairs :])
    return torch.cat(turned, dim=-1) if len(turned) > 1 else turned[0]
