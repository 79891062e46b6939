"""Between parts of a sequence with all heads and whole sequences of some heads: Ulysses' all-to-all.

Source: Jacobs et al. 2023, DeepSpeed Ulysses (arXiv 2309.14509), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from einops import rearrange
from torch import Tensor
from torch.autograd import Function

from toolkit.attention import Pattern, PerHead
from toolkit.checks import require
from toolkit.parallel.context.layout import Layout


@dataclass(frozen=True, eq=False)
class HeadExchange:
    """Gives every rank the whole sequence of an equal share of heads, and takes it back.

    Rank r gets heads r * heads / ranks to (r + 1) * heads / ranks - 1, so that a query head stays with its key head.

    Attributes:
        group: the ranks.
        layout: which tokens of the sequence each holds.
    """

    group: dist.ProcessGroup
    layout: Layout

    def to_heads(self, x: Tensor) -> Tensor:
        """x (batch, heads, length / ranks, ...) -> (batch, heads / ranks, length, ...), tokens in order."""
        whole: Tensor = _ToHeads.apply(x, self)
        return whole

    def to_parts(self, x: Tensor) -> Tensor:
        """x (batch, heads / ranks, length, ...) -> (batch, heads, length / ranks, ...): the inverse."""
        part: Tensor = _ToParts.apply(x, self)
        return part

    def keys_to_heads(self, x: Tensor) -> Tensor:
        """Keys or values, as :meth:`to_heads`; of fewer heads than ranks, each goes to all whose queries it meets."""
        copies = self.copies(x.shape[1])
        if copies > 1:
            x = x[:, :, None].expand(-1, -1, copies, *x.shape[2:]).flatten(1, 2)
        return self.to_heads(x)

    def copies(self, kv_heads: int) -> int:
        """Ranks that need the same key head: 1 unless there are more ranks than key heads."""
        return max(1, self.group.size() // kv_heads)

    def check(self, heads: int, kv_heads: int) -> None:
        """Refuse heads that cannot be shared.

        Raises:
            ValueError: naming the heads and the arithmetic.
        """
        require_heads(heads, kv_heads, self.group.size())

    def own(self, per_head: Tensor | None) -> Tensor | None:
        """The share of this rank of (heads, ...), such as sink logits, where there are any; differentiable."""
        return None if per_head is None else per_head.chunk(self.group.size())[self.group.rank()]

    def pattern(self, pattern: Pattern) -> Pattern:
        """What this rank's heads see."""
        if pattern.planes[1] == 1:
            return pattern
        share = pattern.planes[1] // self.group.size()
        first = self.group.rank() * share
        return PerHead(pattern.for_head(head) for head in range(first, first + share))

    def _gathered(self, x: Tensor) -> Tensor:
        outgoing = rearrange(x, "b (r h) ... -> r b h ...", r=self.group.size()).contiguous()
        arrived = rearrange(self._swapped(outgoing), "r b h l ... -> b h (r l) ...")
        return arrived.index_select(2, self.layout.place(x.device))

    def _scattered(self, x: Tensor) -> Tensor:
        x = x.index_select(2, self.layout.held(x.device))
        outgoing = rearrange(x, "b h (r l) ... -> r b h l ...", r=self.group.size()).contiguous()
        return rearrange(self._swapped(outgoing), "r b h ... -> b (r h) ...").contiguous()

    def _swapped(self, outgoing: Tensor) -> Tensor:
        """Row r of ``outgoing`` goes to rank r, whose row for this rank comes to its place."""
        arrived = outgoing.new_empty(outgoing.shape)
        dist.all_to_all_single(arrived, outgoing, group=self.group)
        return arrived


def require_heads(heads: int, kv_heads: int, ranks: int) -> None:
    """Refuse heads that cannot be shared among so many ranks.

    Raises:
        ValueError: naming the heads and the arithmetic.
    """
    require(heads % ranks == 0, "heads", heads, f"a multiple of {ranks} ranks ({heads} / {ranks} is not whole)")
    fits = kv_heads % ranks == 0 or ranks % kv_heads == 0
    neither = f"{kv_heads} / {ranks} and {ranks} / {kv_heads} are not whole"
    right = f"a multiple of {ranks} ranks, or a divisor: each head is then sent to several ({neither})"
    require(fits, "kv_heads", kv_heads, right)


class _ToHeads(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: HeadExchange) -> Tensor:
        ctx.exchange = exchange
        return exchange._gathered(x)

    @staticmethod
    def backward(ctx: Any, d_whole: Tensor) -> tuple[Tensor, None]:
        return _ToParts.apply(d_whole, ctx.exchange), None


class _ToParts(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: HeadExchange) -> Tensor:
        ctx.exchange = exchange
        return exchange._scattered(x)

    @staticmethod
    def backward(ctx: Any, d_part: Tensor) -> tuple[Tensor, None]:
        return _ToHeads.apply(d_part, ctx.exchange), None
