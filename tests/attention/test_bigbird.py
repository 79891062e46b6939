"""Hugging Face's BigBird, in training mode, is attention over a block mask.

(In evaluation it draws block 0 for every random slot and counts it as often as it was drawn, which no mask can say.)
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from toolkit.attention import BlockMask, attention

DIM, HEADS, BLOCK, BLOCKS = 16, 2, 4, 14


def test_bigbird_is_a_block_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import BigBirdConfig, BigBirdModel
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

    drawn: list[Any] = []
    draw = BigBirdBlockSparseAttention._bigbird_block_rand_mask_with_head

    def record(self: Any, *arguments: Any, **settings: Any) -> Any:
        drawn.append(draw(self, *arguments, **settings))
        return drawn[-1]

    monkeypatch.setattr(BigBirdBlockSparseAttention, "_bigbird_block_rand_mask_with_head", record)
    config = BigBirdConfig(
        hidden_size=DIM, num_attention_heads=HEADS, block_size=BLOCK, num_random_blocks=2, use_bias=False
    )
    theirs = BigBirdBlockSparseAttention(config, seed=3).train()
    x, length = torch.randn(2, BLOCK * BLOCKS, DIM), BLOCK * BLOCKS
    masks = BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(2, length), BLOCK)
    blocked, band, rows, columns = masks
    expected = theirs(x, band, rows, columns, blocked, blocked)[0]

    block = torch.arange(BLOCKS)
    near = (block[:, None] - block).abs() <= 1
    ends = (block == 0) | (block == BLOCKS - 1)
    blocks = (near | ends | ends[:, None]).repeat(HEADS, 1, 1)
    for head in range(HEADS):
        for row, chosen in enumerate(drawn[0][head]):
            blocks[head, row + 1, torch.as_tensor(chosen).long()] = True
    q, k, v = (
        F.linear(x, weight).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for weight in (theirs.query.weight, theirs.key.weight, theirs.value.weight)
    )
    out = attention(q, k, v, BlockMask(blocks, BLOCK)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
