"""What a pattern is: a set of visible (query, key) pairs.

A pattern states itself twice. ``visible`` is its definition, pair by pair: the oracle, from which ``mask``
is made. ``intervals`` is the set of keys each query sees, as runs: the area, the blocks to visit and the
FLOP count come from it. Tests hold the two together.

Positions are absolute: query row r stands at ``q_start + r``, key column c at ``kv_start + c``, and by
default the queries are the last ``q_len`` positions (bottom-right alignment).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from toolkit.attention.intervals import Intervals
from toolkit.checks import require


class Pattern(ABC):
    """A set of visible (query, key) pairs.

    Patterns are immutable, print as they are written, and are equal and hash alike when they are written
    alike; those that hold a tensor are equal to themselves only. What is planned from a tensor is kept: make
    a new pattern rather than change the tensor in place.
    """

    planes: tuple[int, int] = (1, 1)
    """Batch rows and heads for which the pattern differs; 1 where it is the same for all."""

    device: torch.device | None = None
    """Where the pattern's tensors are; None when it holds none."""

    @abstractmethod
    def visible(self, query: Tensor, key: Tensor, end: int) -> Tensor:
        """Whether each query sees each key.

        Args:
            query: int64 positions (..., q_len, 1).
            key: int64 positions (..., 1, kv_len).
            end: one past the last key's position.

        Returns:
            bool, broadcastable to (q_len, kv_len), or with leading (batch | 1, heads | 1) axes when the
            pattern or the positions have them.
        """

    @abstractmethod
    def intervals(self, query: Tensor, end: int) -> Intervals:
        """The positions in ``0:end`` that each query sees: query int64 (..., q_len) -> (..., q_len, slots)."""

    @property
    def definition(self) -> Pattern:
        """The same pattern in simpler ones; itself when it is one of the simplest."""
        return self

    def mapped(self, change: Callable[[Pattern], Pattern]) -> Pattern:
        """The pattern with ``change`` made to each of its parts that is no combination of others."""
        return change(self)

    def leaves(self, positive: bool = True) -> Iterator[tuple[Pattern, bool]]:
        """The parts that are no combination of others, and whether each adds pairs or (under ``~``) removes them."""
        yield self, positive

    def for_head(self, head: int) -> Pattern:
        """What query head ``head`` sees."""
        return self

    def check(self, q_end: int, end: int) -> None:  # noqa: B027 (most patterns fit everywhere)
        """Refuse queries up to ``q_end`` and keys up to ``end`` that the pattern says nothing of.

        Raises:
            ValueError: naming the pattern's argument and what would fit.
        """

    def until(self, end: int) -> Pattern:
        """The pattern where only keys and queries before ``end`` exist yet, as in decoding."""
        return self

    def written(self, tensor: Callable[[Tensor], str]) -> str:
        """The pattern as text, each tensor in it written by ``tensor``."""
        values = [(field.name, getattr(self, field.name)) for field in fields(self) if field.repr]  # type: ignore[arg-type]
        texts = [f"{name}={tensor(value) if isinstance(value, Tensor) else repr(value)}" for name, value in values]
        return f"{type(self).__name__}({', '.join(texts)})"

    def __repr__(self) -> str:
        return self.written(lambda x: f"<{'x'.join(map(str, x.shape))}>")

    def mask(
        self,
        q_len: int,
        kv_len: int,
        q_start: int | None = None,
        kv_start: int = 0,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """True where the query sees the key. The oracle, of quadratic size.

        Returns:
            bool (q_len, kv_len), or (batch | 1, heads | 1, q_len, kv_len) when the pattern differs by batch
            row or head.

        Raises:
            ValueError: if ``q_start`` is below 0 or the default start would be, or if the pattern's own
                sizes do not fit.

        >>> from toolkit.attention import Causal
        >>> Causal().mask(2, 3).int().tolist()
        [[1, 1, 0], [1, 1, 1]]
        """
        device = self.device if device is None else device
        query = query_positions(self, q_len, kv_len, q_start, kv_start, device)
        key = torch.arange(kv_start, kv_start + kv_len, device=device)
        seen = self.visible(query[:, None], key[None, :], kv_start + kv_len)
        lead = self.planes if self.planes != (1, 1) or seen.ndim > 2 else ()
        return seen.expand(*lead, q_len, kv_len)

    def area(
        self,
        q_len: int,
        kv_len: int,
        q_start: int | None = None,
        kv_start: int = 0,
        batch: int = 1,
        heads: int = 1,
    ) -> int:
        """The exact number of visible pairs of all batch rows and heads, without building the mask.

        A pattern that is the same for every batch row or head counts ``batch`` or ``heads`` times; one that
        differs is summed over its own.

        Raises:
            ValueError: as :meth:`mask` does, or if ``batch`` or ``heads`` is neither 1 nor the pattern's own.

        >>> from toolkit.attention import Causal, SlidingWindow
        >>> (Causal() & SlidingWindow(2)).area(4, 4)
        7
        """
        from toolkit.attention.plan import plan, plan_area  # it reads patterns, so it stands above them

        total = []
        for name, given, own in (("batch", batch, self.planes[0]), ("heads", heads, self.planes[1])):
            require(own == 1 or given in (1, own), name, given, f"1 or the pattern's own, {own}")
            total.append(max(given, own))
        return plan_area(plan(self, q_len, kv_len, q_start, kv_start), *total)

    def __and__(self, other: Pattern) -> Pattern:
        """The pairs that both patterns see."""
        from toolkit.attention.patterns.combinations import And  # it is made of patterns, so it stands above them

        return And.of(self, other) if isinstance(other, Pattern) else NotImplemented

    def __or__(self, other: Pattern) -> Pattern:
        """The pairs that either pattern sees."""
        from toolkit.attention.patterns.combinations import Or

        return Or.of(self, other) if isinstance(other, Pattern) else NotImplemented

    def __invert__(self) -> Pattern:
        """The pairs that the pattern does not see."""
        from toolkit.attention.patterns.combinations import Not

        return Not(self)


@dataclass(frozen=True)
class Full(Pattern):
    """Every query sees every key."""

    def visible(self, query: Tensor, key: Tensor, end: int) -> Tensor:
        """Always (see :class:`Pattern`)."""
        return torch.ones(torch.broadcast_shapes(query.shape, key.shape), dtype=torch.bool, device=query.device)

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """All of them."""
        return Intervals.between(torch.zeros_like(query), torch.full_like(query, end), end)


def first_position(pattern: Pattern, q_len: int, kv_len: int, q_start: int | None, kv_start: int) -> int:
    """Absolute position of the first query; by default the queries are the last ``q_len`` of the keys.

    Raises:
        ValueError: if a length is not positive, the first query would stand before position 0 (``Full``
            alone does not mind where a query stands), or the pattern's own sizes do not fit.
    """
    require(q_len > 0, "q_len", q_len, "positive")
    require(kv_len > 0, "kv_len", kv_len, "positive")
    require(isinstance(kv_start, int) and kv_start >= 0, "kv_start", kv_start, "an integer of 0 or more")
    end, given = kv_start + kv_len, q_start is not None
    q_start = end - q_len if q_start is None else q_start
    require(isinstance(q_start, int), "q_start", q_start, "an integer of 0 or more")
    if q_start < 0 and not isinstance(pattern, Full):
        require(given, "q_len", q_len, f"at most kv_start + kv_len={end} when q_start is not given (the last q_len)")
        require(False, "q_start", q_start, "an integer of 0 or more")
    pattern.check(q_start + q_len, end)
    return q_start


def query_positions(
    pattern: Pattern,
    q_len: int,
    kv_len: int,
    q_start: int | None,
    kv_start: int,
    device: torch.device | str | None = None,
) -> Tensor:
    """Absolute positions (q_len,) of the query rows, from :func:`first_position` on, which says what it raises."""
    q_start = first_position(pattern, q_len, kv_len, q_start, kv_start)
    return torch.arange(q_start, q_start + q_len, device=device)
