"""Which (query, key) pairs an attention sees, as small immutable objects that combine with ``&``.

A pattern states itself twice: ``visible`` is its definition, pair by pair, and ``span`` is the range
of keys each query sees. The mask (the oracle) is made from the first; the exact area, the blocks to
visit and the FLOP count from the second; tests hold the two together.

Positions are absolute: query row r stands at ``q_start + r``, key column c at ``kv_start + c``, and by
default the queries are the last ``q_len`` positions (bottom-right alignment).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from toolkit.checks import require

UNBOUNDED = 2**62
"""A distance that no position reaches; far enough from the int64 limit to add positions to it."""


class Pattern(ABC):
    """A set of visible (query, key) pairs; patterns are hashable and print as they are written."""

    @abstractmethod
    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether each query sees each key: int64 positions, broadcast together, to bool."""

    @abstractmethod
    def span(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """First and last key (inclusive, int64, shape of ``query``) that each query sees."""

    def mask(
        self,
        q_len: int,
        kv_len: int,
        q_start: int | None = None,
        kv_start: int = 0,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Bool (q_len, kv_len): True where the query sees the key. The oracle, of quadratic size.

        Raises:
            ValueError: if ``q_start`` is below 0, or the default start would be.

        >>> Causal().mask(2, 3).int().tolist()
        [[1, 1, 0], [1, 1, 1]]
        """
        query = query_positions(self, q_len, kv_len, q_start, kv_start, device)
        key = torch.arange(kv_start, kv_start + kv_len, device=device)
        return self.visible(query[:, None], key[None, :]).expand(q_len, kv_len)

    def area(self, q_len: int, kv_len: int, q_start: int | None = None, kv_start: int = 0) -> int:
        """The exact number of visible pairs, equal to ``mask(...).sum()``, in O(q_len) memory.

        Raises:
            ValueError: if ``q_start`` is below 0, or the default start would be.

        >>> (Causal() & SlidingWindow(2)).area(4, 4)
        7
        """
        first, last = self.span(query_positions(self, q_len, kv_len, q_start, kv_start))
        first, last = first.clamp(min=kv_start), last.clamp(max=kv_start + kv_len - 1)
        return int((last - first + 1).clamp(min=0).sum())

    def __and__(self, other: Pattern) -> Pattern:
        """The pairs that both patterns see."""
        if not isinstance(other, Pattern):
            return NotImplemented
        # Flat, so that a & (b & c) is (a & b) & c: the same text, hash and cache entry.
        return And(_parts(self) + _parts(other))


def query_positions(
    pattern: Pattern,
    q_len: int,
    kv_len: int,
    q_start: int | None,
    kv_start: int,
    device: torch.device | str | None = None,
) -> Tensor:
    """Absolute positions (q_len,) of the query rows; by default the last ``q_len`` of the keys'.

    Raises:
        ValueError: if a length is not positive or the first query would stand before position 0
            (``Full`` alone does not mind where a query stands).
    """
    require(q_len > 0, "q_len", q_len, "positive")
    require(kv_len > 0, "kv_len", kv_len, "positive")
    require(kv_start >= 0, "kv_start", kv_start, "0 or more")
    if q_start is None:
        q_start = kv_start + kv_len - q_len
        require(
            q_start >= 0 or isinstance(pattern, Full),
            "q_len",
            q_len,
            f"at most kv_start + kv_len={kv_start + kv_len} when q_start is not given "
            f"(queries are the last q_len positions)",
        )
    else:
        require(q_start >= 0, "q_start", q_start, "0 or more")
    return torch.arange(q_start, q_start + q_len, device=device)


@dataclass(frozen=True)
class Full(Pattern):
    """Every query sees every key."""

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        """Always (see :class:`Pattern`)."""
        return torch.ones(torch.broadcast_shapes(query.shape, key.shape), dtype=torch.bool, device=query.device)

    def span(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """From the first key to the last."""
        return torch.zeros_like(query), torch.full_like(query, UNBOUNDED)


@dataclass(frozen=True)
class Causal(Pattern):
    """Query i sees key j when j <= i."""

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        """j <= i."""
        return key <= query

    def span(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """From the first key to the query itself."""
        return torch.zeros_like(query), query


@dataclass(frozen=True)
class Window(Pattern):
    """Query i sees key j when i - left <= j <= i + right, both ends included; -1 is unbounded.

    FlashAttention's ``window_size=(left, right)`` means exactly this.

    Raises:
        ValueError: if a side is no integer or below -1.
    """

    left: int
    right: int

    def __post_init__(self) -> None:
        for name, side in (("left", self.left), ("right", self.right)):
            require(isinstance(side, int) and side >= -1, name, side, "an integer of 0 or more, or -1 for no bound")

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        """-left <= j - i <= right."""
        distance = key - query
        return (distance >= -_reach(self.left)) & (distance <= _reach(self.right))

    def span(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """From i - left to i + right."""
        return query - _reach(self.left), query + _reach(self.right)


@dataclass(frozen=True)
class SlidingWindow(Pattern):
    """Query i sees key j when abs(i - j) < width.

    So ``Causal() & SlidingWindow(w)`` is the w newest keys, the query's own included: the meaning of
    Hugging Face's ``sliding_window=w`` in causal models. Other conventions differ by one or by a
    factor of two; use :meth:`from_flash` and :meth:`from_hf`.

    Raises:
        ValueError: if ``width`` is not a positive integer.
    """

    width: int

    def __post_init__(self) -> None:
        require(isinstance(self.width, int) and self.width > 0, "width", self.width, "a positive integer")

    @staticmethod
    def from_flash(left: int, right: int) -> Pattern:
        """FlashAttention's ``window_size=(left, right)``: inclusive at both ends, -1 unbounded."""
        return Window(left, right)

    @staticmethod
    def from_hf(sliding_window: int, causal: bool = True) -> Pattern:
        """Hugging Face's ``sliding_window``: w keys when causal, abs(i - j) <= w when not.

        >>> SlidingWindow.from_hf(512)
        Causal() & SlidingWindow(width=512)
        """
        return Causal() & SlidingWindow(sliding_window) if causal else SlidingWindow(sliding_window + 1)

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        """abs(i - j) < width."""
        return (query - key).abs() < self.width

    def span(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """From i - width + 1 to i + width - 1."""
        return query - (self.width - 1), query + (self.width - 1)


@dataclass(frozen=True, repr=False)
class And(Pattern):
    """The pairs that all of ``parts`` see; written ``a & b & c``."""

    parts: tuple[Pattern, ...]

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        """All say so."""
        return reduce(torch.logical_and, (part.visible(query, key) for part in self.parts))

    def span(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """The intersection of ranges is a range."""
        firsts, lasts = zip(*(part.span(query) for part in self.parts), strict=True)
        return reduce(torch.maximum, firsts), reduce(torch.minimum, lasts)

    def __repr__(self) -> str:
        return " & ".join(map(repr, self.parts))


def _parts(pattern: Pattern) -> tuple[Pattern, ...]:
    return pattern.parts if isinstance(pattern, And) else (pattern,)


def _reach(side: int) -> int:
    return UNBOUNDED if side == -1 else side
