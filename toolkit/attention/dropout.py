"""Which attention weights dropout keeps: a pure function of seed and position, the same on every backend.

A counter-based generator needs no state: the backward pass makes the mask again, and tiles, passes and
devices may come in any order.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 10
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WORD = 0xFFFFFFFF

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def keep_mask(seed: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor, p: float) -> Tensor:
    """Whether each weight is kept: true with probability 1 - p.

    Weight (b, h, i, j) is kept when lane j % 4 of Philox4x32-10 is at least round(p 2^32); its key is the
    64-bit seed, its counters are j // 4, i, h, b.

    Shapes: seed int64, one element; batch, head, query (absolute position) and key (absolute position)
    int64, broadcast together -> bool of the broadcast shape.
    """
    if key.numel() == key.shape[-1]:
        # The usual case, a row of keys against a column of queries: one generator call serves four keys.
        groups, place = torch.unique(key.flatten() // 4, return_inverse=True)
        lanes = _lanes(seed, groups.view(*key.shape[:-1], -1), query, head, batch, p)
        return lanes.flatten(-2).index_select(-1, place * 4 + key.flatten() % 4)
    lanes = _lanes(seed, key // 4, query, head, batch, p)
    return lanes.gather(-1, (key % 4).expand(lanes.shape[:-1])[..., None])[..., 0]


def draw_seed(device: torch.device) -> Tensor:
    """A seed from torch's generator for the device: int64 (1,)."""
    return torch.randint(2**63 - 1, (1,), device=device)


def philox(seed: Tensor, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> Words:
    """Philox4x32-10 in 64-bit integers: four words of 32 random bits for each counter.

    Shapes: seed int64, one element; c0 ... c3 int64 in [0, 2^32), broadcast together -> four int64 tensors
    in [0, 2^32). Products wrap at 2^64, which leaves both of their 32-bit halves right.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 4.3; the same numbers
    as Random123 and Triton's ``tl.philox``.
    """
    low, high = seed.reshape(()) & WORD, (seed.reshape(()) >> 32) & WORD
    for step in range(ROUNDS):
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        key_low, key_high = (low + step * KEY_STEPS[0]) & WORD, (high + step * KEY_STEPS[1]) & WORD
        c0, c1 = _high(second) ^ c1 ^ key_low, second & WORD
        c2, c3 = _high(first) ^ c3 ^ key_high, first & WORD
    return c0, c1, c2, c3


def _lanes(seed: Tensor, group: Tensor, query: Tensor, head: Tensor, batch: Tensor, p: float) -> Tensor:
    """(..., 4): whether the four weights of a group of keys are kept."""
    words = philox(seed, group, query, head, batch)
    return torch.stack([word >= round(p * 2**32) for word in words], dim=-1)


def _high(product: Tensor) -> Tensor:
    """The upper 32 of 64 bits, without the sign the shift drags in."""
    return (product >> 32) & WORD
