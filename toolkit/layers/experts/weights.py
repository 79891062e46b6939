"""The parameters of all experts as the backends take them, or their gradients as they give them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """The parameters of all experts, or their gradients.

    Attributes:
        first: (experts, width, dim); width is 2 * hidden_dim, the gate's rows first, or hidden_dim.
        second: (experts, dim, hidden_dim).
        first_bias: (experts, width), or None.
        second_bias: (experts, dim), or None.
    """

    first: Tensor
    second: Tensor
    first_bias: Tensor | None = None
    second_bias: Tensor | None = None

    def to(self, dtype: torch.dtype) -> Weights:
        """The same in ``dtype``."""
        parts = (self.first, self.second, self.first_bias, self.second_bias)
        return Weights(*(None if part is None else part.to(dtype) for part in parts))  # type: ignore[arg-type]
