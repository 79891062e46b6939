"""``Experts``: many feed-forwards of one shape, of which each token uses those it is assigned to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toolkit.checks import require, require_choice, require_positive
from toolkit.layers.experts.activations import Activation
from toolkit.layers.experts.grouped_mm import grouped_mm_experts
from toolkit.layers.experts.operator import operator_experts
from toolkit.layers.experts.reference import reference_experts
from toolkit.layers.experts.weights import Weights
from toolkit.routing import Assignment
from toolkit.work import Work

BACKENDS = ("reference", "grouped_mm", "cpu", "triton")


class Experts(nn.Module):
    """``num_experts`` feed-forwards, of which each token uses those it is assigned to.

    Parameters: gate_up_proj (num_experts, 2 * hidden_dim, dim), the gate's rows first, or up_proj (num_experts,
    hidden_dim, dim) where the activation has no gate; down_proj (num_experts, dim, hidden_dim): the layout of
    Hugging Face's experts. With ``bias`` also gate_up_proj_bias or up_proj_bias, and down_proj_bias (num_experts,
    rows of the projection).

    Args:
        dim: width of a token.
        hidden_dim: width inside one expert.
        num_experts: how many there are.
        backend: ``"reference"`` is the plain loop; ``"grouped_mm"`` is torch's grouped product; ``"cpu"`` and
            ``"triton"`` are this library's operator, the one for the CPU, the other its kernels for GPUs;
            ``"auto"`` is triton on a GPU and cpu elsewhere.
        activation: an :class:`Activation` or the name of one.
        bias: biases in both projections.
        recompute: keep only the layer's input for the backward pass and compute the pre-activations again there,
            with the cpu and triton backends: a product of three more, and memory of a token fewer by
            top_k * width.

    Raises:
        ValueError: if a size is not positive or the backend or activation unknown, or ``recompute`` is asked of a
            backend that leaves what is kept to autograd.
    """

    kind = "experts"

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        num_experts: int,
        backend: str = "auto",
        activation: str | Activation = "swiglu",
        bias: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        require_positive(dim=dim, hidden_dim=hidden_dim, num_experts=num_experts)
        require_choice("backend", backend, ("auto", *BACKENDS))
        able = backend not in ("reference", "grouped_mm")
        require(able or not recompute, "recompute", recompute, f"False with backend={backend!r}; cpu and triton can")
        self.backend, self.recompute = backend, recompute
        self.activation = activation if isinstance(activation, Activation) else Activation(activation)
        width = self.activation.width(hidden_dim)
        self._first = "gate_up_proj" if self.activation.gated else "up_proj"
        self.register_parameter(self._first, nn.Parameter(torch.empty(num_experts, width, dim)))
        self.down_proj = nn.Parameter(torch.empty(num_experts, dim, hidden_dim))
        for name, rows in ((self._first, width), ("down_proj", dim)):
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.empty(num_experts, rows)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every matrix normal with standard deviation fan_in ** -0.5, every bias 0."""
        for parameter in self.parameters(recurse=False):
            if parameter.ndim == 3:
                nn.init.normal_(parameter, std=parameter.shape[2] ** -0.5)
            else:
                nn.init.zeros_(parameter)

    @property
    def weights(self) -> Weights:
        """The parameters as the backends take them."""
        names = self._first, "down_proj", f"{self._first}_bias", "down_proj_bias"
        return Weights(*(getattr(self, name) for name in names))

    def forward(self, x: Tensor, assignment: Assignment) -> Tensor:
        """x (tokens, dim) -> (tokens, dim): each token's experts, weighted by its gates and summed.

        Raises:
            ValueError: if the assignment is over another number of experts, x is of another dtype than the weights, or
                the backend cannot run on x's device.
        """
        weights = self.weights
        given, here = assignment.num_experts, len(weights.first)
        require(given == here, "assignment.num_experts", given, f"that of these experts, {here}")
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weights = x.to(dtype), weights.to(dtype)
        right = f"that of the experts' weights, {weights.first.dtype}, outside of autocast"
        require(x.dtype == weights.first.dtype, "x.dtype", x.dtype, right)
        backend = self._resolve(x)
        if backend == "reference":
            return reference_experts(x, assignment, weights, self.activation)
        if backend == "grouped_mm":
            return grouped_mm_experts(x, assignment, weights, self.activation)
        with torch.autocast(x.device.type, enabled=False):
            return operator_experts(x, assignment, weights, self.activation, self.recompute, backend)

    def work(self, rows: int) -> list[Work]:
        """The products of ``rows`` (token, expert) pairs: nothing for experts that were not chosen."""
        first, second = (weight.shape[1:].numel() for weight in (self.weights.first, self.down_proj))
        needed = rows * (first + second)
        again = rows * first / needed if self.recompute and needed else 0.0
        return [Work("experts", needed, needed, needed, computed_backward=2.0 + again)]

    def _resolve(self, x: Tensor) -> str:
        if self.backend == "auto":
            return "triton" if x.is_cuda else "cpu"
        on_cpu = self.backend != "cpu" or not x.is_cuda
        require(on_cpu, "backend", self.backend, f"'triton', 'grouped_mm' or 'reference' on {x.device}")
        return self.backend

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        experts, dim, hidden_dim = self.down_proj.shape
        return (
            f"dim={dim}, hidden_dim={hidden_dim}, num_experts={experts}, backend={self.backend!r}, "
            f"activation={self.activation.name!r}"
        )
