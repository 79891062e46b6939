"""Patterns in which every query sees one stretch of keys: causal, windows, chunks, a shared prefix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.attention.intervals import Intervals
from toolkit.attention.patterns.pattern import Pattern
from toolkit.checks import require

UNBOUNDED = 2**62
"""A distance that no position reaches; far enough from the int64 limit to add positions to it."""


@dataclass(frozen=True)
class Causal(Pattern):
    """Query i sees key j when j <= i."""

    def visible(self, query: Tensor, key: Tensor, end: int) -> Tensor:
        """j <= i."""
        return key <= query

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """From the first key to the query itself."""
        return Intervals.between(torch.zeros_like(query), query + 1, end)


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

    def visible(self, query: Tensor, key: Tensor, end: int) -> Tensor:
        """-left <= j - i <= right."""
        distance = key - query
        return (distance >= -_reach(self.left)) & (distance <= _reach(self.right))

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """From i - left to i + right."""
        return Intervals.between(query - _reach(self.left), query + _reach(self.right) + 1, end)


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

    def visible(self, query: Tensor, key: Tensor, end: int) -> Tensor:
        """abs(i - j) < width."""
        return (query - key).abs() < self.width

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """From i - width + 1 to i + width - 1."""
        return Intervals.between(query - (self.width - 1), query + self.width, end)


@dataclass(frozen=True)
class Chunked(Pattern):
    """Query i sees key j when both are in the same chunk: i // size == j // size (Llama 4, with ``Causal()``).

    Raises:
        ValueError: if ``size`` is not a positive integer.
    """

    size: int

    def __post_init__(self) -> None:
        require(isinstance(self.size, int) and self.size > 0, "size", self.size, "a positive integer")

    def visible(self, query: Tensor, key: Tensor, end: int) -> Tensor:
        """i // size == j // size."""
        return query // self.size == key // self.size

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """The query's chunk."""
        first = query // self.size * self.size
        return Intervals.between(first, first + self.size, end)


@dataclass(frozen=True)
class PrefixLM(Pattern):
    """Query i sees key j when j < length or j <= i: a prefix that everyone sees, then causal.

    Source: Raffel et al. 2020 (arXiv 1910.10683), section 3.2.1.

    Raises:
        ValueError: if ``length`` is not an integer of 0 or more.
    """

    length: int

    def __post_init__(self) -> None:
        require(isinstance(self.length, int) and self.length >= 0, "length", self.length, "an integer of 0 or more")

    def visible(self, query: Tensor, key: Tensor, end: int) -> Tensor:
        """j < length or j <= i."""
        return (key < self.length) | (key <= query)

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """From the first key to the query or the prefix's end."""
        return Intervals.between(torch.zeros_like(query), (query + 1).clamp(min=self.length), end)


def _reach(side: int) -> int:
    return UNBOUNDED if side == -1 else side
