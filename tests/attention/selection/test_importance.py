from __future__ import annotations

import pytest
import torch
from selection_textbook import importance

from toolkit.attention.selection.importance import block_importance

SIZES = [(8, 4, 2), (8, 8, 8), (4, 8, 2), (6, 6, 1), (64, 32, 16)]


@pytest.mark.parametrize(("block", "width", "stride"), SIZES)
def test_counts_shared_strides_as_equation_nine_does(block: int, width: int, stride: int) -> None:
    for kv_len in (width, 3 * block - 1, 3 * block, 3 * block + 1):
        windows = len(range(0, kv_len - width + 1, stride))
        weights = torch.rand(2, windows, dtype=torch.float64)
        got = block_importance(weights, kv_len, block, width, stride)
        torch.testing.assert_close(got, importance(weights, kv_len, block, width, stride), rtol=0, atol=1e-12)
        for j in range(1, -(-kv_len // block) + 1):  # as it is printed, all indices from 1
            terms = [block // stride * j - m - n for m in range(block // stride) for n in range(width // stride)]
            total = sum((weights[:, c - 1] for c in terms if 1 <= c <= windows), start=torch.zeros(2).double())
            torch.testing.assert_close(got[:, j - 1], total, rtol=0, atol=1e-12)


def test_windows_that_are_not_given_weigh_nothing() -> None:
    weights = torch.rand(5, dtype=torch.float64)
    cut = torch.cat([weights[:3], torch.zeros(6, dtype=torch.float64)])
    torch.testing.assert_close(block_importance(weights[:3], 20, 4, 4, 2), block_importance(cut, 20, 4, 4, 2))


def test_windows_that_are_blocks_are_their_own_importance() -> None:
    weights = torch.rand(3, 4)
    torch.testing.assert_close(block_importance(weights, 33, 8, 8, 8)[:, :4], weights, rtol=0, atol=0)
