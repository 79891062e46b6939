"""From an assignment in token order to rows sorted by expert, which grouped products want."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ExpertRows:
    """The n triples of an assignment sorted by expert, in their old order within each; nothing waits for the device.

    The first ``ends[-1]`` rows are those of experts; the rest belong to no expert (-1) and nobody computes them.

    Attributes:
        order: int64 (n,), row r is triple ``order[r]``.
        token: int64 (n,), the token that row r reads and writes.
        ends: int32 (num_experts,), expert e has the rows from ``ends[e - 1]`` (0 for the first) to ``ends[e]``.
    """

    order: Tensor
    token: Tensor
    ends: Tensor

    @property
    def place(self) -> Tensor:
        """int64 (n,), the inverse of ``order``: triple i is row ``place[i]``."""
        return torch.empty_like(self.order).scatter_(
            0, self.order, torch.arange(len(self.order), device=self.order.device)
        )

    def counts(self) -> list[int]:
        """Rows of each expert, on the host: waits for the device."""
        ends = self.ends.tolist()
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def sort_by_expert(token: Tensor, expert: Tensor, num_experts: int) -> ExpertRows:
    """Rows of the same expert brought together in a stable order.

    Shapes: token, expert int64 (n,); an expert of -1 is none. Static shapes and no host synchronisation.
    """
    keys = torch.where(expert < 0, num_experts, expert)
    order = torch.argsort(keys.to(torch.int32), stable=True)
    counts = torch.zeros(num_experts + 1, dtype=torch.int32, device=expert.device)
    counts.scatter_add_(0, keys, torch.ones_like(keys, dtype=torch.int32))
    return ExpertRows(order, token.index_select(0, order), counts[:-1].cumsum(0, dtype=torch.int32))


def token_starts(token: Tensor, tokens: int) -> Tensor:
    """int64 (tokens + 1,): triples of token t are those from ``starts[t]`` to ``starts[t + 1]``; token is ascending."""
    return torch.searchsorted(token, torch.arange(tokens + 1, device=token.device))
