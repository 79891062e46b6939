"""LongRoPE: every frequency has a searched factor of its own, one for short contexts and one for long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from toolkit.checks import require
from toolkit.layers.rotary.scaling.interface import (
    RotaryScaling,
    is_number,
    require_above_zero,
    require_factor,
    require_original_length,
    unscaled,
)


@dataclass(frozen=True, repr=False)
class LongRoPEScaling(RotaryScaling):
    """w_k / f_k, with f the long factors once the current length is *above* ``original_length``, else the short.

    The switch changes the frequencies of all positions: keys rotated before it go stale. Both cos and sin are
    multiplied by sqrt(1 + ln(factor) / ln(original_length)), on either side of the switch.

    Args:
        short_factors: one number above 0 for each pair of rotary dims.
        long_factors: likewise.
        original_length: the length trained on, tokens.
        factor: the longer context over the one trained on.
        attention_factor: in place of the square root.

    Raises:
        ValueError: if a list has another length than rotary_dim / 2 or holds anything but numbers above 0, ``factor``
            is below 1, ``original_length`` no integer above 1, or ``attention_factor`` not above 0.

    Source: Ding et al. 2024 (arXiv 2402.13753); Phi-3 (arXiv 2404.14219).
    """

    short_factors: Sequence[float]
    long_factors: Sequence[float]
    original_length: int
    factor: float
    attention_factor: float | None = None
    depends_on_length: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("short_factors", "long_factors"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        require_original_length(self.original_length, least=2)
        require_factor(self.factor)
        require_above_zero(attention_factor=self.attention_factor)

    def check(self, rotary_dim: int, head_dim: int, base: float) -> None:
        """See :meth:`RotaryScaling.check`."""
        for name in ("short_factors", "long_factors"):
            factors = getattr(self, name)
            right = f"{rotary_dim // 2} numbers, one for each pair of rotary dims, not {len(factors)}"
            require(len(factors) == rotary_dim // 2, name, factors, right)

    def frequencies(
        self, rotary_dim: int, head_dim: int, base: float, seq_len: int, device: torch.device | None = None
    ) -> tuple[Tensor, float]:
        """See :meth:`RotaryScaling.frequencies`."""
        factors = self.long_factors if seq_len > self.original_length else self.short_factors
        each = torch.tensor(factors, dtype=torch.float32, device=device)
        return unscaled(rotary_dim, base, device) / each, self._attention_factor()

    def _attention_factor(self) -> float:
        if self.attention_factor is not None:
            return float(self.attention_factor)
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original_length))


def _numbers(name: str, factors: Any) -> tuple[float, ...]:
    right = "a list of numbers above 0, one for each pair of rotary dims"
    require(isinstance(factors, list | tuple), name, factors, right)
    require(all(is_number(factor) and factor > 0 for factor in factors), name, factors, right)
    return tuple(factors)
