"""The dense feed-forward layer that a Mixture of Experts replaces."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.checks import require_positive
from toolkit.work import Work


class SwiGLU(nn.Module):
    """y = down(silu(gate x) * up x), the gate and up projections in one matrix, without biases.

    Parameters: gate_up_proj (2 * hidden_dim, dim), the gate's rows first; down_proj (dim, hidden_dim).

    Args:
        dim: width of a token.
        hidden_dim: width inside.
        kind: what its parameters and work are counted as: ``"feed_forward"`` or ``"shared_experts"``.

    Raises:
        ValueError: if a size is not positive.

    Source: Shazeer 2020 (arXiv 2002.05202), equation 6.
    """

    def __init__(self, dim: int, hidden_dim: int, kind: str = "feed_forward") -> None:
        super().__init__()
        self.kind = kind
        require_positive(dim=dim, hidden_dim=hidden_dim)
        self.gate_up_proj = nn.Parameter(torch.empty(2 * hidden_dim, dim))
        self.down_proj = nn.Parameter(torch.empty(dim, hidden_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every matrix normal with standard deviation fan_in ** -0.5."""
        for weight in (self.gate_up_proj, self.down_proj):
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        gate, up = F.linear(x, self.gate_up_proj).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.down_proj)

    def work(self, seq_len: int) -> list[Work]:
        """Three products a token."""
        return [Work.dense(self.kind, seq_len * (self.gate_up_proj.numel() + self.down_proj.numel()))]

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        return f"dim={self.down_proj.shape[0]}, hidden_dim={self.down_proj.shape[1]}"
