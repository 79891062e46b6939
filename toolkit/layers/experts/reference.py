"""Experts as a plain loop, with autograd: the oracle."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.layers.experts.activations import Activation
from toolkit.layers.experts.weights import Weights
from toolkit.routing import Assignment


def reference_experts(x: Tensor, assignment: Assignment, weights: Weights, activation: Activation) -> Tensor:
    """y_t = sum over t's experts e of weight * (second_e activation(first_e x_t + first_bias_e) + second_bias_e).

    Shapes: x (tokens, dim) -> (tokens, dim).
    """
    out = torch.zeros_like(x)
    first_bias, second_bias = weights.first_bias, weights.second_bias
    for expert, (first, second) in enumerate(zip(weights.first, weights.second, strict=True)):
        chosen = assignment.expert == expert
        token, weight = assignment.token[chosen], assignment.weight[chosen]
        hidden = F.linear(x[token], first, None if first_bias is None else first_bias[expert])
        y = F.linear(activation(hidden), second, None if second_bias is None else second_bias[expert])
        out = out.index_add(0, token, y * weight[:, None].to(y.dtype))
    return out
