"""Scalings that slow frequencies down by a factor: all of them, the slow ones only, or the few that are kept."""

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
class LinearScaling(RotaryScaling):
    """Position interpolation: every frequency is w_k / factor, as if positions were divided by ``factor``.

    Raises:
        ValueError: if ``factor`` is below 1.

    Source: Chen et al. 2023 (arXiv 2306.15595): f'(x, m) = f(x, m L / L').
    """

    factor: float

    def __post_init__(self) -> None:
        require_factor(self.factor)

    def frequencies(
        self, rotary_dim: int, head_dim: int, base: float, seq_len: int, device: torch.device | None = None
    ) -> tuple[Tensor, float]:
        """See :meth:`RotaryScaling.frequencies`."""
        return unscaled(rotary_dim, base, device) / self.factor, 1.0


@dataclass(frozen=True, repr=False)
class Llama3Scaling(RotaryScaling):
    """Slow frequencies are divided by ``factor``, fast ones kept, those between interpolated.

    With wavelength lambda = 2 pi / w tokens and L = ``original_length``: w where lambda < L / high_freq_factor,
    w / factor where lambda > L / low_freq_factor, else (1 - t) w / factor + t w with
    t = (L / lambda - low_freq_factor) / (high_freq_factor - low_freq_factor).

    Raises:
        ValueError: if ``factor`` is below 1, ``original_length`` no positive integer, or the frequency factors not
            0 < low_freq_factor < high_freq_factor.

    Source: the reference code of Llama 3.1 (Grattafiori et al. 2024, arXiv 2407.21783).
    """

    factor: float
    original_length: int
    low_freq_factor: float = 1
    high_freq_factor: float = 4

    def __post_init__(self) -> None:
        require_factor(self.factor)
        require_original_length(self.original_length)
        require_above_zero(low_freq_factor=self.low_freq_factor, high_freq_factor=self.high_freq_factor)
        right = f"above low_freq_factor={self.low_freq_factor!r}"
        ordered = self.high_freq_factor > self.low_freq_factor
        require(ordered, "high_freq_factor", self.high_freq_factor, right)

    def frequencies(
        self, rotary_dim: int, head_dim: int, base: float, seq_len: int, device: torch.device | None = None
    ) -> tuple[Tensor, float]:
        """See :meth:`RotaryScaling.frequencies`."""
        kept = unscaled(rotary_dim, base, device)
        turns = self.original_length / (2 * math.pi / kept)  # in the length trained on
        t = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return torch.lerp(kept / self.factor, kept, t.clamp(0, 1)), 1.0


@dataclass(frozen=True, repr=False)
class ProportionalScaling(RotaryScaling):
    """The first int(fraction * head_dim // 2) pairs turn by base ** (-2k / head_dim) / factor, the others not at all.

    Unlike a partial rotary embedding the exponent is over the whole head, and so is the pairing (k, k + head_dim / 2).

    Raises:
        ValueError: if ``fraction`` is not above 0 and at most 1, keeps no pair of the head, or goes with a partial
            rotary embedding; if ``factor`` is below 1.

    Source: the full-attention layers of Gemma 4, as transformers reads them (``rope_type="proportional"``).
    """

    fraction: float
    factor: float = 1.0

    def __post_init__(self) -> None:
        right = "a number above 0 and at most 1"
        require(is_number(self.fraction) and 0 < self.fraction <= 1, "fraction", self.fraction, right)
        require_factor(self.factor)

    def check(self, rotary_dim: int, head_dim: int, base: float) -> None:
        """See :meth:`RotaryScaling.check`."""
        whole = rotary_dim == head_dim
        right = f"1.0 with {self}, which says itself how many pairs turn"
        require(whole, "fraction", rotary_dim / head_dim, right)
        right = f"at least {2 / head_dim:g}, so that one pair of head_dim={head_dim} turns"
        require(self._turning(head_dim) > 0, "fraction", self.fraction, right)

    def frequencies(
        self, rotary_dim: int, head_dim: int, base: float, seq_len: int, device: torch.device | None = None
    ) -> tuple[Tensor, float]:
        """See :meth:`RotaryScaling.frequencies`."""
        inv_freq = unscaled(head_dim, base, device) / self.factor
        inv_freq[self._turning(head_dim) :] = 0
        return inv_freq, 1.0

    def _turning(self, head_dim: int) -> int:
        return int(self.fraction * head_dim // 2)
