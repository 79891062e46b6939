"""Which experts tokens chose: together, and as before or not."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.checks import require
from toolkit.routing.assignment import Assignment


def selection(assignment: Assignment) -> Tensor:
    """bool (tokens, num_experts): whether a token chose an expert, before anything was dropped."""
    tokens, num_experts = assignment.tokens, assignment.num_experts
    cell = assignment.token * num_experts + assignment.choice
    cell = torch.where(assignment.choice < 0, tokens * num_experts, cell)
    table = torch.zeros(tokens * num_experts + 1, dtype=torch.bool, device=cell.device)
    return table.scatter_(0, cell, True)[:-1].view(tokens, num_experts)


def co_selection(assignment: Assignment) -> Tensor:
    """fp64 (num_experts, num_experts): how many tokens chose both experts; on the diagonal, how many chose one."""
    table = selection(assignment).double()
    return table.T @ table


def flip_rate(before: Assignment, after: Assignment) -> float:
    """Share of the choices that changed between two routings of the same tokens: 0 none, 1 all. Waits for the device.

    Raises:
        ValueError: if they are not of as many tokens and experts.
    """
    return selection_flip_rate(selection(before), selection(after))


def selection_flip_rate(before: Tensor, after: Tensor) -> float:
    """:func:`flip_rate` of two selections, bool (tokens, num_experts).

    Choices that are in one of them only, over the choices of both: where each token has top_k experts in either, the
    share of the top_k that were replaced.

    Raises:
        ValueError: if their shapes differ.
    """
    require(before.shape == after.shape, "after", tuple(after.shape), f"of before's shape, {tuple(before.shape)}")
    changed, both = (before ^ after).sum(), before.sum() + after.sum()
    return float(changed / both.clamp(min=1))
