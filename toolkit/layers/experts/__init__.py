"""The experts of a Mixture-of-Experts layer: their parameters, and the backends that compute them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toolkit.checks import require, require_choice, require_positive
from toolkit.layers.experts.cpu import cpu_experts
from toolkit.layers.experts.grouped_mm import grouped_mm_experts
from toolkit.layers.experts.reference import reference_experts
from toolkit.routing import Assignment
from toolkit.work import Work

BACKENDS = {"reference": reference_experts, "grouped_mm": grouped_mm_experts, "cpu": cpu_experts}


class Experts(nn.Module):
    """``num_experts`` SwiGLU feed-forwards, of which each token uses those it is assigned to.

    Parameters: gate_up_proj (num_experts, 2 * hidden_dim, dim), the gate's rows first; down_proj
    (num_experts, dim, hidden_dim): the layout of Hugging Face's experts.

    Args:
        dim: width of a token.
        hidden_dim: width inside one expert.
        num_experts: how many there are.
        backend: ``"reference"`` is the plain loop; ``"cpu"`` sorts once and runs a product per expert
            (it works on any device); ``"grouped_mm"`` is torch's grouped product; ``"auto"`` is
            grouped_mm for half precision on a GPU and cpu elsewhere.

    Raises:
        ValueError: if a size is not positive or the backend unknown.
    """

    kind = "experts"

    def __init__(self, dim: int, hidden_dim: int, num_experts: int, backend: str = "auto") -> None:
        super().__init__()
        require_positive(dim=dim, hidden_dim=hidden_dim, num_experts=num_experts)
        require_choice("backend", backend, ("auto", *BACKENDS))
        self.backend = backend
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * hidden_dim, dim))
        self.down_proj = nn.Parameter(torch.empty(num_experts, dim, hidden_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every matrix normal with standard deviation fan_in ** -0.5."""
        for weight in (self.gate_up_proj, self.down_proj):
            nn.init.normal_(weight, std=weight.shape[2] ** -0.5)

    def forward(self, x: Tensor, assignment: Assignment) -> Tensor:
        """x (tokens, dim) -> (tokens, dim): each token's experts, weighted by its gates and summed.

        Raises:
            ValueError: if the assignment is over another number of experts.
        """
        experts = self.down_proj.shape[0]
        require(assignment.num_experts == experts, "assignment.num_experts", assignment.num_experts, f"{experts}")
        gate_up: Tensor = self.gate_up_proj
        down: Tensor = self.down_proj
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, gate_up, down = x.to(dtype), gate_up.to(dtype), down.to(dtype)
        return BACKENDS[self._resolve(x)](x, assignment, gate_up, down)

    def work(self, rows: int) -> list[Work]:
        """The products of ``rows`` (token, expert) pairs: nothing for experts that were not chosen."""
        per_expert = self.gate_up_proj[0].numel() + self.down_proj[0].numel()
        return [Work.dense("experts", rows * per_expert)]

    def _resolve(self, x: Tensor) -> str:
        if self.backend != "auto":
            return self.backend
        return "grouped_mm" if x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) else "cpu"

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        experts, dim, hidden_dim = self.down_proj.shape
        return f"dim={dim}, hidden_dim={hidden_dim}, num_experts={experts}, backend={self.backend!r}"
