"""A part that remembers belongs to one router."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import ReferenceType, WeakKeyDictionary, ref

from torch import nn

from toolkit.checks import require

_OWNERS: WeakKeyDictionary[nn.Module, ReferenceType[nn.Module]] = WeakKeyDictionary()


def belong_to(router: nn.Module, parts: Iterable[nn.Module]) -> None:
    """Note that ``router`` has these losses or balancers, which count what their router chose.

    Raises:
        ValueError: if one of them is another router's: it would add up what both chose.
    """
    for part in parts:
        owner = _OWNERS.get(part)
        alone = owner is None or owner() in (None, router)
        require(alone, "losses or balancer", type(part).__name__, "one of its own for every router: it keeps counts")
        _OWNERS[part] = ref(router)
