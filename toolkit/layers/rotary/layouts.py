"""The two layouts of rotary dims, and how weights of queries and keys are carried from one to the other."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, cat

from toolkit.checks import require, require_positive


def to_interleaved(weight: Tensor, heads: int, head_dim: int, rotary_dim: int | None = None) -> Tensor:
    """weight (heads * head_dim, ...) made for pairs (k, k + rotary_dim / 2) -> the same for pairs (2k, 2k + 1).

    For the weight or bias of a projection to queries or keys, and for either's normalisation with heads=1. Scores
    are kept where both queries' and keys' weights are carried over: within each head the same dims are moved.

    Args:
        weight: its first axis is the output of the projection, heads in order.
        heads: query or key heads in ``weight``.
        head_dim: width of one head.
        rotary_dim: dims of each head that are rotated, the first ones; all by default.

    Raises:
        ValueError: if a size is not positive, ``rotary_dim`` odd or above ``head_dim``, or ``weight`` has another
            first axis than heads * head_dim.

    Source: half-rotated as in GPT-NeoX and transformers, interleaved as in Su et al. 2021 (arXiv 2104.09864),
    GPT-J, Meta's Llama and DeepSeek.

    >>> import torch
    >>> to_interleaved(torch.arange(6), heads=1, head_dim=6, rotary_dim=4)
    tensor([0, 2, 1, 3, 4, 5])
    """
    return _moved(weight, heads, head_dim, rotary_dim, "h (pair k) ... -> h (k pair) ...")


def to_half_rotated(weight: Tensor, heads: int, head_dim: int, rotary_dim: int | None = None) -> Tensor:
    """The inverse of :func:`to_interleaved`, with the same arguments.

    >>> import torch
    >>> to_half_rotated(torch.tensor([0, 2, 1, 3, 4, 5]), heads=1, head_dim=6, rotary_dim=4)
    tensor([0, 1, 2, 3, 4, 5])
    """
    return _moved(weight, heads, head_dim, rotary_dim, "h (k pair) ... -> h (pair k) ...")


def _moved(weight: Tensor, heads: int, head_dim: int, rotary_dim: int | None, move: str) -> Tensor:
    rotary_dim = head_dim if rotary_dim is None else rotary_dim
    require_positive(heads=heads, head_dim=head_dim, rotary_dim=rotary_dim)
    fits = rotary_dim % 2 == 0 and rotary_dim <= head_dim
    require(fits, "rotary_dim", rotary_dim, f"even and at most head_dim={head_dim}")
    rows = weight.shape[0] if weight.ndim else 0
    require(rows == heads * head_dim, "weight.shape", tuple(weight.shape), f"({heads} * {head_dim}, ...)")
    each = rearrange(weight, "(h d) ... -> h d ...", h=heads)
    turned = rearrange(each[:, :rotary_dim], move, pair=2)
    return rearrange(cat([turned, each[:, rotary_dim:]], dim=1), "h d ... -> (h d) ...")
