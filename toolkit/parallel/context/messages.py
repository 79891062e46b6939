"""What ranks send each other, and how many bytes of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor


@dataclass
class SentCount:
    """Bytes that this process has sent to other ranks in context parallelism."""

    total: int = 0


_counters: list[SentCount] = []


@contextmanager
def count_sent_bytes() -> Iterator[SentCount]:
    """Counts, while it is open, the keys, values, queries, outputs and gradients sent to other ranks.

    The 8 bytes of a seed that a call with dropout shares are not counted, nor are ids of packed documents.
    """
    counter = SentCount()
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters.remove(counter)


def note_sent(nbytes: int) -> None:
    """Add to every open counter."""
    for counter in _counters:
        counter.total += nbytes


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
        note_sent(sent.nbytes)
    if received is not None:
        operations.append(_operation(dist.irecv, received, source, group, tag))
    requests = dist.batch_isend_irecv(operations) if operations else ()
    return Arrival(received, tuple(requests), sent)


def _operation(kind: Any, tensor: Tensor, peer: int, group: dist.ProcessGroup, tag: int) -> dist.P2POp:
    return dist.P2POp(kind, tensor, dist.get_global_rank(group, peer), group, tag)
