"""Keys and values of the tokens already seen, so that decoding computes only the new ones."""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValueCache:
    """Every layer's keys and values, in order of position; grows by what each call appends.

    Keys are stored rotated (RoPE applied). ``length`` is the number of positions held.
    """

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def length(self, layer: int = 0) -> int:
        """Positions held for ``layer``."""
        return self._layers[layer][0].shape[2] if layer in self._layers else 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add k, v (batch, kv_heads, new, head_dim) and return all of them (batch, kv_heads, length, head_dim)."""
        if layer in self._layers:
            old_k, old_v = self._layers[layer]
            k, v = torch.cat([old_k, k], dim=2), torch.cat([old_v, v], dim=2)
        self._layers[layer] = k, v
        return k, v
