"""A part that remembers belongs to one router."""

from __future__ import annotations

from torch import nn

from toolkit.checks import require
from toolkit.routing.router import Router


def require_own_parts(model: nn.Module) -> None:
    """Refuse a model in which two routers share a loss or a balancer that keeps counts: it would add up both.

    Raises:
        ValueError: naming the part and both routers.
    """
    owners: dict[nn.Module, str] = {}
    for path, router in model.named_modules():
        if isinstance(router, Router):
            for part in router.modules():
                if getattr(part, "remembers", False):
                    owner = owners.setdefault(part, path)
                    right = "one of its own for each: it keeps counts"
                    require(owner == path, f"{type(part).__name__} of {owner} and {path}", part, right)
