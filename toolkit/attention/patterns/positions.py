"""Sets of token positions: listed, or marked in a mask for each batch row."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from toolkit.attention.intervals import FAR, on_host
from toolkit.attention.patterns.lookup import lookup
from toolkit.checks import require


class Tokens(Protocol):
    """A set of token positions, the same for all batch rows or one for each."""

    @property
    def batch(self) -> int:
        """Batch rows it differs by; 1 when it is the same for all."""

    @property
    def device(self) -> torch.device | None:
        """Where its tensor is, if it holds one."""

    def holds(self, position: Tensor) -> Tensor:
        """Whether each position (..., rows, columns) is one of them; leading (batch, 1) axes if it differs."""

    def listed(self, device: torch.device | None) -> Tensor:
        """The positions, ascending: (count,) int64, or (batch, 1, count) filled up with ``FAR``."""

    def check(self, q_end: int, end: int) -> None:
        """Refuse queries up to ``q_end`` and keys up to ``end`` that it says nothing of."""

    def written(self, tensor: Callable[[Tensor], str]) -> str:
        """As an argument of :class:`GlobalTokens`."""


@dataclass(frozen=True)
class Positions:
    """The same positions for every batch row, ascending."""

    values: tuple[int, ...]
    batch: int = field(default=1, init=False)
    device: torch.device | None = field(default=None, init=False)

    @classmethod
    def of(cls, positions: Any) -> Positions:
        """Any integers of 0 or more, in any order."""
        require(isinstance(positions, Iterable), "positions", positions, "integers of 0 or more")
        values = tuple(positions)
        fits = all(isinstance(position, int) and 0 <= position < FAR for position in values)
        require(fits and bool(values), "positions", values, "integers of 0 or more, at least one")
        return cls(tuple(sorted(set(values))))

    def holds(self, position: Tensor) -> Tensor:
        """By looking them up."""
        listed = self.listed(position.device)
        place = torch.searchsorted(listed, position).clamp(max=len(self.values) - 1)
        return listed[place] == position

    def listed(self, device: torch.device | None) -> Tensor:
        """(count,) int64."""
        return torch.tensor(self.values, dtype=torch.int64, device=device)

    def check(self, q_end: int, end: int) -> None:
        """Every position must be one of a token."""
        last = max(q_end, end)
        require(self.values[-1] < last, "positions", self.values[-1], f"below the number of tokens, {last}")

    def written(self, tensor: Callable[[Tensor], str]) -> str:
        """``positions=[1, 2]``."""
        return f"positions={list(self.values)}"


@dataclass(frozen=True, eq=False)
class Marks:
    """Positions marked in a mask, bool (batch, length)."""

    mask: Tensor

    @classmethod
    def of(cls, mask: Any) -> Marks:
        """A bool matrix."""
        fits = isinstance(mask, Tensor) and mask.ndim == 2 and mask.dtype == torch.bool and mask.numel() > 0
        shown = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else mask
        require(fits, "mask", shown, "a bool tensor (batch, length)")
        return cls(mask)

    @property
    def batch(self) -> int:
        """The mask's."""
        return self.mask.shape[0]

    @property
    def device(self) -> torch.device | None:
        """The mask's."""
        return self.mask.device

    def holds(self, position: Tensor) -> Tensor:
        """(batch, 1, rows, columns)."""
        return lookup(self.mask[:, None], position, axes=2, shared=False)

    def listed(self, device: torch.device | None) -> Tensor:
        """(batch, 1, count): as many as the fullest row on the CPU, the whole length on a GPU (no waiting)."""
        position = torch.arange(self.mask.shape[1], device=self.mask.device)
        marked = position.where(self.mask, FAR).sort(dim=-1).values
        if on_host(self.mask):
            marked = marked[:, : max(1, int(self.mask.sum(dim=-1).max()))]
        return marked[:, None]

    def check(self, q_end: int, end: int) -> None:
        """There must be a mark for every token."""
        length, least = self.mask.shape[1], max(q_end, end)
        require(length >= least, "mask length", length, f"at least {least}, one mark a token")

    def written(self, tensor: Callable[[Tensor], str]) -> str:
        """``mask=...``."""
        return f"mask={tensor(self.mask)}"
