"""YaRN: each frequency is interpolated as far as it is slow, and the attention is sharpened."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
class YaRNScaling(RotaryScaling):
    """NTK-by-parts interpolation, and a temperature in the factor of cos and sin.

    With s = ``factor``, L = ``original_length`` tokens and d rotary dims, a frequency that turns r times in L tokens
    has index c(r) = d ln(L / (2 pi r)) / (2 ln base). Frequencies before c(beta_fast) are kept, those after
    c(beta_slow) divided by s, with a linear ramp between: w_k (1 - gamma_k) + w_k / s gamma_k.

    Args:
        factor: s, the longer context over the one trained on.
        original_length: L, tokens.
        beta_fast: turns in L above which a frequency is kept.
        beta_slow: turns in L below which it is interpolated in full.
        truncate: widen the ramp to whole indices (floor, ceil); gpt-oss does not.
        mscale: DeepSeek's m in g(s, m) = 0.1 m ln s + 1; only with ``mscale_all_dim``.
        mscale_all_dim: with ``mscale``, the factor of cos and sin is g(s, mscale) / g(s, mscale_all_dim); DeepSeek's
            attention multiplies its scale by g(s, mscale_all_dim) ** 2, see :attr:`softmax_scale_multiplier`.
        attention_factor: the factor of cos and sin; g(s, 1) by default. It wins over both mscales.

    Raises:
        ValueError: if ``factor`` is below 1, ``original_length`` no positive integer or so short that no frequency
            turns beta_slow times in it, a beta not above 0 or beta_fast below beta_slow, an mscale negative, or
            ``attention_factor`` not above 0.

    Source: Peng et al. 2023 (arXiv 2309.00071), sections 3.2 and 3.4 (sqrt(1 / t) = 0.1 ln s + 1); mscales:
    DeepSeek-AI 2024, DeepSeek-V2 (arXiv 2405.04434).
    """

    factor: float
    original_length: int
    beta_fast: float = 32
    beta_slow: float = 1
    truncate: bool = True
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        require_factor(self.factor)
        require_original_length(self.original_length)
        require_above_zero(beta_fast=self.beta_fast, beta_slow=self.beta_slow, attention_factor=self.attention_factor)
        ordered = self.beta_fast >= self.beta_slow
        require(ordered, "beta_fast", self.beta_fast, f"at least beta_slow={self.beta_slow!r}")
        require(isinstance(self.truncate, bool), "truncate", self.truncate, "True or False")
        for name in ("mscale", "mscale_all_dim"):
            value = getattr(self, name)
            require(value is None or (is_number(value) and value >= 0), name, value, "a number of 0 or more, or None")

    def check(self, rotary_dim: int, head_dim: int, base: float) -> None:
        """See :meth:`RotaryScaling.check`."""
        require(base > 1, "base", base, f"above 1 with {self}")
        low, high = self._ramp(rotary_dim, base)
        # Otherwise the clamped ends would cross, and the ramp turn round.
        right = (
            f"longer: with base={base:g} no frequency turns between {self.beta_slow} and {self.beta_fast} times in it"
        )
        require(high >= 0, "original_length", self.original_length, right)
        require(low <= high, "original_length", self.original_length, right.replace("longer", "shorter"))

    def frequencies(
        self, rotary_dim: int, head_dim: int, base: float, seq_len: int, device: torch.device | None = None
    ) -> tuple[Tensor, float]:
        """See :meth:`RotaryScaling.frequencies`."""
        kept = unscaled(rotary_dim, base, device)
        low, high = self._ramp(rotary_dim, base)
        if low == high:
            high += 0.001
        index = torch.arange(rotary_dim // 2, dtype=torch.float32, device=device)
        gamma = ((index - low) / (high - low)).clamp(0, 1)
        return torch.lerp(kept, kept / self.factor, gamma), self._attention_factor()

    @property
    def softmax_scale_multiplier(self) -> float:
        """g(factor, mscale_all_dim) ** 2, by which DeepSeek's attention multiplies 1 / sqrt(head_dim); 1.0 if unset."""
        return self._g(self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0

    def _ramp(self, rotary_dim: int, base: float) -> tuple[float, float]:
        """Indices of the last frequency kept and of the first interpolated in full."""

        def index(turns: float) -> float:
            return rotary_dim * math.log(self.original_length / (2 * math.pi * turns)) / (2 * math.log(base))

        low, high = index(self.beta_fast), index(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        return max(low, 0), min(high, rotary_dim - 1)  # of dims, not of pairs: as in the authors' code

    def _attention_factor(self) -> float:
        if self.attention_factor is not None:
            return float(self.attention_factor)
        if self.mscale and self.mscale_all_dim:
            return self._g(self.mscale) / self._g(self.mscale_all_dim)
        return self._g(1.0)

    def _g(self, m: float) -> float:
        return 0.1 * m * math.log(self.factor) + 1.0
