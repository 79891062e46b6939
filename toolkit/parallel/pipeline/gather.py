"""What the stages of a pipeline have, each of its own layers, together again."""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist
from torch import Tensor


def gather_stages(own: Mapping[str, Tensor], group: dist.ProcessGroup) -> dict[str, Tensor]:
    """The tensors of all processes of ``group`` by name, on the host; a collective call, every process gets them.

    What several processes have under one name, a tied embedding, is the same in all, and is the first's.
    """
    parts: list[dict[str, Tensor]] = [{} for _ in range(group.size())]
    dist.all_gather_object(parts, {name: tensor.detach().cpu() for name, tensor in own.items()}, group=group)
    whole: dict[str, Tensor] = {}
    for part in parts:
        whole = part | whole
    return whole
