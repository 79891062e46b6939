"""Noise that a router chooses by while it trains, so that experts it does not prefer are tried."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from toolkit.checks import require, require_positive
from toolkit.routing.scores import project


class Noisy(NamedTuple):
    """Logits with noise.

    Attributes:
        logits: (tokens, num_experts), what the choice is made by; None where no noise was added.
        std: (tokens, num_experts), the standard deviation of Gaussian noise on them; None for noise of another kind.
    """

    logits: Tensor | None
    std: Tensor | None


class Noise(nn.Module):
    """Base of the noises a router is given; the router calls it in training only, in fp32, autocast off.

    Draws come from torch's generator. The clean logits are kept beside the noisy ones: the z-loss and the
    statistics of logits are of the clean, gates and probabilities of the noisy.

    Attributes:
        products: how many products as large as the router's own it takes.
        replaces: whether its logits are made anew and take nothing of the clean ones.
        zero_router: whether the router's weight starts at zero.
    """

    kind = "router"  # what its parameters are counted as
    products: ClassVar[int] = 0
    replaces: ClassVar[bool] = False
    zero_router: ClassVar[bool] = False

    def forward(self, x: Tensor, logits: Tensor, score: Callable[[Tensor], Tensor]) -> Noisy:
        """x (tokens, dim), its clean logits (tokens, num_experts), and ``score`` from one to the other -> Noisy."""
        raise NotImplementedError

    def kept_numbers(self, num_experts: int, dim: int) -> int:
        """fp32 numbers a token that autograd keeps of it."""
        return 0

    def check(self, weight: Tensor) -> None:
        """Raise a ValueError unless it fits a router of ``weight`` (num_experts, dim)."""


class Jitter(Noise):
    """Multiplies each entry of the router's input by a draw from U[1 - epsilon, 1 + epsilon].

    The experts read the input as it was, and so does the caller. Clean logits cost a second product.

    Raises:
        ValueError: if ``epsilon`` is not between 0 and 1.

    Source: Fedus et al. 2021, Switch Transformer (arXiv 2101.03961), section 2.4 and Figure 15; 0.01 there.
    """

    products = 1
    replaces = True

    def __init__(self, epsilon: float = 0.01) -> None:
        super().__init__()
        require(0 < epsilon < 1, "epsilon", epsilon, "above 0 and below 1")
        self.epsilon = epsilon

    def forward(self, x: Tensor, logits: Tensor, score: Callable[[Tensor], Tensor]) -> Noisy:
        """x (tokens, dim) -> the logits of the jittered x, (tokens, num_experts)."""
        x = x.to(logits.dtype)
        factor = 1 + self.epsilon * (2 * torch.rand_like(x) - 1)
        return Noisy(score(x * factor), None)

    def kept_numbers(self, num_experts: int, dim: int) -> int:
        """The factor and the input times it."""
        return 2 * dim

    def extra_repr(self) -> str:
        """Its width, for ``print(model)``."""
        return f"epsilon={self.epsilon}"


class GaussianNoise(Noise):
    """Adds N(0, std^2) to every logit.

    Args:
        std: None is 1 / num_experts.

    Raises:
        ValueError: if ``std`` is not positive.

    Source: Riquelme et al. 2021, V-MoE (arXiv 2106.05974), equation 1 and appendix A.
    """

    def __init__(self, std: float | None = None) -> None:
        super().__init__()
        require(std is None or std > 0, "std", std, "positive, or None for 1 / num_experts")
        self.std = std

    def forward(self, x: Tensor, logits: Tensor, score: Callable[[Tensor], Tensor]) -> Noisy:
        """logits (tokens, num_experts) -> Noisy."""
        std = 1 / logits.shape[1] if self.std is None else self.std
        return Noisy(logits + std * torch.randn_like(logits), torch.full_like(logits, std))

    def extra_repr(self) -> str:
        """Its width, for ``print(model)``."""
        return f"std={'1 / num_experts' if self.std is None else self.std}"


class NoisyTopK(Noise):
    """Adds N(0, 1) * (softplus(x W_noise) + 0.01) to every logit: each expert learns how wide its noise is.

    ``weight`` (num_experts, dim) is W_noise. It and the router's own weight start at zero, "no signal and some
    noise": until a step is taken every logit of the router is 0 in evaluation. Softmax and top-k of
    the noisy logits with ``normalize=True`` are the paper's softmax over the kept ones (equations 3 to 5).

    Args:
        dim: width of a token.
        num_experts: how many experts there are.
        floor: the least standard deviation, which keeps the load loss's quotient finite.

    Raises:
        ValueError: if a size or ``floor`` is not positive, or the router is of another size.

    Source: Shazeer et al. 2017 (arXiv 1701.06538), equation 4 and appendix A.
    """

    products = 1
    zero_router = True

    def __init__(self, dim: int, num_experts: int, floor: float = 1e-2) -> None:
        super().__init__()
        require_positive(dim=dim, num_experts=num_experts, floor=floor)
        self.floor = floor
        self.weight = nn.Parameter(torch.empty(num_experts, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero: every expert's noise has standard deviation ln 2 + floor."""
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor, logits: Tensor, score: Callable[[Tensor], Tensor]) -> Noisy:
        """x (tokens, dim), logits (tokens, num_experts) -> Noisy; the gradient reaches W_noise through the noise."""
        std = nn.functional.softplus(project(x, self.weight)) + self.floor
        return Noisy(logits + std * torch.randn_like(logits), std)

    def kept_numbers(self, num_experts: int, dim: int) -> int:
        """The logits of the width, and the draws."""
        return 2 * num_experts

    def check(self, weight: Tensor) -> None:
        """Raise a ValueError unless the router's weight has the same shape."""
        here, there = tuple(self.weight.shape), tuple(weight.shape)
        require(here == there, "noise.weight.shape", here, f"the router's (num_experts, dim) = {there}")

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        experts, dim = self.weight.shape
        return f"dim={dim}, num_experts={experts}, floor={self.floor}"
