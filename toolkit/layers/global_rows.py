"""Global tokens with projections of their own, as Longformer has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.attention import GlobalTokens, KeyRanges, Pattern, attend_cached, attention_work
from toolkit.attention.cache import Segment
from toolkit.attention.intervals import FAR, joined
from toolkit.checks import require
from toolkit.work import Work


class WithGlobalRows(nn.Module):
    """Attention over a pattern in which the rows of global tokens have queries, keys and values of their own.

    A token that is not global sees what the pattern says with the ordinary projections, the global keys among
    it. A global token sees what the pattern says with these. Parameters: qkv_proj ((heads + 2 * kv_heads) *
    head_dim, dim), as in ``SelfAttention``.

    Args:
        pattern: with one ``GlobalTokens`` in it.
        dim: width of a token.
        heads, kv_heads, head_dim: as in ``SelfAttention``.
        finish: normalises and rotates queries (or keys) (batch, heads, length, head_dim), given their
            positions (length,), None for 0, 1, ..., and whether they are queries.

    Raises:
        ValueError: if the pattern holds no ``GlobalTokens`` or more than one.

    Source: Beltagy et al. 2020, Longformer (arXiv 2004.05150), section 3.1, "linear projections for global
    attention".
    """

    kind = "attention"

    def __init__(
        self,
        pattern: Pattern,
        dim: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        finish: Callable[[Tensor, Tensor | None, bool], Tensor],
    ) -> None:
        super().__init__()
        found = [leaf for leaf, positive in pattern.leaves() if isinstance(leaf, GlobalTokens) and positive]
        require(len(found) == 1, "pattern", pattern, "one with one GlobalTokens, when global_projections is set")
        self.pattern, self.tokens = pattern, found[0]
        self.heads, self.kv_heads, self.head_dim, self.finish = heads, kv_heads, head_dim, finish
        self.qkv_proj = nn.Parameter(torch.empty((heads + 2 * kv_heads) * head_dim, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with standard deviation fan_in ** -0.5."""
        nn.init.normal_(self.qkv_proj, std=self.qkv_proj.shape[1] ** -0.5)

    def forward(
        self, x: Tensor, q: Tensor, segments: tuple[Segment, ...], attend: Callable[..., Any], **settings: Any
    ) -> Tensor:
        """See :meth:`toolkit.layers.attending.OverPattern.forward`; x must be the whole sequence.

        Raises:
            ValueError: over a cache that holds earlier tokens: their global keys are not in it.
        """
        length = x.shape[1]
        earlier = segments[-1].stop - length
        require(earlier == 0, "cache", earlier, "empty: global rows see the whole sequence")
        local = attend_cached(attend, q, segments, self.pattern & ~self.tokens.queries, **settings)
        rows, present = self._rows(length, x.device)
        out = self._global(x, rows, present, attend, **settings)
        # The local part left the rows of global tokens at zero; an absent row adds zeros to row 0.
        index = rows[:, None, :, None].expand(x.shape[0], *out.shape[1:2], -1, out.shape[3])
        return local.scatter_add(2, index, out * present[:, None, :, None].to(out.dtype))

    def _rows(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Global positions (batch | 1, n), 0 where there are fewer, and whether there is one."""
        listed = self.tokens.listed(device)
        listed = (listed if listed.ndim == 1 else listed[:, 0]).reshape(-1, listed.shape[-1])
        present = listed < length
        return listed.where(present, 0), present

    def _global(self, x: Tensor, rows: Tensor, present: Tensor, attend: Callable[..., Any], **settings: Any) -> Tensor:
        """Attention of the global rows (batch, heads, n, head_dim), from their own projections."""
        of_queries = self.heads * self.head_dim
        tokens = x.gather(1, rows[..., None].expand(x.shape[0], -1, x.shape[2]))
        q = self._heads(F.linear(tokens, self.qkv_proj[:of_queries]))
        if rows.shape[0] == 1:
            q = self.finish(q, rows[0], True)
        else:  # positions differ by batch row
            q = torch.cat([self.finish(one[None], where, True) for one, where in zip(q, rows, strict=True)])
        k, v = self._heads(F.linear(x, self.qkv_proj[of_queries:])).chunk(2, dim=1)
        ranges = self._ranges(rows, present, x.shape[1])
        out: Tensor = attend(q, self.finish(k, None, False), v, ranges, q_start=0, **settings)
        return out

    def _ranges(self, rows: Tensor, present: Tensor, length: int) -> KeyRanges:
        """What the global rows (batch | 1, n) see of ``length`` keys, nothing where one is not present."""
        heads = range(self.pattern.planes[1])
        seen = joined([self.pattern.for_head(head).intervals(rows[:, None], length) for head in heads], dim=1)
        return KeyRanges(*(bound.masked_fill(~present[:, None, :, None], FAR) for bound in (seen.first, seen.stop)))

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h d) -> b h n d", d=self.head_dim)

    def work(self, seq_len: int) -> list[Work]:
        """The global projections, and the products over visible pairs of both kinds of rows."""
        rows, present = self._rows(seq_len, torch.device("cpu"))
        of_queries, of_keys = (self.qkv_proj.shape[1] * n * self.head_dim for n in (self.heads, 2 * self.kv_heads))
        ranges = self._ranges(rows, present, seq_len)
        return [
            Work.dense("attention", int(present.sum()) * of_queries + len(rows) * seq_len * of_keys),
            attention_work(self.pattern & ~self.tokens.queries, seq_len, self.heads, self.head_dim),
            attention_work(ranges, seq_len, self.heads, self.head_dim, q_len=rows.shape[1]),
        ]
