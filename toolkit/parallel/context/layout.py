"""Which tokens of a sequence each rank holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from toolkit.checks import require, require_choice, require_positive

LAYOUTS = ("zigzag", "contiguous")


class Chunk(NamedTuple):
    """Neighbouring positions ``start`` to ``stop - 1``."""

    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """A sequence of ``length`` tokens cut into chunks of one size, shared out among ``ranks`` ranks.

    ``"contiguous"``: rank r holds chunk r of n, so that a window reaches few ranks. ``"zigzag"``: rank r holds chunks
    r and 2n - 1 - r of 2n, an early one and a late one. Under ``Causal()`` the C queries of chunk c see c C^2 + C (C +
    1) / 2 pairs, so every rank has the same (2n - 1) C^2 + C (C + 1); for any pattern
    :func:`toolkit.parallel.context.visible_pairs` counts them.

    Attributes:
        kind: ``"zigzag"`` or ``"contiguous"``.
        ranks: how many ranks share a sequence.
        length: tokens of the whole sequence.

    Raises:
        ValueError: if ``kind`` is unknown, a number not positive, or the tokens cannot be shared evenly.

    Source: zigzag is the load-balanced split of Llama 3's context parallelism (arXiv 2407.21783, section 3.3.2).

    >>> Layout("zigzag", ranks=2, length=8).chunks(0)
    (Chunk(start=0, stop=2), Chunk(start=6, stop=8))
    """

    kind: str
    ranks: int
    length: int

    def __post_init__(self) -> None:
        require_choice("layout", self.kind, LAYOUTS)
        require_positive(ranks=self.ranks, length=self.length)
        parts = self.ranks * self.chunks_per_rank
        right = f"a multiple of {parts}: {self.ranks} ranks of {self.chunks_per_rank} chunks in the {self.kind} layout"
        require(self.length % parts == 0, "length", self.length, right)

    @property
    def chunks_per_rank(self) -> int:
        """Chunks that each rank holds."""
        return 2 if self.kind == "zigzag" else 1

    @property
    def chunk_length(self) -> int:
        """Tokens of a chunk."""
        return self.local_length // self.chunks_per_rank

    @property
    def local_length(self) -> int:
        """Tokens that each rank holds."""
        return self.length // self.ranks

    def chunks(self, rank: int) -> tuple[Chunk, ...]:
        """Those of ``rank``, in the order in which it holds them, which is that of positions."""
        places = (rank, 2 * self.ranks - 1 - rank) if self.kind == "zigzag" else (rank,)
        return tuple(Chunk(place * self.chunk_length, (place + 1) * self.chunk_length) for place in places)

    def positions(self, rank: int, device: torch.device | str | None = None) -> Tensor:
        """Where the tokens of ``rank`` stand in the sequence: int64 (local_length,)."""
        return torch.cat([torch.arange(start, stop, device=device) for start, stop in self.chunks(rank)])

    def held(self, device: torch.device | str | None = None) -> Tensor:
        """The position of every token, rank after rank: int64 (length,)."""
        return torch.cat([self.positions(rank, device) for rank in range(self.ranks)])

    def place(self, device: torch.device | str | None = None) -> Tensor:
        """The inverse of :meth:`held`: where each position is found, ranks laid one after another: int64 (length,)."""
        return self.held(device).argsort()
