"""Rows that travel between the processes of a group, there in the forward pass and their gradients back.

An exchange is two nodes of autograd: one starts it, the other waits for it. Backward the second starts the return and
the first waits, so that what is independent of the rows runs while they travel, in both directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from toolkit.checks import refuse_double_backward


@dataclass(frozen=True, eq=False)
class Route:
    """How many rows this process sends to each process of a group and receives from each, itself included.

    Attributes:
        group: the processes.
        sent: by rank of the group; rows stand in the order of the ranks they go to.
        received: by rank; rows will stand in the order of the ranks they came from.
    """

    group: dist.ProcessGroup
    sent: list[int]
    received: list[int]

    @property
    def back(self) -> Route:
        """The way home."""
        return Route(self.group, self.received, self.sent)


@dataclass(frozen=True, eq=False)
class Arrival:
    """Rows on their way: what they will be in, what is waited for, and what was sent, kept until it has left."""

    rows: Tensor
    work: Any
    sent: Tensor

    def wait(self) -> Tensor:
        """The rows, once they are here."""
        self.work.wait()
        return self.rows


@dataclass(eq=False)
class Journey:
    """Tensors of rows that take one route together, and whose gradients come back by it.

    Attributes:
        route: where each row goes.
        under_way: what was started last and not yet waited for.
    """

    route: Route
    under_way: tuple[Arrival, ...] = field(default=(), init=False)

    def depart(self, *tensors: Tensor) -> Journey:
        """Start to send tensors (rows sent, ...); to be followed by :meth:`arrive`."""
        self._unfilled: tuple[Tensor, ...] = _Depart.apply(self, *tensors)
        return self

    def arrive(self) -> tuple[Tensor, ...]:
        """Wait; the tensors (rows received, ...), differentiable once."""
        unfilled, self._unfilled = self._unfilled, ()
        arrived: tuple[Tensor, ...] = _Arrive.apply(self, *unfilled)
        return arrived

    def start(self, route: Route, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Start an exchange of every tensor; what they will be in, which nobody may read before :meth:`land`."""
        self.under_way = tuple(_send(route, rows) for rows in tensors)
        return tuple(arrival.rows for arrival in self.under_way)

    def land(self) -> tuple[Tensor, ...]:
        """Wait for all that is under way."""
        arrivals, self.under_way = self.under_way, ()
        return tuple(arrival.wait() for arrival in arrivals)


def exchange(route: Route, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Send tensors (rows sent, ...) by ``route`` and wait for those that come (rows received, ...)."""
    return Journey(route).depart(*tensors).arrive()


def exchange_counts(counts: Tensor, group: dist.ProcessGroup) -> tuple[list[list[int]], list[list[int]], Tensor]:
    """counts int32 (num_experts,), this process's rows for every expert -> rows sent and received, by rank and expert.

    Waits for the device: how much is sent must be known on the host. The last is what is received as a tensor (ranks *
    own experts,).
    """
    ranks = dist.get_world_size(group)
    received = torch.empty_like(counts)
    dist.all_to_all_single(received, counts, group=group)
    sent, given = torch.stack([counts, received]).view(2, ranks, -1).tolist()
    return sent, given, received


def _send(route: Route, rows: Tensor) -> Arrival:
    """One collective with uneven splits, which gloo has as NCCL does."""
    rows = rows.contiguous()
    received = rows.new_empty(sum(route.received), *rows.shape[1:])
    work = dist.all_to_all_single(received, rows, route.received, route.sent, group=route.group, async_op=True)
    return Arrival(received, work, rows)


class _Depart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, journey: Journey, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.journey = journey
        return journey.start(journey.route, tensors)

    @staticmethod
    def backward(ctx: Any, *left: Tensor) -> tuple[Any, ...]:
        return None, *ctx.journey.land()


class _Arrive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, journey: Journey, *unfilled: Tensor) -> tuple[Tensor, ...]:
        ctx.journey = journey
        journey.land()
        return tuple(rows.detach() for rows in unfilled)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        refuse_double_backward("an exchange of expert parallelism")
        ctx.journey.start(ctx.journey.route.back, gradients)
        return None, *gradients  # of the shape that the engine wants; the other node gives those that come back
