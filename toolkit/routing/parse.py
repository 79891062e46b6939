"""Routers and adjustments as text, so that a config file says ``TopKRouter(score='sigmoid')`` and means it."""

from __future__ import annotations

import importlib
from typing import TypeVar

from torch import nn

from toolkit.calls import Calls
from toolkit.checks import require
from toolkit.routing.auxiliary_loss import AuxiliaryLoss
from toolkit.routing.balancer import Balancer
from toolkit.routing.capacity import Capacity
from toolkit.routing.fixed import FixedRouter
from toolkit.routing.rounding import TokenRounding
from toolkit.routing.router import GatedRouter, Router
from toolkit.routing.soft import SoftRouter

ROUTERS = (Router, SoftRouter)
ADJUSTMENTS = (Capacity, TokenRounding)
BASES = (Router, GatedRouter, FixedRouter, AuxiliaryLoss, Balancer)


REGISTERED: dict[str, type] = {}
"""Classes of the user's own, by name."""

Kind = TypeVar("Kind", bound=type)


def register_router(kind: Kind) -> Kind:
    """Make a router, a loss, a balancer or an adjustment of one's own known to text, and so to configs, by its name.

    A decorator. Register where the class is defined, so that every process that imports it knows it.

    Raises:
        ValueError: if it is no such class, or the name is another's.
    """
    fits = isinstance(kind, type) and issubclass(kind, (nn.Module, *ADJUSTMENTS))
    require(fits, "kind", kind, "a class of routers, losses, balancers or adjustments")
    name, known = kind.__name__, _known().get(kind.__name__)
    ours = known is None or (known.__module__, known.__qualname__) == (kind.__module__, kind.__qualname__)
    require(ours, "kind", name, f"a name of its own, not one of {', '.join(sorted(_known()))}")
    REGISTERED[name] = kind
    return kind


def build_router(
    text: str, *, dim: int, num_experts: int, top_k: int, vocab_size: int | None = None
) -> Router | SoftRouter:
    """The router that ``text`` writes, such as ``"TopKRouter(score='sigmoid', losses=[RouterZLoss(0.001)])"``.

    Only names of :mod:`toolkit.routing` and of :func:`register_router`, called with literals, lists and each other, are
    understood: nothing is evaluated. ``dim``, ``num_experts``, ``top_k`` and ``vocab_size`` are given to every call
    that takes them and does not say them itself.

    Raises:
        ValueError: naming the text, what in it was not understood and what is known, or what a constructor refused.

    >>> build_router("SinkhornRouter(top_k=1)", dim=8, num_experts=4, top_k=2)
    SinkhornRouter(
      dim=8, num_experts=4, top_k=1, iterations=20
      (losses): ModuleList()
    )
    """
    sizes = {"dim": dim, "num_experts": num_experts, "top_k": top_k}
    if vocab_size is not None:
        sizes["vocab_size"] = vocab_size
    router: Router | SoftRouter = Calls("router", _known(), ROUTERS, sizes).read(text)
    return router


def parse_adjustment(text: str) -> Capacity | TokenRounding:
    """The adjustment that ``text`` writes.

    Raises:
        ValueError: naming the text, what in it was not understood and what is known, or what a constructor refused.

    >>> parse_adjustment("TokenRounding(64)")
    TokenRounding(multiple=64)
    """
    adjustment: Capacity | TokenRounding = Calls("adjustment", _known(), ADJUSTMENTS).read(text)
    return adjustment


def _known() -> dict[str, type]:
    """Classes of toolkit.routing that a config may make: routers, their parts, adjustments."""
    room = importlib.import_module("toolkit.routing")  # which imports this file
    public = {name: getattr(room, name) for name in room.__all__}
    kinds = (nn.Module, *ADJUSTMENTS)
    ours = {
        name: kind
        for name, kind in public.items()
        if isinstance(kind, type) and issubclass(kind, kinds) and kind not in BASES
    }
    return ours | REGISTERED
