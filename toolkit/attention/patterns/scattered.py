"""Patterns whose visible keys lie scattered: dilated windows, strides, summary columns.

Each is defined by simpler ones, of which one is a :class:`Residue` or a set of keys: the plan computes
those in an order of the tokens in which they lie together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.attention.intervals import FAR, Intervals, normalise
from toolkit.attention.patterns.bands import Chunked, SlidingWindow
from toolkit.attention.patterns.pattern import Pattern
from toolkit.checks import require


@dataclass(frozen=True)
class Residue(Pattern):
    """Query i sees key j when (i - j) % step == 0: tokens sorted by i % step, each class by itself."""

    step: int

    def visible(self, query: Tensor, key: Tensor, end: int) -> Tensor:
        """(i - j) % step == 0."""
        return (query - key) % self.step == 0

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """Every step-th key by itself: end / step runs a row, so a plan goes another way where it can."""
        first = query[..., None] % self.step + torch.arange(0, end, self.step, device=query.device)
        first = first.masked_fill(first >= end, FAR).to(torch.int32)
        return normalise(first, (first + 1).masked_fill(first == FAR, FAR))


@dataclass(frozen=True)
class SummaryKeys(Pattern):
    """Every query sees key j when j % block >= block - summary: the last ``summary`` of every block."""

    block: int
    summary: int

    def visible(self, query: Tensor, key: Tensor, end: int) -> Tensor:
        """j % block >= block - summary."""
        return (key % self.block >= self.block - self.summary).expand(torch.broadcast_shapes(query.shape, key.shape))

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """One run a block."""
        begin = self.block - self.summary
        starts = torch.arange(begin, max(end, begin + 1), self.block, device=query.device, dtype=torch.int32)
        shape = (*query.shape, len(starts))
        return normalise(starts.expand(shape), (starts + self.summary).clamp(max=end).expand(shape))

    def columns(self, end: int, device: torch.device | None) -> Tensor:
        """The summary positions before ``end``, ascending: (count,) int64."""
        position = torch.arange(end, device=device)
        return position[position % self.block >= self.block - self.summary]


@dataclass(frozen=True)
class DilatedWindow(Pattern):
    """Query i sees key j when abs(i - j) < width * dilation and (i - j) % dilation == 0.

    With ``Causal()`` that is the query and width - 1 keys behind it, ``dilation`` apart. Longformer
    (Beltagy et al. 2020, arXiv 2004.05150, section 3.1) counts keys on each side in the same way but
    for one: its w at dilation d is ``DilatedWindow(w + 1, d)``.

    Raises:
        ValueError: if ``width`` or ``dilation`` is not a positive integer.
    """

    width: int
    dilation: int

    def __post_init__(self) -> None:
        for name, value in (("width", self.width), ("dilation", self.dilation)):
            require(isinstance(value, int) and value > 0, name, value, "a positive integer")

    @property
    def definition(self) -> Pattern:
        """A window, of every ``dilation``-th key."""
        window = SlidingWindow((self.width - 1) * self.dilation + 1)
        return window & Residue(self.dilation) if self.dilation > 1 else window

    def visible(self, query: Tensor, key: Tensor, end: int) -> Tensor:
        """abs(i - j) < width * dilation and (i - j) % dilation == 0."""
        distance = query - key
        return (distance.abs() < self.width * self.dilation) & (distance % self.dilation == 0)

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """Of its definition."""
        return self.definition.intervals(query, end)


@dataclass(frozen=True)
class Strided(Pattern):
    """Query i sees key j when abs(i - j) < stride or (i - j) % stride == 0.

    Source: Child et al. 2019, Sparse Transformer (arXiv 1904.10509), section 4.2, both heads as one; it is
    causal there, so write ``Causal() & Strided(s)``.

    Raises:
        ValueError: if ``stride`` is not a positive integer.
    """

    stride: int

    def __post_init__(self) -> None:
        require(isinstance(self.stride, int) and self.stride > 0, "stride", self.stride, "a positive integer")

    @property
    def definition(self) -> Pattern:
        """A window, or every ``stride``-th key."""
        return SlidingWindow(self.stride) | Residue(self.stride)

    def visible(self, query: Tensor, key: Tensor, end: int) -> Tensor:
        """abs(i - j) < stride or (i - j) % stride == 0."""
        distance = query - key
        return (distance.abs() < self.stride) | (distance % self.stride == 0)

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """Of its definition."""
        return self.definition.intervals(query, end)


@dataclass(frozen=True)
class Fixed(Pattern):
    """Query i sees key j when i // block == j // block or j % block >= block - summary.

    Source: Child et al. 2019, Sparse Transformer (arXiv 1904.10509), section 4.2; it is causal there, so
    write ``Causal() & Fixed(block, summary)``.

    Raises:
        ValueError: if ``block`` is not a positive integer, or ``summary`` not between 1 and ``block``.
    """

    block: int
    summary: int

    def __post_init__(self) -> None:
        require(isinstance(self.block, int) and self.block > 0, "block", self.block, "a positive integer")
        fits = isinstance(self.summary, int) and 1 <= self.summary <= self.block
        require(fits, "summary", self.summary, f"an integer between 1 and block={self.block}")

    @property
    def definition(self) -> Pattern:
        """The query's own block, or any block's summary."""
        return Chunked(self.block) | SummaryKeys(self.block, self.summary)

    def visible(self, query: Tensor, key: Tensor, end: int) -> Tensor:
        """i // block == j // block or j % block >= block - summary."""
        return (query // self.block == key // self.block) | (key % self.block >= self.block - self.summary)

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """Of its definition."""
        return self.definition.intervals(query, end)
