"""The whole MoE, router and losses included, compiles into one graph, and keeps little for its backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from toolkit.layers import Activation, MoE, ZeroComputationExperts, auxiliary_losses
from toolkit.routing import LoadBalancingLoss, RouterZLoss, TopKRouter
from toolkit.routing.balancer import BiasBalancer

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "recompute": {"recompute": True},
    "everything": {
        "shared_experts": 2,
        "shared_gate": True,
        "activation": Activation("clamped_swiglu"),
        "bias": True,
        "zero_experts": ZeroComputationExperts(8, identity=1, zero=1, constant=1),
        "capacity_factor": 0.8,
        "recompute": True,
    },
    "first come": {"capacity_factor": 0.8, "drop_policy": "position"},
}


def deepseek() -> TopKRouter:
    losses = [LoadBalancingLoss(0.1, "sequence", counted="scores"), RouterZLoss()]
    groups = {"groups": 2, "top_groups": 1}
    return TopKRouter(8, 4, 2, score="sigmoid", **groups, scale=2.5, balancer=BiasBalancer(4), losses=losses)


def step(moe: MoE, x: Tensor, valid: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and losses, as a training step has them."""
    return moe(x, valid=valid), auxiliary_losses(moe)


@pytest.mark.parametrize("name", [*SETTINGS, "deepseek"])
def test_it_compiles_whole_with_its_losses_and_is_the_eager_one(name: str) -> None:
    settings = {"router": deepseek()} if name == "deepseek" else SETTINGS[name]
    moe = MoE(8, 12, 4, 2, **settings)
    x, valid = torch.randn(2, 9, 8, requires_grad=True), torch.rand(2, 9) > 0.2
    leaves = (x, *moe.parameters())
    found = []
    for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        y, losses = run(moe, x, valid)
        gradients = torch.autograd.grad(y.square().sum() + sum(losses.values()), leaves)
        found.append((y.detach(), losses, gradients, moe.stats.pack()))
    (y, losses, gradients, stats), (compiled_y, compiled_losses, compiled, compiled_stats) = found
    torch.testing.assert_close(compiled_y, y)
    torch.testing.assert_close(compiled_losses, losses)
    torch.testing.assert_close(compiled_stats, stats)
    for ours, expected in zip(compiled, gradients, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("recompute", [False, True])
def test_no_tensor_of_every_triples_width_is_kept(recompute: bool) -> None:
    tokens, dim, hidden_dim, top_k = 50, 40, 24, 4
    moe = MoE(dim, hidden_dim, 8, top_k, recompute=recompute)
    x = torch.randn(tokens, dim, requires_grad=True)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        moe(x)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in moe.parameters()}
    sizes = sorted(tensor.numel() for pointer, tensor in kept.items() if pointer not in parameters)
    n = tokens * top_k
    large = [size for size in sizes if size > max(tokens * 8, n)]  # beyond the router's tables and one number a triple
    assert large == ([tokens * dim] if recompute else [tokens * dim, n * 2 * hidden_dim])
