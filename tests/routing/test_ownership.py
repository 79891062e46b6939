"""Losses and balancers count for one router; copies are others."""

from __future__ import annotations

import pickle
from copy import deepcopy

import pytest

from toolkit.routing import BiasBalancer, LoadBalancingLoss, TopKRouter


def test_a_loss_of_two_routers_is_refused() -> None:
    loss = LoadBalancingLoss()
    router = TopKRouter(8, 4, 2, losses=[loss])
    with pytest.raises(ValueError, match="LoadBalancingLoss.*one of its own for every router"):
        TopKRouter(8, 4, 2, losses=[loss])
    assert router.losses[0] is loss


def test_a_balancer_of_two_routers_is_refused() -> None:
    balancer = BiasBalancer(4)
    first = TopKRouter(8, 4, 2, balancer=balancer)
    with pytest.raises(ValueError, match="BiasBalancer.*one of its own for every router"):
        TopKRouter(8, 4, 2, balancer=balancer)
    assert first.balancer is balancer


def test_copies_and_parts_of_routers_that_are_gone_are_free() -> None:
    loss = LoadBalancingLoss()
    router = TopKRouter(8, 4, 2, losses=[loss])
    for copy in (deepcopy(router), pickle.loads(pickle.dumps(router))):
        assert copy.losses[0] is not loss
    TopKRouter(8, 4, 2, losses=[deepcopy(loss)])
    del router, copy
    TopKRouter(8, 4, 2, losses=[loss])
