"""Routers, the losses that balance them, and the figures that say how healthy they are."""

from toolkit.routing.assignment import Assignment, SoftAssignment
from toolkit.routing.auxiliary_loss import AuxiliaryLoss
from toolkit.routing.balance import GShardLoss, LoadBalancingLoss, RouterZLoss
from toolkit.routing.balancer import Balancer, BiasBalancer, update_balancers
from toolkit.routing.capacity import Capacity
from toolkit.routing.conventions import balance_value
from toolkit.routing.dispatch import ExpertRows, sort_by_expert, token_starts
from toolkit.routing.expert_choice import ExpertChoiceRouter
from toolkit.routing.finite import DivergedError, require_finite_logits
from toolkit.routing.fixed import FixedRouter, RandomRouter, UniformRouter
from toolkit.routing.groups import GroupLimit
from toolkit.routing.gshard import GShardRouter
from toolkit.routing.hash import HashRouter
from toolkit.routing.importance import ImportanceLoss, LoadLoss
from toolkit.routing.noise import GaussianNoise, Jitter, NoisyTopK
from toolkit.routing.parse import build_router, parse_adjustment, register_router
from toolkit.routing.quantile_balancer import QuantileBalancer
from toolkit.routing.recompute import recomputing
from toolkit.routing.replay import RoutingReplay
from toolkit.routing.rounding import TokenRounding
from toolkit.routing.router import GatedRouter, Router
from toolkit.routing.selection import co_selection, flip_rate
from toolkit.routing.sinkhorn import SinkhornRouter
from toolkit.routing.soft import SoftRouter
from toolkit.routing.statistics import RoutingStats
from toolkit.routing.switch import SwitchRouter
from toolkit.routing.topk import TopKRouter

__all__ = [
    "Assignment",
    "AuxiliaryLoss",
    "Balancer",
    "BiasBalancer",
    "Capacity",
    "DivergedError",
    "ExpertChoiceRouter",
    "ExpertRows",
    "FixedRouter",
    "GShardLoss",
    "GShardRouter",
    "GatedRouter",
    "GaussianNoise",
    "GroupLimit",
    "HashRouter",
    "ImportanceLoss",
    "Jitter",
    "LoadBalancingLoss",
    "LoadLoss",
    "NoisyTopK",
    "QuantileBalancer",
    "RandomRouter",
    "Router",
    "RouterZLoss",
    "RoutingReplay",
    "RoutingStats",
    "SinkhornRouter",
    "SoftAssignment",
    "SoftRouter",
    "SwitchRouter",
    "TokenRounding",
    "TopKRouter",
    "UniformRouter",
    "balance_value",
    "build_router",
    "co_selection",
    "flip_rate",
    "parse_adjustment",
    "recomputing",
    "register_router",
    "require_finite_logits",
    "sort_by_expert",
    "token_starts",
    "update_balancers",
]
