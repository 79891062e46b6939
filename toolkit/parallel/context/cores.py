"""How an attention layer's queries meet keys when each rank holds a part of every sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from toolkit.attention import Documents, PerDocument
from toolkit.attention.cache import Segment
from toolkit.layers.attending import OverBranches, OverChosenBlocks, OverPattern
from toolkit.layers.native_sparse import NativeSparseBranches
from toolkit.parallel.context.heads import HeadExchange


class OverParts(OverPattern):
    """A fixed pattern, of the whole sequence, over this rank's part of it."""

    def forward(
        self,
        x: Tensor,
        q: Tensor,
        segments: tuple[Segment, ...],
        attend: Callable[..., Any],
        documents: Documents | None = None,
        **settings: Any,
    ) -> Tensor:
        """See :meth:`OverPattern.forward`; ``documents`` are of the whole sequence, ``attend`` knows the ranks.

        Without the pattern's tokens past the end of the whole sequence, where a cache's end would be the part's.
        """
        (part,) = segments
        pattern = self.pattern if documents is None else PerDocument(documents, self.pattern)
        length = q.shape[2] * attend.group.size()  # type: ignore[attr-defined]  # it is any callable
        out: Tensor = attend(q, part.k, part.v, pattern.until(length), **settings)
        return out


class ChosenOverHeads(OverChosenBlocks):
    """Mixture of block attention over whole sequences of this rank's share of heads."""

    def forward(
        self, x: Tensor, q: Tensor, segments: tuple[Segment, ...], attend: Callable[..., Any], **settings: Any
    ) -> Tensor:
        """See :meth:`OverPattern.forward`; ``attend`` is a :class:`UlyssesAttention`."""
        (part,) = segments
        exchange = _exchange(attend, q, part.k.shape[1])
        if "sink_logits" in settings:
            settings["sink_logits"] = exchange.own(settings["sink_logits"])
        keys, values = exchange.keys_to_heads(part.k), exchange.keys_to_heads(part.v)
        return exchange.to_parts(self.selection.attend(exchange.to_heads(q), keys, values, **settings))


class BranchesOverHeads(OverBranches):
    """Native sparse attention over whole sequences of this rank's share of heads; ``branches`` stay where they were."""

    def __init__(self, branches: NativeSparseBranches) -> None:
        nn.Module.__init__(self)
        self.branches = branches

    def forward(
        self, x: Tensor, q: Tensor, segments: tuple[Segment, ...], attend: Callable[..., Any], **settings: Any
    ) -> Tensor:
        """See :meth:`OverPattern.forward`; ``attend`` is a :class:`UlyssesAttention`.

        Query heads that choose blocks together stay together, as key heads are shared out whole.
        """
        (part,) = segments
        branches = self.branches
        exchange = _exchange(attend, q, branches.kv_heads)

        def of_branches(x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
            """One tensor for all branches, or one for each."""
            if x.shape[1] == branches.kv_heads:
                return exchange.to_heads(x)
            compressed, selected, window = (exchange.to_heads(one) for one in x.split(branches.kv_heads, dim=1))
            return compressed, selected, window

        gates, keys, values = exchange.to_heads(branches.gates(x)), of_branches(part.k), of_branches(part.v)
        compress = None if branches.compress_keys is None else self._compress
        out = branches.settings.attend(exchange.to_heads(q), keys, values, gates, compress=compress, **settings)
        return exchange.to_parts(out)

    def _compress(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        of_keys, of_values = self.branches.compress_keys, self.branches.compress_values
        assert of_keys is not None and of_values is not None
        return of_keys(keys), of_values(values)


def _exchange(attend: Any, q: Tensor, kv_heads: int) -> HeadExchange:
    exchange: HeadExchange = attend.exchange(q, kv_heads)
    return exchange
