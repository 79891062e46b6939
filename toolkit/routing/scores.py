"""From tokens to logits, and from logits to the scores that experts are chosen by and weighted with."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ASYMPTOTE = -60.0
"""Below it softplus(z) is exp(z) in fp32 and fp64 alike: the next term of its series is exp(z) / 2 smaller."""


class Scores(NamedTuple):
    """What a score function makes of logits (tokens, num_experts).

    Attributes:
        raw: (tokens, num_experts), what top-k ranks and what gates are.
        probabilities: (tokens, num_experts), the same divided by its sum over experts, for losses and statistics.
    """

    raw: Tensor
    probabilities: Tensor


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (tokens, dim), weight (num_experts, dim), bias (num_experts,) -> logits (tokens, num_experts) in fp32.

    In fp64 for fp64 weights. Under autocast the caller turns it off first: it would round the operands to bf16.
    """
    compute = torch.promote_types(weight.dtype, torch.float32)
    weight, bias = weight.to(compute), None if bias is None else bias.to(compute)
    if x.dtype == compute:
        return nn.functional.linear(x, weight, bias)
    logits: Tensor = _WideProduct.apply(x, weight)
    return logits if bias is None else logits + bias


class _WideProduct(torch.autograd.Function):
    """x W^T in W's dtype, of which x is kept for the backward pass as it came.

    Autograd would keep the copy that is multiplied: in a bf16 model twice the memory of all that the experts keep of x.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        """x (..., dim) and weight (num_experts, dim) -> (..., num_experts)."""
        return nn.functional.linear(x.to(weight.dtype), weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Apart from ``forward``, as torch.func wants it."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, d_logits: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gradients by x, in its dtype, and by weight."""
        x, weight = ctx.saved_tensors
        d_x = (d_logits @ weight).to(x.dtype) if ctx.needs_input_grad[0] else None
        wide = x.flatten(0, -2).to(weight.dtype)
        return d_x, d_logits.flatten(0, -2).t() @ wide if ctx.needs_input_grad[1] else None


def normalizes(top_k: int, normalize: bool | None, asked: str) -> bool:
    """Whether gates are divided by their sum: as said, or by default where ``top_k`` > 1; ``asked`` is how it was.

    Warns where one gate is: it is 1 whatever the router says.
    """
    if normalize and top_k == 1:
        warnings.warn(f"{asked} with top_k=1 makes every gate 1: the router gets no gradient", stacklevel=4)
    return top_k > 1 if normalize is None else normalize


def scaled_gates(chosen: Tensor, normalize: bool, scale: float) -> Tensor:
    """chosen (tokens, top_k), scores -> gates: divided by their sum (plus 1e-20) if ``normalize``, times ``scale``."""
    if normalize:
        chosen = chosen / (chosen.sum(dim=-1, keepdim=True) + 1e-20)
    return chosen if scale == 1 else scale * chosen


def softmax(logits: Tensor) -> Scores:
    """exp(z_i) / sum_j exp(z_j): its own share of the experts (Shazeer et al. 2017, arXiv 1701.06538)."""
    probabilities = torch.softmax(logits, dim=-1)
    return Scores(probabilities, probabilities)


def sigmoid(logits: Tensor) -> Scores:
    """1 / (1 + exp(-z)), every expert by itself (DeepSeek-AI 2024, V3, arXiv 2412.19437, equation 15)."""
    return Scores(torch.sigmoid(logits), _shares(nn.functional.logsigmoid(logits)))


def sqrt_softplus(logits: Tensor) -> Scores:
    """sqrt(ln(1 + exp(z))), every expert by itself: the score of DeepSeek-V4.

    Its gradient is finite everywhere; a plain square root of a softplus that rounds to 0 would have 0 * inf.
    """
    far = logits < ASYMPTOTE
    soft = nn.functional.softplus(logits.clamp(min=ASYMPTOTE))
    tail = torch.exp(logits.clamp(max=ASYMPTOTE) / 2)  # clamped: the branch not taken must not overflow in backward
    raw = torch.where(far, tail, torch.sqrt(soft))
    return Scores(raw, _shares(torch.where(far, logits, torch.log(soft)) / 2))


def _shares(log_scores: Tensor) -> Tensor:
    """s_i / sum_j s_j, from ln s (tokens, num_experts).

    A softmax of the logarithms: no epsilon stands in the denominator, so a router cannot lower a loss by
    shrinking all its scores towards one, and the shares are right where every score underflows.
    """
    return torch.softmax(log_scores, dim=-1)


SCORES: dict[str, Callable[[Tensor], Scores]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "sqrt_softplus": sqrt_softplus,
}

KEPT = {"softmax": 1, "sigmoid": 4, "sqrt_softplus": 7}
"""Tensors of (tokens, num_experts) that autograd keeps of each."""
