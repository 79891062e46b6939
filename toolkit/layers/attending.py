"""How projected queries meet keys: over a pattern, or over blocks chosen by content."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from toolkit.attention import Documents, Pattern, PerDocument, attend_cached, attention_work
from toolkit.attention.cache import Segment
from toolkit.attention.selection import MoBA, NativeSparse
from toolkit.checks import require
from toolkit.layers.native_sparse import NativeSparseBranches
from toolkit.work import Work

Sparsity = Pattern | MoBA | NativeSparse
"""What may be given as an attention's pattern."""


class OverPattern(nn.Module):
    """Attention over a fixed pattern."""

    def __init__(self, pattern: Pattern, heads: int, head_dim: int) -> None:
        super().__init__()
        self.pattern, self.heads, self.head_dim = pattern, heads, head_dim

    def forward(
        self,
        x: Tensor,
        q: Tensor,
        segments: tuple[Segment, ...],
        attend: Callable[..., Any],
        documents: Documents | None = None,
        **settings: Any,
    ) -> Tensor:
        """Attend from the newest tokens to what is held.

        Shapes: x (batch, new, dim), the tokens; q (batch, heads, new, head_dim), their queries; segments of k
        and v (batch, kv_heads, length, head_dim), the last of which ends with them -> (batch, heads, new,
        head_dim). With ``documents`` each sees its own only, as the pattern sees it alone.
        """
        pattern = self.pattern if documents is None else PerDocument(documents, self.pattern)
        return attend_cached(attend, q, segments, pattern, **settings)

    def work(self, seq_len: int) -> list[Work]:
        """The products over visible pairs."""
        return [attention_work(self.pattern, seq_len, self.heads, self.head_dim)]


class OverChosenBlocks(nn.Module):
    """Mixture of block attention."""

    def __init__(self, selection: MoBA, heads: int, head_dim: int) -> None:
        super().__init__()
        self.selection, self.heads, self.head_dim = selection, heads, head_dim

    def forward(
        self, x: Tensor, q: Tensor, segments: tuple[Segment, ...], attend: Callable[..., Any], **settings: Any
    ) -> Tensor:
        """See :meth:`OverPattern.forward`."""
        held = everything(segments, self.selection)
        out: Tensor = self.selection.attend(q, held.k, held.v, attend=attend, **settings)
        return out

    def work(self, seq_len: int) -> list[Work]:
        """The products over visible pairs, and the gates."""
        return self.selection.work(seq_len, self.heads, self.head_dim)


class OverBranches(nn.Module):
    """Native sparse attention."""

    def __init__(self, selection: NativeSparse, dim: int, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.branches = NativeSparseBranches(selection, dim, heads, kv_heads, head_dim)

    def forward(
        self, x: Tensor, q: Tensor, segments: tuple[Segment, ...], attend: Callable[..., Any], **settings: Any
    ) -> Tensor:
        """See :meth:`OverPattern.forward`."""
        held = everything(segments, self.branches.settings)
        out: Tensor = self.branches(x, q, held.k, held.v, attend=attend, **settings)
        return out

    def work(self, seq_len: int) -> list[Work]:
        """Gates, compression, and the products of the branches."""
        return self.branches.work(seq_len)


def everything(segments: tuple[Segment, ...], why: object) -> Segment:
    """The one segment that holds every position.

    Raises:
        ValueError: if positions have been forgotten.
    """
    whole = len(segments) == 1 and segments[0].start == 0
    held = [(one.start, one.stop) for one in segments]
    require(whole, "cache", held, f"a KeyValueCache: {why} chooses among all keys")
    return segments[0]
