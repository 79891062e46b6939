"""A process leaves its group, and one that has none does nothing."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from toolkit.parallel import leave_process_group


def test_the_group_is_left_and_leaving_again_does_nothing(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    leave_process_group()
    assert not dist.is_initialized()
    leave_process_group()
