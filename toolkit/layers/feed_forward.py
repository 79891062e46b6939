"""The dense feed-forward layer that a Mixture of Experts replaces."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.checks import require_positive
from toolkit.layers.experts.activations import Activation
from toolkit.work import Work


class FeedForward(nn.Module):
    """y = second activation(first x): one expert that every token uses.

    Parameters: gate_up_proj (2 * hidden_dim, dim), the gate's rows first, or up_proj (hidden_dim, dim) where the
    activation has no gate; down_proj (dim, hidden_dim); with ``bias`` also their biases.

    Args:
        dim: width of a token.
        hidden_dim: width inside.
        activation: an :class:`Activation` or the name of one.
        bias: biases in both projections.
        kind: what its parameters and work are counted as: ``"feed_forward"`` or ``"shared_experts"``.

    Raises:
        ValueError: if a size is not positive or the activation unknown.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), equation 2.
    """

    down_proj_bias: Tensor | None

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        activation: str | Activation = "swiglu",
        bias: bool = False,
        kind: str = "feed_forward",
    ) -> None:
        super().__init__()
        require_positive(dim=dim, hidden_dim=hidden_dim)
        self.kind = kind
        self.activation = activation if isinstance(activation, Activation) else Activation(activation)
        self._first = "gate_up_proj" if self.activation.gated else "up_proj"
        width = self.activation.width(hidden_dim)
        self.register_parameter(self._first, nn.Parameter(torch.empty(width, dim)))
        self.down_proj = nn.Parameter(torch.empty(dim, hidden_dim))
        for name, rows in ((self._first, width), ("down_proj", dim)):
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.empty(rows)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every matrix normal with standard deviation fan_in ** -0.5, every bias 0."""
        for parameter in self.parameters(recurse=False):
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            else:
                nn.init.zeros_(parameter)

    @property
    def first(self) -> Tensor:
        """The first projection (width, dim)."""
        weight: Tensor = getattr(self, self._first)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        hidden = F.linear(x, self.first, getattr(self, f"{self._first}_bias"))
        return F.linear(self.activation(hidden), self.down_proj, self.down_proj_bias)

    def work(self, seq_len: int) -> list[Work]:
        """Two products a token, the first of twice the size where there is a gate."""
        return [Work.dense(self.kind, seq_len * (self.first.numel() + self.down_proj.numel()))]

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        dim, hidden_dim = self.down_proj.shape
        return f"dim={dim}, hidden_dim={hidden_dim}, activation={self.activation.name!r}"


class SwiGLU(FeedForward):
    """y = down(silu(gate x) * up x), the gate and up projections in one matrix, without biases.

    Source: Shazeer 2020 (arXiv 2002.05202), equation 6.
    """

    def __init__(self, dim: int, hidden_dim: int, kind: str = "feed_forward") -> None:
        super().__init__(dim, hidden_dim, "swiglu", kind=kind)
