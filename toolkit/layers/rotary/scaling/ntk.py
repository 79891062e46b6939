"""NTK-aware scalings: a larger base, so that the slowest frequency is stretched and the fastest is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from toolkit.checks import require
from toolkit.layers.rotary.scaling.interface import (
    LARGEST,
    RotaryScaling,
    require_factor,
    require_original_length,
    unscaled,
)


def stretched(base: float, factor: float, rotary_dim: int) -> float:
    """base * factor ** (d / (d - 2)): the slowest of d / 2 frequencies becomes ``factor`` times slower."""
    return base * factor ** (rotary_dim / (rotary_dim - 2))


def require_stretchable(base: float, factor: float, rotary_dim: int) -> None:
    """The exponent d / (d - 2) needs a slowest frequency that is not also the fastest; fp32 holds the larger base."""
    require(rotary_dim > 2, "rotary_dim", rotary_dim, "above 2 for NTK-aware scaling")
    within = stretched(base, factor, rotary_dim) <= LARGEST
    require(within, "factor", factor, f"smaller: the stretched base={base:g} would be above {LARGEST:g}")


@dataclass(frozen=True, repr=False)
class NTKScaling(RotaryScaling):
    """base becomes base * factor ** (d / (d - 2)), d rotary dims: every length is served by the same frequencies.

    Raises:
        ValueError: if ``factor`` is below 1 or stretches the base beyond fp32, or there is but one pair of rotary
            dims.

    Source: bloc97 2023, "NTK-Aware Scaled RoPE"; Peng et al. 2023, YaRN (arXiv 2309.00071), section 3.1.
    """

    factor: float

    def __post_init__(self) -> None:
        require_factor(self.factor)

    def check(self, rotary_dim: int, head_dim: int, base: float) -> None:
        """See :meth:`RotaryScaling.check`."""
        require_stretchable(base, self.factor, rotary_dim)

    def frequencies(
        self, rotary_dim: int, head_dim: int, base: float, seq_len: int, device: torch.device | None = None
    ) -> tuple[Tensor, float]:
        """See :meth:`RotaryScaling.frequencies`."""
        return unscaled(rotary_dim, stretched(base, self.factor, rotary_dim), device), 1.0


@dataclass(frozen=True, repr=False)
class DynamicNTKScaling(RotaryScaling):
    """NTK-aware scaling by factor * n / L - (factor - 1) once the current length n is above L = ``original_length``.

    Up to L nothing changes, whatever the factor; beyond it even factor 1 stretches, by n / L. The frequencies of
    all positions move as n grows: rotated keys in a cache go stale.

    Raises:
        ValueError: if ``factor`` is below 1 or stretches the base beyond fp32, ``original_length`` no positive
            integer, or there is but one pair of rotary dims.

    Source: emozilla 2023, "Dynamically Scaled RoPE"; Peng et al. 2023, YaRN (arXiv 2309.00071), section 3.3.
    """

    factor: float
    original_length: int
    depends_on_length: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_factor(self.factor)
        require_original_length(self.original_length)

    def check(self, rotary_dim: int, head_dim: int, base: float) -> None:
        """See :meth:`RotaryScaling.check`."""
        require_stretchable(base, self.factor, rotary_dim)

    def frequencies(
        self, rotary_dim: int, head_dim: int, base: float, seq_len: int, device: torch.device | None = None
    ) -> tuple[Tensor, float]:
        """See :meth:`RotaryScaling.frequencies`."""
        if seq_len > self.original_length:
            stretch = self.factor * seq_len / self.original_length - (self.factor - 1)
            base = stretched(base, stretch, rotary_dim)
        return unscaled(rotary_dim, base, device), 1.0
