"""Random numbers that processes share."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from toolkit.attention.dropout import draw_seed


def shared_seed(device: torch.device, group: dist.ProcessGroup, seed: Tensor | None = None) -> Tensor:
    """A seed for processes that share a layer's heads or its tokens, and must drop the same weights.

    The group's first process draws it from torch's generator, as one process alone would, and sends it to the others,
    who draw too, so that generators stay in step. A collective of 8 bytes.

    Args:
        device: where it is to be, and whose generator draws.
        group: the processes.
        seed: int64 (1,), drawn before: the first process's is taken, and none is drawn.

    Returns:
        int64 (1,), the same in every process.
    """
    shared = draw_seed(device) if seed is None else seed.clone()
    dist.broadcast(shared, dist.get_global_rank(group, 0), group=group)
    return shared
