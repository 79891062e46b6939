"""A shared seed is the first process's, whatever the others would draw, and generators stay in step."""

from __future__ import annotations

import torch
import torch.distributed as dist
from gloo import run_processes

from toolkit.parallel.seeds import shared_seed


def seeds() -> list[int]:
    """Shared with every process's generator in another state: two drawn ones, one given; and what is drawn next."""
    torch.manual_seed(dist.get_rank())
    group, cpu = dist.group.WORLD, torch.device("cpu")
    mine = torch.tensor([100 + dist.get_rank()])
    shared = [shared_seed(cpu, group), shared_seed(cpu, group, mine), shared_seed(cpu, group)]
    return [*(int(seed) for seed in shared), int(mine), int(torch.randint(2**63 - 1, (1,)))]


def test_a_shared_seed_is_the_first_processs() -> None:
    drawn = [torch.Generator().manual_seed(rank) for rank in range(2)]
    first, second, third = (torch.randint(2**63 - 1, (1,), generator=drawn[0]).item() for _ in range(3))
    other = [torch.randint(2**63 - 1, (1,), generator=drawn[1]).item() for _ in range(3)][2]
    assert run_processes(2, seeds) == [[first, 100, second, 100, third], [first, 100, second, 101, other]]
