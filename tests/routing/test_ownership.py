"""Losses and balancers that count do so for one router."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from toolkit.layers import MoE, auxiliary_losses
from toolkit.routing import BiasBalancer, LoadBalancingLoss, RouterZLoss, TopKRouter
from toolkit.routing.ownership import require_own_parts


def routers(**parts: object) -> nn.ModuleList:
    """Two of them with the same parts."""
    return nn.ModuleList(TopKRouter(8, 4, 2, **parts) for _ in range(2))


def test_a_loss_or_a_balancer_of_two_routers_is_refused() -> None:
    for parts in ({"losses": [LoadBalancingLoss()]}, {"balancer": BiasBalancer(4)}):
        with pytest.raises(ValueError, match="of 0 and 1=.*it must be one of its own for each: it keeps counts"):
            require_own_parts(routers(**parts))


def test_what_keeps_no_counts_may_be_shared() -> None:
    require_own_parts(routers(losses=[RouterZLoss(), LoadBalancingLoss(over="sequence")]))


def test_copies_are_others_and_a_router_in_two_places_is_one() -> None:
    router = TopKRouter(8, 4, 2, balancer=BiasBalancer(4))
    require_own_parts(nn.ModuleList([router, deepcopy(router), router]))


def test_whoever_asks_for_the_losses_is_told() -> None:
    model = nn.ModuleList(MoE(8, 8, 4, 2, router=router) for router in routers(losses=[LoadBalancingLoss()]))
    for moe in model:
        moe(torch.randn(3, 8))
    with pytest.raises(ValueError, match="LoadBalancingLoss of 0.router and 1.router"):
        auxiliary_losses(model)
