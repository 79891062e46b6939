"""Routers, the losses that balance them, and the figures that say how healthy they are."""

from toolkit.routing.assignment import Assignment
from toolkit.routing.balance import LoadBalancingLoss, RouterZLoss
from toolkit.routing.dispatch import ExpertRows, sort_by_expert
from toolkit.routing.router import TopKRouter
from toolkit.routing.statistics import RoutingStats

__all__ = [
    "Assignment",
    "ExpertRows",
    "LoadBalancingLoss",
    "RouterZLoss",
    "RoutingStats",
    "TopKRouter",
    "sort_by_expert",
]
