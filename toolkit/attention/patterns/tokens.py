"""Patterns about particular tokens: sinks that everyone sees, global tokens that also see everyone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.attention.intervals import FAR, Intervals, normalise
from toolkit.attention.patterns.combinations import NOTHING
from toolkit.attention.patterns.pattern import Pattern
from toolkit.attention.patterns.positions import Marks, Positions, Tokens
from toolkit.checks import require


@dataclass(frozen=True)
class Sinks(Pattern):
    """Every query sees key j when j < count: the first tokens, on which attention comes to rest.

    Source: Xiao et al. 2024, StreamingLLM (arXiv 2309.17453), which keeps 4 of them.

    Raises:
        ValueError: if ``count`` is not a positive integer.
    """

    count: int

    def __post_init__(self) -> None:
        require(isinstance(self.count, int) and self.count > 0, "count", self.count, "a positive integer")

    def visible(self, query: Tensor, key: Tensor, end: int) -> Tensor:
        """j < count."""
        return (key < self.count).expand(torch.broadcast_shapes(query.shape, key.shape))

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """The first ``count`` keys."""
        return Intervals.between(torch.zeros_like(query), torch.full_like(query, self.count), end)


@dataclass(frozen=True)
class LeadingQueries(Pattern):
    """The first ``count`` queries see every key."""

    count: int

    def visible(self, query: Tensor, key: Tensor, end: int) -> Tensor:
        """i < count."""
        return (query < self.count).expand(torch.broadcast_shapes(query.shape, key.shape))

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """Everything or nothing."""
        return Intervals.between(torch.zeros_like(query), (query < self.count) * end, end)


@dataclass(frozen=True)
class KeysAt(Pattern):
    """Every query sees the keys at ``tokens``: gathered into a short list of keys."""

    tokens: Tokens

    def __post_init__(self) -> None:
        object.__setattr__(self, "planes", (self.tokens.batch, 1))
        object.__setattr__(self, "device", self.tokens.device)

    @classmethod
    def of(cls, positions: Iterable[int] | None = None, mask: Tensor | None = None) -> KeysAt:
        """From what ``GlobalTokens`` takes."""
        return cls(_tokens(positions, mask))

    def written(self, tensor: Callable[[Tensor], str]) -> str:
        """With the arguments of ``of``."""
        return f"KeysAt({self.tokens.written(tensor)})"

    def visible(self, query: Tensor, key: Tensor, end: int) -> Tensor:
        """j is one of them."""
        seen = self.tokens.holds(key)
        return seen.expand(*seen.shape[:-2], *torch.broadcast_shapes(query.shape[-2:], key.shape[-2:]))

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """Each key by itself, neighbours joined: a plan gathers them instead."""
        listed = self.columns(end, query.device)[..., None, :]
        shape = torch.broadcast_shapes(listed.shape, (*query.shape, 1))
        first = listed.to(torch.int32).expand(shape)
        return normalise(first, (first + 1).where(first < end, first))

    def columns(self, end: int, device: torch.device | None) -> Tensor:
        """The positions before ``end``, ascending: (count,) or (batch, 1, count) int64, filled up with ``FAR``."""
        listed = self.tokens.listed(device)
        return listed.where(listed < end, FAR)


@dataclass(frozen=True)
class QueriesAt(Pattern):
    """The queries at ``tokens`` see every key: a plan makes them rows of their own."""

    tokens: Tokens

    def __post_init__(self) -> None:
        object.__setattr__(self, "planes", (self.tokens.batch, 1))
        object.__setattr__(self, "device", self.tokens.device)

    @classmethod
    def of(cls, positions: Iterable[int] | None = None, mask: Tensor | None = None) -> QueriesAt:
        """From what ``GlobalTokens`` takes."""
        return cls(_tokens(positions, mask))

    def written(self, tensor: Callable[[Tensor], str]) -> str:
        """With the arguments of ``of``."""
        return f"QueriesAt({self.tokens.written(tensor)})"

    def visible(self, query: Tensor, key: Tensor, end: int) -> Tensor:
        """i is one of them."""
        seen = self.tokens.holds(query)
        return seen.expand(*seen.shape[:-2], *torch.broadcast_shapes(query.shape[-2:], key.shape[-2:]))

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """Everything or nothing."""
        held = self.tokens.holds(query[..., None])[..., 0]
        return Intervals.between(torch.zeros_like(held, dtype=torch.int64), held * end, end)


@dataclass(frozen=True, init=False, repr=False)
class GlobalTokens(Pattern):
    """Query i sees key j when i is global or j is global: such tokens see all and are seen by all.

    Sources: Longformer (Beltagy et al. 2020, arXiv 2004.05150, section 3.1); BigBird-ETC (Zaheer et al.
    2020, arXiv 2007.14062). The projections are shared with the local attention, as in BigBird; see
    ``SelfAttention(global_projections=...)`` for Longformer's own ones.

    Args:
        count: the first ``count`` positions are global.
        positions: these positions are, in any order.
        mask: bool (batch, length): those marked are, for each batch row.

    Raises:
        ValueError: unless exactly one of the three is given, if ``count`` is not a positive integer, a
            position is negative or not an integer, or ``mask`` is not a bool matrix; later, if a position
            lies past the last key or ``mask`` ends before it.
    """

    count: int | None
    tokens: Tokens | None

    def __init__(
        self, count: int | None = None, positions: Iterable[int] | None = None, mask: Tensor | None = None
    ) -> None:
        given = {"count": count, "positions": positions, "mask": mask}
        given = {name: value for name, value in given.items() if value is not None}
        require(len(given) == 1, "GlobalTokens", list(given), "given exactly one of count, positions and mask")
        if count is not None:
            require(isinstance(count, int) and count > 0, "count", count, "a positive integer")
        tokens = None if count is not None else _tokens(positions, mask)
        object.__setattr__(self, "count", count)
        object.__setattr__(self, "tokens", tokens)
        if tokens is not None:
            object.__setattr__(self, "planes", (tokens.batch, 1))
            object.__setattr__(self, "device", tokens.device)

    @property
    def keys(self) -> Pattern:
        """The half about keys: everyone sees the global ones."""
        if self.tokens is None:
            assert self.count is not None
            return Sinks(self.count)
        return KeysAt(self.tokens)

    @property
    def queries(self) -> Pattern:
        """The half about queries: the global ones see everyone."""
        if self.tokens is None:
            assert self.count is not None
            return LeadingQueries(self.count)
        return QueriesAt(self.tokens)

    @property
    def definition(self) -> Pattern:
        """Keys that everyone sees, or queries that see everyone."""
        return self.keys | self.queries

    def listed(self, device: torch.device | None = None) -> Tensor:
        """The global positions, ascending: (count,) int64, or (batch, 1, count) filled up with ``FAR``."""
        return torch.arange(self.count or 0, device=device) if self.tokens is None else self.tokens.listed(device)

    def visible(self, query: Tensor, key: Tensor, end: int) -> Tensor:
        """i is global or j is global."""
        if self.count is not None:
            return (query < self.count) | (key < self.count)
        assert self.tokens is not None
        return self.tokens.holds(query) | self.tokens.holds(key)

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """Of its definition."""
        return self.definition.intervals(query, end)

    def check(self, q_end: int, end: int) -> None:
        """Every position must be one of a key; a mask must reach to the last."""
        if self.tokens is not None:
            self.tokens.check(q_end, end)

    def until(self, end: int) -> Pattern:
        """Without the positions that do not exist yet."""
        if not isinstance(self.tokens, Positions):
            return self
        known = [position for position in self.tokens.values if position < end]
        return GlobalTokens(positions=known) if known else NOTHING

    def written(self, tensor: Callable[[Tensor], str]) -> str:
        """As one of the three is given."""
        if self.tokens is None:
            return f"GlobalTokens(count={self.count})"
        return f"GlobalTokens({self.tokens.written(tensor)})"


def _tokens(positions: Iterable[int] | None, mask: Tensor | None) -> Tokens:
    return Positions.of(positions) if mask is None else Marks.of(mask)
