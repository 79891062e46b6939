"""SwiGLU experts as one autograd function: sorted once, a product per expert, nothing copied twice.

Kept for the backward pass are the input and the pre-activations, never a tensor of (tokens * top_k,
dim); weight gradients are written straight into one buffer for all experts. The gate's gradient is
<dA, A> with dA = dY down, so that no expert's output is stored (Guo et al. 2025, SonicMoE, arXiv
2512.14080, section 3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.checks import refuse_double_backward
from toolkit.routing import Assignment, ExpertRows, sort_by_expert

LOW_PRECISION_ROWS = 64
"""oneDNN compiles a kernel for each new row count in bf16; multiples of 64 keep those few."""


def cpu_experts(x: Tensor, assignment: Assignment, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """The same function as :func:`toolkit.layers.experts.reference.reference_experts`.

    Shapes: x (tokens, dim); gate_up_proj (experts, 2 * hidden_dim, dim), the gate's rows first;
    down_proj (experts, dim, hidden_dim) -> (tokens, dim). Differentiable once.
    """
    rows = sort_by_expert(assignment, LOW_PRECISION_ROWS if x.dtype in (torch.bfloat16, torch.float16) else 1)
    out: Tensor = _Experts.apply(x, rows.weight.to(x.dtype), gate_up_proj, down_proj, rows)
    return out


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor, rows: ExpertRows) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            hidden = _grouped(x.index_select(0, rows.token), gate_up.transpose(1, 2), rows.counts)
            gate, up = hidden.chunk(2, dim=-1)
            y = _grouped(F.silu(gate).mul_(up), down.transpose(1, 2), rows.counts).mul_(weight[:, None])
            out = torch.zeros_like(x).index_add_(0, rows.token, y)
        ctx.save_for_backward(x, weight, gate_up, down, hidden)
        ctx.rows = rows
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("the cpu experts")
        x, weight, gate_up, down, hidden = ctx.saved_tensors
        token, counts = ctx.rows.token, ctx.rows.counts
        with torch.autocast(x.device.type, enabled=False):
            gate, up = hidden.chunk(2, dim=-1)
            sigmoid = torch.sigmoid(gate)
            silu = sigmoid * gate
            activation = silu * up
            d_y = d_out.index_select(0, token)  # before the gate
            d_activation = _grouped(d_y, down, counts)
            d_weight = torch.linalg.vecdot(d_activation, activation)
            d_down = _grouped_outer(d_y, activation.mul_(weight[:, None]), counts)
            d_activation.mul_(weight[:, None])
            # silu'(g) = s + silu (1 - s)
            d_gate = d_activation * up * torch.addcmul(sigmoid, silu, 1 - sigmoid)
            d_hidden = torch.cat([d_gate, d_activation.mul_(silu)], dim=-1)
            d_gate_up = _grouped_outer(d_hidden, x.index_select(0, token), counts)
            d_x = torch.zeros_like(x).index_add_(0, token, _grouped(d_hidden, gate_up, counts))
        return d_x, d_weight, d_gate_up, d_down, None


def _grouped(rows: Tensor, weights: Tensor, counts: list[int]) -> Tensor:
    """rows (n, k) x weights (experts, k, m) -> (n, m): each expert's rows by its own matrix."""
    out = rows.new_empty(rows.shape[0], weights.shape[2])
    for x, w, y in zip(rows.split(counts), weights.unbind(), out.split(counts), strict=True):
        torch.mm(x, w, out=y)
    return out


def _grouped_outer(left: Tensor, right: Tensor, counts: list[int]) -> Tensor:
    """left (n, a), right (n, b) -> (experts, a, b): each expert's sum of outer products; 0 without rows."""
    out = left.new_empty(len(counts), left.shape[1], right.shape[1])
    for x, y, z in zip(left.split(counts), right.split(counts), out.unbind(), strict=True):
        torch.mm(x.t(), y, out=z)
    return out
