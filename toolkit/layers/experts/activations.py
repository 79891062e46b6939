"""What an expert does between its two products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.checks import require_choice, require_positive


@dataclass(frozen=True)
class Activation:
    """A function from pre-activations ``hidden`` (rows, width) to activations (rows, hidden_dim).

    | name | activation | width |
    |---|---|---|
    | ``"swiglu"`` | silu(gate) up (Shazeer 2020, arXiv 2002.05202, equation 6) | 2 hidden_dim |
    | ``"clamped_swiglu"`` | g sigmoid(alpha g) (u + 1), g and u clamped (gpt-oss) | 2 hidden_dim |
    | ``"gelu"`` | x Phi(x), exact (Hendrycks and Gimpel 2016, arXiv 1606.08415) | hidden_dim |
    | ``"relu2"`` | max(x, 0)^2 (So et al. 2021, Primer, arXiv 2109.08668) | hidden_dim |

    ``gate`` is the first half of ``hidden``, ``up`` the second; g = min(gate, limit), u is up within -limit and limit.

    Attributes:
        name: one of the above.
        alpha, limit: of ``"clamped_swiglu"``; the others do not use them.

    Raises:
        ValueError: for an unknown name, or an alpha or limit that is not positive.
    """

    name: str = "swiglu"
    alpha: float = 1.702
    limit: float = 7.0

    def __post_init__(self) -> None:
        require_choice("activation", self.name, ACTIVATIONS)
        require_positive(alpha=self.alpha, limit=self.limit)

    @property
    def gated(self) -> bool:
        """Whether a gate and an up projection make one activation."""
        return self.name in ("swiglu", "clamped_swiglu")

    def width(self, hidden_dim: int) -> int:
        """Rows of the first projection."""
        return 2 * hidden_dim if self.gated else hidden_dim

    def __call__(self, hidden: Tensor) -> Tensor:
        """hidden (rows, width) -> (rows, hidden_dim), differentiable by autograd."""
        if self.name == "gelu":
            return F.gelu(hidden)
        if self.name == "relu2":
            return F.relu(hidden).square()
        gate, up = hidden.chunk(2, dim=-1)
        if self.name == "swiglu":
            return F.silu(gate) * up
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return gate * torch.sigmoid(self.alpha * gate) * (up + 1)


ACTIVATIONS = ("swiglu", "clamped_swiglu", "gelu", "relu2")
