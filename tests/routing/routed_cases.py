"""Assignments straight from logits, for the tests of losses, balancers and statistics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from toolkit.routing import Assignment


def routed(logits: Tensor, top_k: int, **fields: Any) -> Assignment:
    """Plain top-k softmax routing of logits (tokens, num_experts); a token that is not ``valid`` has no expert."""
    probabilities = logits.softmax(dim=-1)
    gates, experts = probabilities.topk(top_k)
    token = torch.arange(len(logits)).repeat_interleave(top_k)
    assignment = Assignment(token, experts.flatten(), gates.flatten(), logits, probabilities, **fields)
    if assignment.valid is None:
        return assignment
    real = assignment.valid[token]
    weight = torch.where(real, assignment.weight, 0)
    return replace(assignment, expert=torch.where(real, assignment.expert, -1), weight=weight)


def drawn(seed: int, tokens: int, num_experts: int) -> Tensor:
    """Normal logits in fp64."""
    return torch.randn(tokens, num_experts, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def padded(logits: Tensor, holes: list[int], fill: float = torch.nan) -> tuple[Tensor, Tensor]:
    """The same tokens with rows of ``fill`` put in before the places ``holes``, and which rows are real."""
    rows, valid = list(logits), [True] * len(logits)
    for place in sorted(holes, reverse=True):
        rows.insert(place, torch.full_like(logits[0], fill))
        valid.insert(place, False)
    return torch.stack(rows), torch.tensor(valid)
