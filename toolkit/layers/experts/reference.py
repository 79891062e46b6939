"""SwiGLU experts as a plain loop over experts, with autograd: the oracle."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.routing import Assignment


def reference_experts(x: Tensor, assignment: Assignment, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """y_t = sum over t's experts e of weight * down_e (silu(gate_e x_t) * up_e x_t).

    Shapes: x (tokens, dim); gate_up_proj (experts, 2 * hidden_dim, dim), the gate's rows first;
    down_proj (experts, dim, hidden_dim) -> (tokens, dim).
    """
    out = torch.zeros_like(x)
    for expert, (gate_up, down) in enumerate(zip(gate_up_proj, down_proj, strict=True)):
        chosen = assignment.expert == expert
        token, weight = assignment.token[chosen], assignment.weight[chosen]
        gate, up = F.linear(x[token], gate_up).chunk(2, dim=-1)
        y = F.linear(F.silu(gate) * up, down)
        out = out.index_add(0, token, y * weight[:, None].to(y.dtype))
    return out
