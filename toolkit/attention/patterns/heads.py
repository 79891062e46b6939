"""A pattern for each head."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.attention.intervals import Intervals
from toolkit.attention.patterns.combinations import joint_device, joint_planes
from toolkit.attention.patterns.pattern import Pattern
from toolkit.checks import require


@dataclass(frozen=True, init=False, repr=False)
class PerHead(Pattern):
    """Query head h sees what ``patterns[h]`` sees, such as windows of growing dilation (Longformer).

    Raises:
        ValueError: if it is given no pattern, or something that is none.
    """

    patterns: tuple[Pattern, ...]

    def __init__(self, patterns: Iterable[Pattern]) -> None:
        patterns = tuple(patterns)
        fits = bool(patterns) and all(isinstance(pattern, Pattern) for pattern in patterns)
        require(fits, "patterns", patterns, "patterns, one for each query head")
        object.__setattr__(self, "patterns", patterns)
        batch, heads = joint_planes(patterns)
        require(heads in (1, len(patterns)), "patterns", len(patterns), f"{heads}, the heads that one of them is for")
        object.__setattr__(self, "planes", (batch, len(patterns)))
        object.__setattr__(self, "device", joint_device(patterns))

    def visible(self, query: Tensor, key: Tensor, end: int) -> Tensor:
        """Each head's own: (batch | 1, heads, q_len, kv_len)."""
        shape = torch.broadcast_shapes(query.shape[-2:], key.shape[-2:])
        seen = [part.for_head(head).visible(query, key, end) for head, part in enumerate(self.patterns)]
        return torch.cat([one.expand(self.planes[0], 1, *shape) for one in seen], dim=1)

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """Not of all heads at once: a plan goes head by head."""
        raise NotImplementedError("PerHead is planned head by head, through for_head")

    def for_head(self, head: int) -> Pattern:
        """The head's own."""
        return self.patterns[head].for_head(head)

    def check(self, q_end: int, end: int) -> None:
        """Every head's must fit."""
        for pattern in self.patterns:
            pattern.check(q_end, end)

    def until(self, end: int) -> Pattern:
        """Each head's own."""
        return PerHead(pattern.until(end) for pattern in self.patterns)

    def written(self, tensor: Callable[[Tensor], str]) -> str:
        """``PerHead([a, b])``."""
        return f"PerHead([{', '.join(pattern.written(tensor) for pattern in self.patterns)}])"
