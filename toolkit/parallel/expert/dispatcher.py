"""Tokens go to the processes that hold their experts, and come back."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call

from toolkit.checks import require
from toolkit.parallel.expert.exchange import Journey, Route, exchange, exchange_counts
from toolkit.parallel.expert.own import own_shards
from toolkit.routing import Assignment, sort_by_expert


class AllToAllDispatcher:
    """Experts are shared by the processes of a group in rank order: process r has the r-th stretch of them.

    Triples are sorted by expert, and so by owner; how many go where is exchanged, then the tokens and their gates
    (``all_to_all_single`` with uneven splits, the same call on gloo and NCCL); the owner computes them with the backend
    its experts have, and weighted outputs go home to be summed there, in fp32 at least. A triple of no expert (-1) is
    not sent. The backward pass sends gradients the other way.

    A collective call, forward and backward: every process of the group runs the layer as often as the others, also
    with no token, and takes a gradient through it if they do. The host waits once a forward, for the counts, and
    ``torch.compile`` breaks its graph there. On a GPU a token's outputs are summed in no fixed order, unless
    ``torch.use_deterministic_algorithms`` says so.

    Args:
        group: the processes.
        compute_dtype: what experts compute in, and tokens must be in; None: the dtype of their parameters.

    Source: Lepikhin et al. 2020, GShard (arXiv 2006.16668), section 3.2; dropless: Gale et al. 2022, MegaBlocks (arXiv
    2211.15841), section 5.
    """

    def __init__(self, group: dist.ProcessGroup, compute_dtype: torch.dtype | None = None) -> None:
        self.group, self.compute_dtype = group, compute_dtype

    def __call__(self, experts: nn.Module, tokens: Tensor, assignment: Assignment) -> OnTheWay:
        """Start to send ``tokens`` (tokens, dim) to their experts; what it gives is waited for.

        Raises:
            ValueError: if the experts cannot be shared evenly, or ``experts`` has parameters that
                :func:`toolkit.parallel.expert.expert_parallel` did not share.
        """
        ranks, num_experts = dist.get_world_size(self.group), assignment.num_experts
        require_even(num_experts, ranks)
        if torch.is_autocast_enabled(tokens.device.type):  # what the experts would do, before it is sent
            tokens = tokens.to(torch.get_autocast_dtype(tokens.device.type))
        rows = sort_by_expert(assignment.token, assignment.expert, num_experts)
        counts = rows.ends.diff(prepend=rows.ends.new_zeros(1))
        sent, received, arriving = exchange_counts(counts, self.group)
        route = Route(self.group, [sum(row) for row in sent], [sum(row) for row in received])
        n = sum(route.sent)
        token, order = rows.token[:n], rows.order[:n]
        journey = Journey(route)
        journey.depart(tokens.index_select(0, token), assignment.weight.index_select(0, order))
        own = torch.arange(num_experts // ranks, device=tokens.device).repeat(ranks)
        total = sum(chain(*received))
        expert = own.repeat_interleave(arriving.long(), output_size=total)
        return OnTheWay(experts, self.compute_dtype, journey, expert, num_experts // ranks, tokens, token)

    def __deepcopy__(self, memo: dict[int, Any]) -> AllToAllDispatcher:
        """Itself: a copy of a model talks to the same processes."""
        return self


@dataclass(frozen=True, eq=False)
class OnTheWay:
    """Tokens on their way to the experts of other processes.

    Attributes:
        experts: this process's.
        compute_dtype: of their parameters while they compute; None: their own.
        journey: of the tokens.
        expert: int64 (rows received,), which of this process's experts each row that comes is for.
        num_experts: how many this process has.
        tokens: (tokens, dim), this process's.
        token: int64 (rows sent,), the token that each row is of.
    """

    experts: nn.Module
    compute_dtype: torch.dtype | None
    journey: Journey
    expert: Tensor
    num_experts: int
    tokens: Tensor
    token: Tensor

    def wait(self) -> Tensor:
        """Compute what has come, send it home, and sum what comes home: (tokens, dim)."""
        rows, gates = self.journey.arrive()
        own = own_shards(self.experts, self.compute_dtype)
        y: Tensor = functional_call(self.experts, own, (rows, self._assignment(gates)))
        (home,) = exchange(self.journey.route.back, y)
        exact = torch.promote_types(home.dtype, torch.float32)
        out = home.new_zeros(self.tokens.shape, dtype=exact).index_add(0, self.token, home.to(exact))
        return out.to(home.dtype)

    def _assignment(self, gates: Tensor) -> Assignment:
        """Each row that came is a token with one expert; its router's tables stayed where it came from."""
        rows = torch.arange(len(gates), device=gates.device)
        table = gates.detach().new_zeros(1).expand(len(gates), self.num_experts)
        return Assignment(rows, self.expert, gates, table, table)


def require_even(num_experts: int, ranks: int) -> None:
    """Refuse experts that ``ranks`` processes cannot share evenly."""
    right = f"a multiple of the {ranks} processes that share them: {num_experts} / {ranks} is not whole"
    require(num_experts % ranks == 0, "num_experts", num_experts, right)
