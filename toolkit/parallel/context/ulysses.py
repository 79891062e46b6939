"""Attention of a shared sequence by sharing out heads: each rank attends over all tokens with some heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from toolkit.attention import Causal, Pattern, attention
from toolkit.checks import require
from toolkit.parallel.context.heads import HeadExchange
from toolkit.parallel.context.layout import Layout


@dataclass(frozen=True, eq=False)
class UlyssesAttention:
    """Attention over a sequence of which each rank of a group holds a part; takes the place of ``attention``.

    Two all-to-alls: queries, keys and values are given out by heads, outputs are taken back by tokens. Between them one
    rank sees whole sequences, so every pattern is evaluated as it is. Query heads must be a multiple of the ranks. Key
    heads too, or a divisor: then each is sent to all ranks whose queries it meets, as if keys were so many more.

    Attributes:
        group: the ranks, in the order of the layout.
        layout: ``"zigzag"`` or ``"contiguous"``; as every rank sees all tokens the balance is the same in both.

    Source: Jacobs et al. 2023, DeepSpeed Ulysses (arXiv 2309.14509), section 3.
    """

    group: dist.ProcessGroup
    layout: str = "zigzag"

    def exchange(self, local_length: int, heads: int, kv_heads: int) -> HeadExchange:
        """Who gets which heads.

        Raises:
            ValueError: if heads cannot be shared, or tokens do not fit the layout.
        """
        layout = Layout(self.layout, self.group.size(), local_length * self.group.size())
        exchange = HeadExchange(self.group, layout)
        exchange.check(heads, kv_heads)
        return exchange

    @torch.compiler.disable
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pattern: Pattern | None = None,
        *,
        sink_logits: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
        dropout_p: float = 0.0,
        return_lse: bool = False,
        q_start: int | None = None,
        kv_start: int = 0,
        **settings: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """This rank's part of the whole sequence's attention.

        Shapes: q (batch, heads, length, head_dim), k (batch, kv_heads, length, head_dim), v (batch, kv_heads, length,
        value_dim), of this rank's tokens -> out (batch, heads, length, value_dim) and, with ``return_lse``, lse (batch,
        heads, length). The rest as for :func:`toolkit.attention.attention`; ``Causal()`` by default.

        Raises:
            ValueError: if ``q_start`` or ``kv_start`` is given, heads cannot be shared, or with ``dropout_p``, which
                drops weights by their absolute head.
        """
        standing = q_start is None and kv_start == 0
        require(standing, "q_start and kv_start", (q_start, kv_start), "left out: the layout says where tokens stand")
        right = "0 with heads shared out: weights are dropped by head, and a rank's heads count from 0; use the ring"
        require(dropout_p == 0, "dropout_p", dropout_p, right)
        exchange = self.exchange(q.shape[2], q.shape[1], k.shape[1])
        shares = {"sink_logits": sink_logits, "alibi_slopes": alibi_slopes}
        settings |= {name: None if x is None else exchange.own(x) for name, x in shares.items()}
        keys, values = exchange.keys_to_heads(k), exchange.keys_to_heads(v)
        seen = exchange.pattern(Causal() if pattern is None else pattern)
        out, lse = attention(exchange.to_heads(q), keys, values, seen, return_lse=True, **settings)
        return (exchange.to_parts(out), exchange.to_parts(lse)) if return_lse else exchange.to_parts(out)

    def __deepcopy__(self, memo: dict[int, Any]) -> UlyssesAttention:
        """Itself: a copy of a model talks to the same ranks."""
        return self
