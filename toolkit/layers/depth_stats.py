"""What a mixture-of-depths layer chose: sums that add up over micro-batches, processes and validation passes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.routing.reduce import all_reduce


@dataclass(frozen=True)
class DepthStats:
    """Counts of a :class:`MixtureOfDepths` layer's tokens, and their shares; ``a + b`` merges two.

    All are fp64 scalars, on the device: reading a share waits for it, so take ``.cpu()`` first to read several.

    Attributes:
        tokens: tokens that came to the layer.
        selected_count: those that went through it.
        predicted_count: those that the predictor names.
        agreed_count: those of which the predictor says what training's rule says.
    """

    tokens: Tensor
    selected_count: Tensor
    predicted_count: Tensor
    agreed_count: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, selected: Tensor, predicted: Tensor, best: Tensor, valid: Tensor | None = None) -> DepthStats:
        """Count: all bool (batch, length).

        Args:
            selected: tokens that went through the layer.
            predicted: tokens that the predictor names.
            best: tokens that training's rule names.
            valid: False for padding, which is not counted.
        """
        tables = torch.stack([torch.ones_like(selected), selected, predicted, predicted == best])
        counted = tables if valid is None else tables & valid
        return cls(*counted.flatten(1).sum(dim=1).double().unbind())

    @classmethod
    def none(cls, device: torch.device | str = "cpu") -> DepthStats:
        """The counts of no token."""
        return cls.unpack(torch.zeros(4, dtype=torch.float64, device=device))

    def __add__(self, other: DepthStats) -> DepthStats:
        """The counts of both."""
        return DepthStats.unpack(self.pack() + other.pack())

    def all_reduce(self) -> DepthStats:
        """The counts of every process of the default group (collective; equal to itself without one)."""
        return DepthStats.unpack(all_reduce(self.pack()))

    def cpu(self) -> DepthStats:
        """The same on the host, in one copy."""
        return DepthStats.unpack(self.pack().cpu())

    def pack(self) -> Tensor:
        """All of it in one fp64 vector (4,)."""
        return torch.stack([self.tokens, self.selected_count, self.predicted_count, self.agreed_count])

    @classmethod
    def unpack(cls, packed: Tensor) -> DepthStats:
        """The inverse of :meth:`pack`."""
        return cls(*packed.unbind())

    @property
    def selected(self) -> float:
        """Share that went through the layer: ``capacity`` in training, what the predictor named in evaluation."""
        return self._share(self.selected_count)

    @property
    def predicted(self) -> float:
        """Share that the predictor names."""
        return self._share(self.predicted_count)

    @property
    def accuracy(self) -> float:
        """Share of which the predictor says what training's rule, the top C of the sequence, says.

        Of a step of decoding, whose sequence is one token long, it says nothing.
        """
        return self._share(self.agreed_count)

    def _share(self, count: Tensor) -> float:
        return float(count / self.tokens.clamp(min=1.0))
