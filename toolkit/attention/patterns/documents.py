"""Packed documents: several in one batch row, none of which sees another."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from toolkit.attention.intervals import Intervals
from toolkit.attention.patterns.lookup import lookup
from toolkit.attention.patterns.pattern import Pattern
from toolkit.checks import require

PADDING = -1
"""The id of tokens of no document."""


@dataclass(frozen=True, eq=False)
class Tables:
    """Where documents lie. All (batch, 1, length), or (length,) when all batch rows share them.

    first, stop: of each stretch of neighbouring tokens of one document, document by document.
    lead, count: for each token, the first stretch of its document and their number; none for padding.
    tokens: for each token, the size of its document; 0 for padding.
    """

    ids: Tensor
    first: Tensor
    stop: Tensor
    lead: Tensor
    count: Tensor
    tokens: Tensor

    @classmethod
    def of(cls, ids: Tensor) -> Tables:
        """By sorting: ids (batch, length) or (length,)."""
        length = ids.shape[-1]
        place = torch.arange(length, device=ids.device).expand(ids.shape)
        ids_sorted, token = ids.sort(dim=-1, stable=True)
        change = ids_sorted[..., 1:] != ids_sorted[..., :-1]
        jump = change | (token[..., 1:] != token[..., :-1] + 1)
        edge = torch.ones_like(ids[..., :1], dtype=torch.bool)
        begins, ends = torch.cat([edge, jump], dim=-1), torch.cat([jump, edge], dim=-1)
        stretch = begins.cumsum(dim=-1) - 1

        def listed(marked: Tensor, value: Tensor) -> Tensor:
            """``value`` where ``marked``, at its stretch's place."""
            index = stretch.where(marked, length)
            return value.new_zeros((*ids.shape[:-1], length + 1)).scatter(-1, index, value)[..., :length]

        low = place.where(torch.cat([edge, change], dim=-1), 0).cummax(dim=-1).values
        high = place.where(torch.cat([change, edge], dim=-1), length).flip(-1).cummin(dim=-1).values.flip(-1)
        lead, real = stretch.gather(-1, low), ids_sorted != PADDING
        count, tokens = (stretch.gather(-1, high) - lead + 1) * real, (high - low + 1) * real
        of_token = [torch.empty_like(x).scatter(-1, token, x) for x in (lead, count, tokens)]
        tables = (ids, listed(begins, token), listed(ends, token + 1), *of_token)
        return cls(*(x if x.ndim == 1 else x[:, None] for x in tables))

    def at(self, table: Tensor, index: Tensor, axes: int) -> Tensor:
        """One of the tables at ``index``: see :func:`lookup`."""
        return lookup(table, index, axes=axes, shared=table.ndim == 1)

    def bounds(self, position: Tensor, axes: int) -> tuple[Tensor, Tensor]:
        """Where the first stretch of the document of each token begins and ends; both 0 for padding."""
        lead, real = self.at(self.lead, position, axes), self.at(self.count, position, axes) > 0
        first, stop = (self.at(table, lead, axes) * real for table in (self.first, self.stop))
        return first, stop


@dataclass(frozen=True, eq=False, repr=False)
class Documents(Pattern):
    """Query i sees key j when ids[i] == ids[j]: several documents packed into one row do not see each other.

    Args:
        ids: integers (batch, length), or (length,) for the same in every batch row; -1 is padding, which sees
            nothing and is seen by nothing. The tokens of a document need not be neighbours.

    The longest document and the most stretches that one lies in are counted when the object is made: on a GPU
    that waits for the device, once.

    Raises:
        ValueError: if ``ids`` is no integer tensor of one of these shapes, or holds an id below -1; later, if
            the queries or keys end after it.
    """

    ids: Tensor
    most: int = field(init=False, repr=False)
    longest: int = field(init=False, repr=False)
    tables: Tables = field(init=False, repr=False)

    def __post_init__(self) -> None:
        fits = isinstance(self.ids, Tensor) and not self.ids.is_floating_point() and self.ids.dtype != torch.bool
        shown = f"{self.ids.dtype} {tuple(self.ids.shape)}" if isinstance(self.ids, Tensor) else self.ids
        right = "an integer tensor (batch, length) or (length,)"
        require(fits and self.ids.ndim in (1, 2) and self.ids.numel() > 0, "ids", shown, right)
        tables = Tables.of(self.ids.long())
        most, longest, lowest = torch.stack([tables.count.max(), tables.tokens.max(), self.ids.min().long()]).tolist()
        require(lowest >= PADDING, "ids", lowest, f"0 or more, or {PADDING} for padding")
        for name, value in {
            "planes": (1, 1) if self.ids.ndim == 1 else (self.ids.shape[0], 1),
            "device": self.ids.device,
            "most": max(1, most),
            "longest": longest,
            "tables": tables,
        }.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_lengths(cls, lengths: list[list[int]], device: torch.device | str | None = None) -> Documents:
        """Documents of these lengths one after the other in each batch row, padded to the longest row.

        Raises:
            ValueError: if a length is no positive integer, or no row is given.

        >>> Documents.from_lengths([[2, 1], [1]]).ids.tolist()
        [[0, 0, 1], [0, -1, -1]]
        """
        fits = bool(lengths) and all(row and all(isinstance(n, int) and n > 0 for n in row) for row in lengths)
        require(fits, "lengths", lengths, "positive integers for each batch row")
        ids = torch.full((len(lengths), max(map(sum, lengths))), PADDING)
        for row, own in enumerate(lengths):
            ids[row, : sum(own)] = torch.repeat_interleave(torch.tensor(own))
        return cls(ids.to(device))

    def visible(self, query: Tensor, key: Tensor, end: int | Tensor) -> Tensor:
        """ids[i] == ids[j], and not padding."""
        mine, theirs = (self.tables.at(self.tables.ids, position, 2) for position in (query, key))
        return (mine == theirs) & (mine != PADDING)

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """The stretches of the query's document."""
        slot = torch.arange(self.most, device=query.device)
        lead, count = (self.tables.at(table, query, 1)[..., None] for table in (self.tables.lead, self.tables.count))
        index = (lead + slot).clamp(max=self.ids.shape[-1] - 1)
        first, stop = (self.tables.at(table, index, 2) for table in (self.tables.first, self.tables.stop))
        return Intervals.clipped(first, stop.where(slot < count, first), end)

    def check(self, q_end: int, end: int) -> None:
        """There must be an id for every token."""
        length, least = self.ids.shape[-1], max(q_end, end)
        require(length >= least, "ids length", length, f"at least {least}, one id a token")
