"""Soft MoE's experts: each slot is a mix of a sequence's tokens, each token gets a mix of the slots back."""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from toolkit.routing import Assignment, SoftAssignment


def mix_slots(x: Tensor, soft: SoftAssignment, experts: nn.Module) -> Tensor:
    """Y = C f(D^T X): x (..., length, dim) -> (..., length, dim), expert e working on its own slots.

    Source: Puigcerver et al. 2023 (arXiv 2308.00951), section 2.1.
    """
    read = einsum(soft.dispatch.to(x.dtype), x, "... n e s, ... n d -> ... e s d")
    rows = rearrange(read, "... d -> (...) d")
    *_, num_experts, slots, _ = read.shape
    row = torch.arange(len(rows), device=x.device)
    # Every slot is one row with one expert, whose gate is 1.
    table = x.new_zeros(len(rows), num_experts)
    y = experts(rows, Assignment(row, row // slots % num_experts, x.new_ones(len(rows)), table, table))
    return einsum(soft.combine.to(y.dtype), y.view(read.shape), "... n e s, ... e s d -> ... n d")
