"""One round of keys and values through a group: what a call of ring attention sends, gets and computes in each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from toolkit.attention.parse import encode
from toolkit.attention.scoring import Scoring
from toolkit.parallel.context.schedule import Block, Step

Parts = list[tuple[Tensor, Tensor]]
"""Keys and values, or their gradients, of each of some chunks."""


@dataclass(frozen=True, eq=False)
class Round:
    """The settings of one call, and its steps.

    Attributes:
        group: the ranks.
        steps: this rank's, see :func:`toolkit.parallel.context.schedule.schedule`.
        chunk_length: tokens of a chunk.
        scoring: without its tensors, which autograd must see.
        backend: ``"triton"`` or ``"blockwise"``.
    """

    group: dist.ProcessGroup
    steps: tuple[Step, ...]
    chunk_length: int
    scoring: Scoring
    backend: str

    def chunk(self, x: Tensor, place: int) -> Tensor:
        """The tokens of a chunk of x (batch, heads, length, ...), a view."""
        return x.narrow(2, place * self.chunk_length, self.chunk_length)

    def chunks(self, k: Tensor, v: Tensor) -> Parts:
        """Those of this rank's k and v, as views."""
        places = range(k.shape[2] // self.chunk_length)
        return [(self.chunk(k, place), self.chunk(v, place)) for place in places]

    def settings(self, block: Block) -> tuple[Any, ...]:
        """The last arguments of attention's operators: the pattern's tensors, and what is no tensor."""
        text, tensors = encode(block.pattern)
        starts = block.query.start, block.key.start
        numbers = self.scoring.scale, self.scoring.softcap, self.scoring.dropout_p, self.scoring.first_head
        return tensors, text, *starts, *numbers, self.backend

    def visits(self, own: Parts) -> Iterator[tuple[Step, Parts]]:
        """Each step with the keys and values it received, in order; the next step's are on their way meanwhile."""
        coming = self._send(1, own)
        yield self.steps[0], [own[place] for place in self.steps[0].received]
        for number in range(1, len(self.steps)):
            parts = _unpacked(coming.wait(), own)
            coming = self._send(number + 1, own)
            yield self.steps[number], parts

    def _send(self, number: int, own: Parts) -> Arrival:
        """Start a step's keys and values on their way; nothing after the last step."""
        if number >= len(self.steps):
            return Arrival()
        step = self.steps[number]
        sent, received = _packed([own[place] for place in step.sent]), _room(step.received, own)
        return exchange(self.group, sent, step.target, received, step.source, tag=2 * number)


@dataclass(eq=False)
class Returns:
    """Gradients of others' keys and values on their way to their owners, and of this rank's own to it.

    Attributes:
        group: the ranks.
        own: this rank's keys and values, whose dtype gradients travel in.
        sums: (batch, kv_heads, length, ...) by chunk, the gradients of its own, added up in the order of steps.
    """

    group: dist.ProcessGroup
    own: Parts
    sums: Parts
    _coming: tuple[Step, Arrival] | None = field(default=None, init=False)

    def start(self, number: int, step: Step, gradients: Parts) -> None:
        """Send the gradients of what was received in a step back to its source, once the step's before are in."""
        self.collect()
        if number == 0:  # its own
            _add([self.sums[place] for place in step.received], gradients)
            return
        typed = [(dk.to(self.own[0][0].dtype), dv.to(self.own[0][1].dtype)) for dk, dv in gradients]
        sent, received = _packed(typed), _room(step.sent, self.own)
        tag = 2 * number + 1
        self._coming = step, exchange(self.group, sent, step.source, received, step.target, tag)

    def collect(self) -> None:
        """Wait for what was started last, and add it."""
        if self._coming is not None:
            step, arrival = self._coming
            _add([self.sums[place] for place in step.sent], _unpacked(arrival.wait(), self.own))
            self._coming = None


def _add(sums: Parts, parts: Parts) -> None:
    for totals, fresh in zip(sums, parts, strict=True):
        for total, one in zip(totals, fresh, strict=True):
            total.add_(one)


def _packed(parts: Parts) -> Tensor | None:
    """One flat message; None for none."""
    return torch.cat([x.flatten() for part in parts for x in part]) if parts else None


def _room(places: Sequence[int], own: Parts) -> Tensor | None:
    """Memory for a message of so many chunks, each as large as one of one's own; None for none."""
    size = sum(x.numel() for x in own[0])
    return own[0][0].new_empty(len(places) * size) if places else None


def _unpacked(message: Tensor | None, own: Parts) -> Parts:
    """The chunks of a message, as views."""
    if message is None:
        return []
    k, v = own[0]
    pieces = message.view(-1, k.numel() + v.numel()).split([k.numel(), v.numel()], dim=1)
    return [(one.view(k.shape), other.view(v.shape)) for one, other in zip(*pieces, strict=True)]


@dataclass(frozen=True, eq=False)
class Arrival:
    """A message on its way: what it will be in, and what is waited for."""

    buffer: Tensor | None = None
    requests: tuple[dist.Work, ...] = ()
    sent: Tensor | None = None  # kept alive until it has left

    def wait(self) -> Tensor | None:
        """The message, or None where there is none, once it is here and what was sent in turn has left."""
        for request in self.requests:
            request.wait()
        return self.buffer


def exchange(
    group: dist.ProcessGroup, sent: Tensor | None, target: int, received: Tensor | None, source: int, tag: int
) -> Arrival:
    """Start to send ``sent`` to rank ``target`` of the group and to fill ``received`` with what ``source`` sends.

    Returns at once. None is sent, or received, by not sending: both sides must know. Messages between two ranks are
    started in the same order on both; ``tag`` tells them apart where the backend looks at it (gloo).
    """
    operations = []
    if sent is not None:
        operations.append(_operation(dist.isend, sent, target, group, tag))
    if received is not None:
        operations.append(_operation(dist.irecv, received, source, group, tag))
    requests = dist.batch_isend_irecv(operations) if operations else ()
    return Arrival(received, tuple(requests), sent)


def _operation(kind: Any, tensor: Tensor, peer: int, group: dist.ProcessGroup, tag: int) -> dist.P2POp:
    return dist.P2POp(kind, tensor, dist.get_global_rank(group, peer), group, tag)
