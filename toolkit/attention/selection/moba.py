"""Mixture of block attention: a query attends to its own block and to the earlier ones whose mean key it likes best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from toolkit.attention.cost import attention_work
from toolkit.attention.interface import attention
from toolkit.attention.patterns import Causal, Chunked
from toolkit.attention.selection.areas import earlier_blocks, own_and_chosen
from toolkit.attention.selection.routed import attend_blocks, by_chunks, choose, grouped, none_chosen
from toolkit.checks import require
from toolkit.work import Work


@dataclass(frozen=True)
class MoBA:
    """Settings of :func:`moba`, which attend by themselves: ``MoBA(block=512, top_k=3).attend(q, k, v)``.

    Attributes:
        block: keys in a block; blocks count from position 0.
        top_k: blocks that a query attends to, its own one counted.

    Raises:
        ValueError: if one is not a positive integer.
    """

    block: int
    top_k: int

    def __post_init__(self) -> None:
        for name in ("block", "top_k"):
            value = getattr(self, name)
            require(isinstance(value, int) and value > 0, name, value, "a positive integer")

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        softcap: float | None = None,
        sink_logits: Tensor | None = None,
        backend: str = "auto",
        attend: Callable[..., Any] = attention,
    ) -> Tensor:
        """See :func:`moba`; ``attend`` computes the parts and has the signature of ``attention``."""
        settings = {"scale": scale, "softcap": softcap, "backend": backend}
        own = Causal() & Chunked(self.block)
        nearby = attend(q, k, v, own, sink_logits=sink_logits, return_lse=True, **settings)
        chosen = self.choose(q, k)
        return attend_blocks(nearby, q, k, v, chosen, self.block, attend, **settings)[0]

    def choose(self, q: Tensor, k: Tensor) -> Tensor:
        """The earlier blocks that each query attends to.

        Shapes: q (batch, heads, q_len, head_dim), k (batch, kv_heads, kv_len, head_dim) -> int64 (batch *
        kv_heads, group, q_len, slots), -1 for none; slots is top_k - 1, or fewer if there are fewer blocks.
        """
        q_len, kv_len = q.shape[2], k.shape[2]
        earlier = (kv_len - 1) // self.block  # blocks before the last query's own; all of them whole
        slots = min(self.top_k - 1, earlier)
        compute = torch.promote_types(q.dtype, torch.float32)
        q, k = q.detach(), k.detach()
        queries = grouped(q, k.shape[1])
        if slots == 0:
            return none_chosen(queries)
        means = k[:, :, : earlier * self.block].to(compute).unflatten(2, (earlier, self.block)).mean(dim=3)
        means = means.flatten(0, 1)[:, None].transpose(-1, -2)
        own = torch.arange(kv_len - q_len, kv_len, device=q.device) // self.block
        block = torch.arange(earlier, device=q.device)

        def chosen(first: int, stop: int) -> Tensor:
            known = (kv_len - q_len + stop - 1) // self.block  # blocks before the own one of the last query
            with torch.autocast(q.device.type, enabled=False):
                gates = queries[:, :, first:stop].to(compute) @ means[..., :known]
            return choose(gates, block[:known] < own[first:stop, None], slots)

        return by_chunks(chosen, q_len, earlier * queries.shape[0] * queries.shape[1])

    def area(self, length: int) -> int:
        """Visible pairs of one head over a sequence of ``length``, whatever is chosen."""
        return own_and_chosen(length, self.block, self.top_k)

    def work(self, seq_len: int, heads: int, head_dim: int, value_dim: int | None = None) -> list[Work]:
        """Multiply-adds of the products over visible pairs, and of the gates (which have no backward pass).

        ``computed`` takes the chosen blocks for whole tiles: where rows of two blocks share one, more is run.
        """
        per_pair = heads * (head_dim + (value_dim or head_dim))
        own = attention_work(Causal() & Chunked(self.block), seq_len, heads, head_dim, value_dim)
        needed = per_pair * self.area(seq_len)
        pairs = replace(own, needed=needed, computed=own.computed + needed - own.needed)
        gates = heads * head_dim * earlier_blocks(seq_len, self.block)
        square = heads * head_dim * seq_len * -(-seq_len // self.block)
        return [pairs, Work("selection", gates, square, gates, computed_backward=0.0, backward=0.0)]


def moba(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block: int,
    top_k: int,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Causal attention in which each query head attends to ``top_k`` blocks of keys.

    Shapes: q (batch, heads, q_len, head_dim); k (batch, kv_heads, kv_len, head_dim); v (batch, kv_heads,
    kv_len, value_dim) -> out (batch, heads, q_len, value_dim). Queries are the last q_len positions, keys all
    of them from position 0.

    Query i of head h sees key j when j <= i and j's block is i's own, or one of the top_k - 1 blocks b before
    it with the highest gate q_hi . mean(keys of b), in fp32 at least and unscaled; the own block counts among
    the top_k, so top_k = 1 is ``Causal() & Chunked(block)``, and with as many as there are blocks it is
    ``Causal()``. The last block, if it is not whole, is only ever a query's own. With grouped queries each
    query head chooses for itself, by the means of its key head. The gates get no gradient: selection is a
    constant. Which of equal gates wins is not defined.

    Time and memory grow with q_len * top_k, and the gates with q_len * kv_len / block, a chunk of queries at
    a time.

    Args:
        q, k, v: queries, keys and values.
        block: keys in a block.
        top_k: blocks for each query, its own one included.
        scale, softcap, sink_logits, backend: as for :func:`toolkit.attention.attention`. The gates are
            neither scaled nor capped.

    Raises:
        ValueError: if ``block`` or ``top_k`` is not a positive integer, or what ``attention`` refuses.

    Source: Lu et al. 2025, MoBA: Mixture of Block Attention for Long-Context LLMs (arXiv 2502.13189), section 2.2.

    >>> q, k = torch.randn(1, 4, 100, 16), torch.randn(1, 2, 100, 16)
    >>> moba(q, k, k, block=16, top_k=3).shape
    torch.Size([1, 4, 100, 16])
    """
    return MoBA(block, top_k).attend(q, k, v, scale=scale, softcap=softcap, sink_logits=sink_logits, backend=backend)
