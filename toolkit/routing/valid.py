"""Leaving padding out of sums over tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def only_valid(table: Tensor, valid: Tensor | None) -> Tensor:
    """table (tokens, ...) with 0 in the rows that are padding; valid bool (tokens,), None: no row is.

    A row of NaN becomes 0 too, which it would not by multiplication.
    """
    if valid is None:
        return table
    return torch.where(valid.view(-1, *[1] * (table.ndim - 1)), table, 0)


def mean_over_valid(table: Tensor, valid: Tensor | None) -> Tensor:
    """table (tokens, ...) -> its mean over the tokens that are not padding, (...); 0 where there is none."""
    return only_valid(table, valid).sum(dim=0) / n_valid(table, valid).clamp(min=1)


def n_valid(table: Tensor, valid: Tensor | None) -> Tensor:
    """How many of table's (tokens, ...) rows are not padding, an int64 scalar on its device."""
    if valid is None:
        return torch.full((), len(table), device=table.device)  # torch.tensor would copy it from the host
    return valid.sum()
