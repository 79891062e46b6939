"""Attention of a shared sequence by sharing out heads: each rank attends over all tokens with some heads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from toolkit.attention import Pattern, attention
from toolkit.attention.scoring import Scoring
from toolkit.parallel.context.attend import PartAttention
from toolkit.parallel.context.heads import HeadExchange


@dataclass(frozen=True, eq=False)
class UlyssesAttention(PartAttention):
    """Attention over a sequence of which each rank of a group holds a part; takes the place of ``attention``.

    Two all-to-alls: queries, keys and values are given out by heads, outputs are taken back by tokens. Between them one
    rank sees whole sequences, so every pattern is evaluated as it is. Query heads must be a multiple of the ranks. Key
    heads too, or a divisor: then each is sent to all ranks whose queries it meets, as if keys were so many more.

    Attributes:
        group: the ranks, in the order of the layout.
        layout: ``"zigzag"`` or ``"contiguous"``; as every rank sees all tokens the balance is the same in both.

    Source: Jacobs et al. 2023, DeepSpeed Ulysses (arXiv 2309.14509), section 3.
    """

    def exchange(self, q: Tensor, kv_heads: int) -> HeadExchange:
        """Who gets which of the heads of q (batch, heads, length, ...) and of its keys.

        Raises:
            ValueError: if heads cannot be shared, or tokens do not fit the layout.
        """
        exchange = HeadExchange(self.group, self.whole(q))
        exchange.check(q.shape[1], kv_heads)
        return exchange

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, scoring: Scoring, backend: str, return_lse: bool
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`PartAttention.attend`; refuses heads that cannot be shared."""
        exchange = self.exchange(q, k.shape[1])
        own_first = self.group.rank() * (q.shape[1] // self.group.size())
        out, lse = attention(
            exchange.to_heads(q),
            exchange.keys_to_heads(k),
            exchange.keys_to_heads(v),
            exchange.pattern(pattern),
            scale=scoring.scale,
            softcap=scoring.softcap,
            sink_logits=exchange.own(scoring.sink_logits),
            alibi_slopes=exchange.own(scoring.alibi_slopes),
            dropout_p=scoring.dropout_p,
            dropout_seed=self.seed(q, scoring),
            first_head=scoring.first_head + own_first,
            return_lse=True,
            backend=backend,
        )
        return exchange.to_parts(out), exchange.to_parts(lse) if return_lse else None
