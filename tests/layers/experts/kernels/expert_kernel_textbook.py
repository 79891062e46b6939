"""The experts as the textbook has them, a loop with autograd in any dtype, and how near to it a backend must come."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.layers.experts.activations import Activation
from toolkit.layers.experts.weights import Weights


@dataclass(frozen=True)
class Problem:
    """Triples (token, expert, weight), what they are computed from, and the gradient that comes in."""

    x: Tensor  # (tokens, dim)
    token: Tensor  # (n,) int64, ascending
    expert: Tensor  # (n,) int64, -1: none
    weight: Tensor  # (n,)
    weights: Weights
    activation: Activation
    d_out: Tensor  # (tokens, dim)


NAMES = ("d_x", "d_weight", "d_first", "d_second", "d_first_bias", "d_second_bias")


def parameters(weights: Weights) -> list[Tensor]:
    """Those there are."""
    held = (weights.first, weights.second, weights.first_bias, weights.second_bias)
    return [parameter for parameter in held if parameter is not None]


def textbook(problem: Problem, dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs and gradients, all arithmetic in ``dtype``."""
    held = [problem.x, problem.weight, *parameters(problem.weights)]
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in held]
    x, weight, first, second, *biases = leaves
    out = torch.zeros_like(x)
    for expert in range(len(first)):
        chosen = problem.expert == expert
        token = problem.token[chosen]
        hidden = x[token] @ first[expert].T
        if biases:
            hidden = hidden + biases[0][expert]
        y = problem.activation(hidden) @ second[expert].T
        if biases:
            y = y + biases[1][expert]
        out = out.index_add(0, token, y * weight[chosen, None])
    gradients = torch.autograd.grad((out * problem.d_out.to(dtype)).sum(), leaves)
    return {"out": out.detach(), **dict(zip(NAMES, gradients, strict=False))}


def compare(got: dict[str, Tensor], problem: Problem) -> float:
    """Hold each result to twice the textbook's error in x's dtype and 4 ulp of the greatest; the worst share of that.

    An ulp is x's, also where a result is wider: gates in fp32 have a gradient made of what was rounded to x's dtype.
    Of that gradient, a sum for each triple, the greatest sum of the sizes of its terms counts: they may cancel.

    Raises:
        AssertionError: naming the result that is off.
    """
    right, plain = textbook(problem, torch.float64), textbook(problem, problem.x.dtype)
    assert set(got) == set(right)
    eps, worst = torch.finfo(problem.x.dtype).eps, 0.0
    for name, value in got.items():
        reference = right[name]
        assert value.shape == reference.shape, f"{name}: {tuple(value.shape)}"
        assert bool(value.isfinite().all()), f"{name}: not finite"
        if value.numel() == 0:
            continue
        error, textbook_error = ((x.double() - reference).abs().max().item() for x in (value, plain[name]))
        largest = terms_of_gate(problem) if name == "d_weight" else reference.abs().max().item()
        bound = 2 * textbook_error + 4 * eps * largest
        assert error <= bound, f"{name}: error {error:.3g}, bound {bound:.3g}"
        worst = max(worst, error / bound if bound else 0.0)
    return worst


def terms_of_gate(problem: Problem) -> float:
    """The greatest sum, over triples, of the sizes of the products that <dA', A> and <d_out, second_bias> add up."""
    x, d_out = problem.x.double(), problem.d_out.double()
    first, second, *biases = (parameter.double() for parameter in parameters(problem.weights))
    greatest = 0.0
    for expert in set(problem.expert.tolist()) - {-1}:
        token = problem.token[problem.expert == expert]
        act = problem.activation(x[token] @ first[expert].T + (biases[0][expert] if biases else 0))
        terms = ((d_out[token] @ second[expert]) * act).abs().sum(-1)
        if biases:
            terms = terms + (d_out[token] * biases[1][expert]).abs().sum(-1)
        greatest = max(greatest, terms.max().item())
    return greatest
