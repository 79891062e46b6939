"""From an assignment in token order to rows sorted by expert, which grouped products want."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.checks import require_positive
from toolkit.routing.assignment import Assignment


@dataclass(frozen=True)
class ExpertRows:
    """The n triples of an assignment sorted by expert, tokens in order within each.

    Attributes:
        token: int64 (rows,), the token each row reads and writes.
        weight: (rows,), its gate; 0 for the rows that only pad an expert's share.
        counts: rows of each expert, num_experts ints on the host.
    """

    token: Tensor
    weight: Tensor
    counts: list[int]


def sort_by_expert(assignment: Assignment, multiple: int = 1) -> ExpertRows:
    """Rows of the same expert brought together in a stable order (one host synchronisation on a GPU).

    Args:
        assignment: n (token, expert, weight) triples.
        multiple: each expert's rows are padded up to a multiple of this. A padding row reads token 0
            with weight 0: it adds nothing to any output and receives no gradient.

    Raises:
        ValueError: if ``multiple`` is not positive.
    """
    require_positive(multiple=multiple)
    order = torch.argsort(assignment.expert, stable=True)
    token, weight = assignment.token[order], assignment.weight[order]
    counts = torch.bincount(assignment.expert, minlength=assignment.num_experts)
    if multiple == 1:
        return ExpertRows(token, weight, counts.tolist())
    padded = (counts + multiple - 1) // multiple * multiple
    # A row moves down by the padding of the experts before its own.
    shift = padded.cumsum(0) - padded - (counts.cumsum(0) - counts)
    place = torch.arange(len(token), device=token.device) + shift.repeat_interleave(counts)
    host_counts = padded.tolist()
    rows = sum(host_counts)
    return ExpertRows(
        token.new_zeros(rows).index_copy(0, place, token),
        weight.new_zeros(rows).index_copy(0, place, weight),
        host_counts,
    )
