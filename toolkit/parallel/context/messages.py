"""Messages that ranks send each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor


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
