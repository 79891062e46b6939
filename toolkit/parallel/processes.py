"""How the processes of a run part."""

from __future__ import annotations

import torch.distributed as dist

from toolkit.routing.reduce import set_batch_group


def leave_process_group() -> None:
    """Leave the default process group, if there is one; the last thing a process does with it.

    Threads of a group that is still there when the interpreter ends can abort the process, and with it the launcher's
    whole run. Lightning leaves NCCL's by itself, but not gloo's.
    """
    if dist.is_available() and dist.is_initialized():
        set_batch_group(None)
        dist.destroy_process_group()
