"""Passes made from masks by brute force, and the textbook over a mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from toolkit.attention.intervals import Intervals
from toolkit.attention.patterns import Pattern
from toolkit.attention.plan import Pass
from toolkit.attention.reference import reference_attention
from toolkit.attention.scoring import Scoring


class Seen(Pattern):
    """The pattern of one mask (batch | 1, heads | 1, q_len, kv_len)."""

    def __init__(self, mask: Tensor) -> None:
        self.seen = mask
        self.planes = mask.shape[0], mask.shape[1]

    def visible(self, query: Tensor, key: Tensor, end: int) -> Tensor:
        return self.seen

    def intervals(self, query: Tensor, end: int) -> Intervals:
        raise NotImplementedError


def runs_of(seen: list[bool]) -> list[tuple[int, int]]:
    """Where a row of a mask is true."""
    edges = [n for n in range(len(seen) + 1) if (seen[n - 1] if n else False) != (seen[n] if n < len(seen) else False)]
    return list(zip(edges[::2], edges[1::2], strict=True))


def pass_of(
    mask: Tensor, rows: Tensor | None = None, columns: Tensor | None = None, heads: tuple[int, ...] | None = None
) -> Pass:
    """A pass whose places see ``mask`` (batch | 1, heads | 1, n_rows, n_columns)."""
    runs = [[[runs_of(row) for row in plane] for plane in batch] for batch in mask.tolist()]
    slots = max(1, *(len(row) for batch in runs for plane in batch for row in plane))
    nothing = (mask.shape[-1], mask.shape[-1])
    padded = [[[row + [nothing] * (slots - len(row)) for row in plane] for plane in batch] for batch in runs]
    bounds = torch.tensor(padded, dtype=torch.int32)
    first, stop = bounds[..., 0].contiguous(), bounds[..., 1].contiguous()
    return Pass(rows, columns, first, stop, mask.shape[-1], heads)


def reordered(mask: Tensor, n_rows: int, n_columns: int) -> tuple[Pass, Tensor]:
    """A pass over some rows and columns of ``mask``, shuffled, with empty places; and the pairs it holds.

    mask (1, 1, q_len, kv_len), as is the second result.
    """
    rows, columns = torch.randperm(mask.shape[2])[:n_rows], torch.randperm(mask.shape[3])[:n_columns]
    rows[n_rows // 2], columns[n_columns // 3] = -1, -1
    inside = mask[0, 0][rows][:, columns] & (rows >= 0)[:, None] & (columns >= 0)
    covered = torch.zeros_like(mask)
    for r, row in enumerate(rows.tolist()):
        for c, column in enumerate(columns.tolist()):
            if row >= 0 and column >= 0:
                covered[0, 0, row, column] = inside[r, c]
    return pass_of(inside[None, None], rows.int()[None, None], columns.int()[None, None]), covered


def banded(q_len: int, kv_len: int, width: int, lead: tuple[int, int] = (1, 1)) -> Tensor:
    """A causal window with random holes, and a first row that sees nothing: (*lead, q_len, kv_len)."""
    distance = (torch.arange(q_len) + kv_len - q_len)[:, None] - torch.arange(kv_len)
    mask = (distance >= 0) & (distance < width) & (torch.rand(*lead, q_len, kv_len) < 0.9)
    mask[..., 0, :] = False
    return mask


def textbook(tensors: tuple[Tensor, ...], mask: Tensor, scoring: Scoring, grads: Any, *start: int) -> list[Tensor]:
    """out, lse, and the gradients of q, k, v and a sink, by autograd."""
    q, k, v = (x.detach().requires_grad_() for x in tensors)
    out, lse = reference_attention(q, k, v, Seen(mask), scoring, *start)
    inputs = (q, k, v) if scoring.sink_logits is None else (q, k, v, scoring.sink_logits)
    return [out, lse, *torch.autograd.grad((out, lse), inputs, grads)]
