"""Rotary position embedding: queries and keys are turned by angles that grow with position."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toolkit.checks import require, require_positive


class RotaryEmbedding(nn.Module):
    """Rotates pairs (k, k + head_dim / 2) of every head by position * base ** (-2k / head_dim).

    The half-rotated layout of GPT-NeoX and Hugging Face. Angles are computed in fp32 whatever the
    model's dtype, and the module holds no parameter or buffer that a cast could touch.

    Args:
        head_dim: width of one head; even.
        base: theta of the paper.

    Raises:
        ValueError: if ``head_dim`` is odd or not positive, or ``base`` not positive.

    Source: Su et al. 2021, RoFormer (arXiv 2104.09864), equation 34.
    """

    def __init__(self, head_dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        require_positive(head_dim=head_dim, base=base)
        require(head_dim % 2 == 0, "head_dim", head_dim, "even: dimensions are rotated in pairs")
        self.head_dim, self.base = head_dim, base
        self._table: tuple[object, Tensor, Tensor] | None = None

    def frequencies(self, seq_len: int, device: torch.device | None = None) -> tuple[Tensor, float]:
        """inv_freq (head_dim / 2,) fp32, radians per position, and the factor of cos and sin (1.0)."""
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=device) / self.head_dim
        return self.base**-exponent, 1.0

    def forward(self, q: Tensor, k: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """q, k (batch, heads, length, head_dim) -> the same, rotated; positions (length,) int64.

        Without ``positions`` they are 0 to length - 1.
        """
        return self.rotate(q, positions), self.rotate(k, positions)

    def rotate(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """x (batch, heads, length, head_dim) -> rotated, in x's dtype; positions (length,) or (batch, 1, length)."""
        cos, sin = self._cos_sin(x, positions)
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)

    def _cos_sin(self, x: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        """(..., length, head_dim / 2) each; the table for default positions is kept for the next call."""
        length, dtype = x.shape[2], torch.promote_types(x.dtype, torch.float32)
        key = (length, dtype, x.device)
        if positions is None and self._table is not None and self._table[0] == key:
            return self._table[1], self._table[2]
        # A table made while evaluating under inference_mode must still serve training.
        with torch.inference_mode(False), torch.no_grad():
            at = torch.arange(length, device=x.device) if positions is None else positions
            inv_freq, factor = self.frequencies(length, x.device)
            angles = at.to(torch.float32)[..., None] * inv_freq
            cos, sin = (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)
        if positions is None:
            self._table = (key, cos, sin)
        return cos, sin

    def extra_repr(self) -> str:
        """Settings, for ``print(model)``."""
        return f"head_dim={self.head_dim}, base={self.base:g}"
