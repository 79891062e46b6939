"""Torch's FlexAttention, given our masks, gives our outputs and log-sum-exps (it has no gradients on the CPU)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

from toolkit.attention import (
    BlockMask,
    Causal,
    DilatedWindow,
    Documents,
    GlobalTokens,
    Pattern,
    PerHead,
    Sinks,
    SlidingWindow,
    Strided,
    attention,
)

N = 64


@pytest.mark.parametrize(
    "pattern",
    [
        Causal() & (SlidingWindow(9) | Sinks(2)),
        Causal() & (DilatedWindow(5, 3) | GlobalTokens(positions=[7, 30])),
        Causal() & Strided(8),
        Causal() & Documents(torch.tensor([[0] * 20 + [1] * 44, [2] * 50 + [-1] * 14])),
        PerHead([Causal(), SlidingWindow(5), Causal() & DilatedWindow(4, 2), Strided(4)]),
        BlockMask(torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.4, 8),
    ],
    ids=str,
)
def test_flex_attention_agrees(pattern: Pattern) -> None:
    q, k, v = (torch.randn(2, heads, N, 16) for heads in (4, 2, 2))
    mask = pattern.mask(N, N).expand(2, 4, N, N)

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return mask[b, h, i, j]

    blocks = create_block_mask(visible, 2, 4, N, N, device="cpu", BLOCK_SIZE=16)
    expected: Any = flex_attention(q, k, v, block_mask=blocks, enable_gqa=True, return_aux=AuxRequest(lse=True))
    out, lse = attention(q, k, v, pattern, return_lse=True)
    torch.testing.assert_close(out, expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(lse, expected[1].lse, rtol=0, atol=1e-5)
