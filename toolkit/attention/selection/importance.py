"""How much the compressed branch of native sparse attention looks at each block."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def block_importance(weights: Tensor, kv_len: int, block: int, compress_block: int, stride: int) -> Tensor:
    """The weights of the windows over each block, one time for every stride that they share.

    Shapes: weights (..., windows), of windows of ``compress_block`` keys, ``stride`` apart -> (..., blocks), of
    blocks of ``block`` keys that cover kv_len. Windows past the last given one weigh nothing.

    Source: Yuan et al. 2025 (arXiv 2502.11089), equation 9. With indices from 1, as the paper has them, its
    sum over m < block / stride and n < compress_block / stride of p[block / stride * j - m - n] is the sum
    over windows of (keys shared with block j) / stride; indices from 0 would give each block the weights of
    the one before it.
    """
    per_block, per_window = block // stride, compress_block // stride
    blocks = -(-kv_len // block)
    missing = blocks * per_block - weights.shape[-1]
    weights = F.pad(weights, (per_window - 1, missing))
    covering = weights.unfold(-1, per_window, 1).sum(dim=-1)  # of each stride: the windows that cover it
    return covering.unflatten(-1, (blocks, per_block)).sum(dim=-1)
