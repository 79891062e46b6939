"""Train two routers for some steps on one half of the tokens, as one of two processes; write what it reached.

python halves.py FOLDER RANK
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from toolkit.routing import (
    BiasBalancer,
    LoadBalancingLoss,
    QuantileBalancer,
    RoutingStats,
    TopKRouter,
    update_balancers,
)

STEPS, MICRO_BATCHES, TOKENS, DIM, EXPERTS = 4, 2, 12, 6, 5


def train(rank: int, world: int) -> dict[str, list[float]]:
    """Losses, the weight, both biases and statistics after ``STEPS`` steps on this rank's tokens."""
    torch.manual_seed(0)
    loss = LoadBalancingLoss(1.0, micro_batches=MICRO_BATCHES)
    biased = TopKRouter(DIM, EXPERTS, 2, balancer=BiasBalancer(EXPERTS, 0.01, centred=True), losses=[loss])
    solved = TopKRouter(DIM, EXPERTS, 2, balancer=QuantileBalancer(EXPERTS, 2), losses=[])
    routers = nn.ModuleList([biased, solved]).double()
    losses = []
    for _ in range(STEPS):
        biased.zero_grad()
        for x in torch.randn(MICRO_BATCHES, TOKENS, DIM, dtype=torch.float64):
            share = x.chunk(world)[rank]
            value = biased(share).losses["balance"]
            value.backward()
            losses.append(value.item())
            last = solved(share)
        gradient = biased.weight.grad
        assert gradient is not None
        if world > 1:
            dist.all_reduce(gradient)
        with torch.no_grad():
            biased.weight -= gradient / world
        update_balancers(routers)
    stats = RoutingStats.of(last).all_reduce()
    return {
        "loss": losses,
        "weight": biased.weight.flatten().tolist(),
        "bias": biased.balancer.bias.tolist(),
        "quantile_bias": solved.balancer.bias.tolist(),
        "stats": stats.pack().tolist(),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, number = Path(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
    (folder / f"{number}.json").write_text(json.dumps(train(number, 2)))
    dist.destroy_process_group()
