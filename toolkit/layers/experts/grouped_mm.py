"""Experts through torch's grouped matrix product."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.checks import require
from toolkit.layers.experts.activations import Activation
from toolkit.layers.experts.weights import Weights
from toolkit.routing import Assignment, sort_by_expert

ALIGNMENT = 16
"""Bytes that torch.nn.functional.grouped_mm wants every row to be a multiple of."""


def grouped_mm_experts(x: Tensor, assignment: Assignment, weights: Weights, activation: Activation) -> Tensor:
    """The same function as :func:`toolkit.layers.experts.reference.reference_experts`.

    Shapes: x (tokens, dim) -> (tokens, dim). Rows without an expert come last, where torch leaves its outputs
    and gradients unwritten: they are set to 0 before anything reads them.

    Raises:
        ValueError: for fp64, or a dim, hidden_dim or width whose rows are no multiple of 16 bytes.
    """
    require(x.dtype != torch.float64, "dtype", x.dtype, "float32 or lower for the grouped_mm backend")
    multiple = ALIGNMENT // x.element_size()
    for name, size in (("dim", x.shape[1]), ("hidden_dim", weights.second.shape[2])):
        require(size % multiple == 0, name, size, f"a multiple of {multiple} for {x.dtype} with grouped_mm")
    rows = sort_by_expert(assignment.token, assignment.expert, len(weights.first))
    none = (torch.arange(len(rows.order), device=x.device) >= rows.ends[-1])[:, None]
    expert = assignment.expert.index_select(0, rows.order).clamp(min=0)

    def product(rows_in: Tensor, matrices: Tensor, bias: Tensor | None) -> Tensor:
        made = F.grouped_mm(rows_in.masked_fill(none, 0), matrices.transpose(1, 2), offs=rows.ends).masked_fill(none, 0)
        return made if bias is None else made + bias.index_select(0, expert)

    read = x.index_select(0, rows.token)
    y = product(activation(product(read, weights.first, weights.first_bias)), weights.second, weights.second_bias)
    gates = assignment.weight.index_select(0, rows.order)[:, None].masked_fill(none, 0)
    return torch.zeros_like(x).index_add(0, rows.token, y * gates.to(y.dtype))
