"""SwiGLU experts through torch's grouped matrix product: the path for bf16 on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.checks import require
from toolkit.routing import Assignment, sort_by_expert

ALIGNMENT = 16
"""Bytes that torch.nn.functional.grouped_mm wants every row to be a multiple of."""


def grouped_mm_experts(x: Tensor, assignment: Assignment, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """The same function as :func:`toolkit.layers.experts.reference.reference_experts`.

    Shapes: x (tokens, dim); gate_up_proj (experts, 2 * hidden_dim, dim), the gate's rows first;
    down_proj (experts, dim, hidden_dim) -> (tokens, dim).

    Raises:
        ValueError: for fp64, or a dim or hidden_dim whose rows are no multiple of 16 bytes.
    """
    require(x.dtype != torch.float64, "dtype", x.dtype, "float32 or lower for the grouped_mm backend")
    for name, size in (("dim", x.shape[1]), ("hidden_dim", down_proj.shape[2])):
        multiple = ALIGNMENT // x.element_size()
        require(size % multiple == 0, name, size, f"a multiple of {multiple} for {x.dtype} with grouped_mm")
    rows = sort_by_expert(assignment)
    ends = torch.tensor(rows.counts, device=x.device).cumsum(0, dtype=torch.int32)
    gate, up = F.grouped_mm(x[rows.token], gate_up_proj.transpose(1, 2), offs=ends).chunk(2, dim=-1)
    y = F.grouped_mm(F.silu(gate) * up, down_proj.transpose(1, 2), offs=ends)
    return torch.zeros_like(x).index_add(0, rows.token, y * rows.weight[:, None].to(y.dtype))
