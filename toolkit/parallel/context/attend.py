"""What stands in attention's place where each rank of a group holds a part of every sequence, however it is shared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from toolkit.attention import Pattern
from toolkit.attention.inputs import check_inputs
from toolkit.attention.interface import CAUSAL
from toolkit.attention.scoring import Scoring
from toolkit.checks import require
from toolkit.parallel.context.layout import Layout
from toolkit.parallel.seeds import shared_seed

Self = TypeVar("Self", bound="PartAttention")


@dataclass(frozen=True, eq=False)
class PartAttention(ABC):
    """Attention over a sequence of which each rank of a group holds a part; takes the place of ``attention``.

    Called with this rank's queries, keys and values it gives this rank's outputs: what one process would give for the
    same tokens, forward and backward.

    Attributes:
        group: the ranks, in the order of the layout.
        layout: ``"zigzag"`` or ``"contiguous"``, see :class:`Layout`.
    """

    group: dist.ProcessGroup
    layout: str = "zigzag"

    @torch.compiler.disable
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pattern: Pattern = CAUSAL,
        *,
        scale: float | None = None,
        softcap: float | None = None,
        sink_logits: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
        dropout_p: float = 0.0,
        dropout_seed: Tensor | None = None,
        first_head: int = 0,
        return_lse: bool = False,
        q_start: int | None = None,
        kv_start: int = 0,
        backend: str = "auto",
    ) -> Tensor | tuple[Tensor, Tensor]:
        """This rank's part of the whole sequence's attention.

        Shapes: q (batch, heads, length, head_dim), k (batch, kv_heads, length, head_dim), v (batch, kv_heads, length,
        value_dim), of this rank's tokens -> out (batch, heads, length, value_dim) and, with ``return_lse``, lse (batch,
        heads, length). The rest as for :func:`toolkit.attention.attention`; the pattern is the whole sequence's. With
        ``dropout_p`` the first rank's seed, given or drawn, is everyone's, so that the weights dropped are those that
        one process would drop.

        Raises:
            ValueError: if ``q_start`` or ``kv_start`` is given, the parts do not fit the layout or cannot be attended
                to in this way, or what ``attention`` refuses.
        """
        standing = q_start is None and kv_start == 0
        require(standing, "q_start and kv_start", (q_start, kv_start), "left out: the layout says where tokens stand")
        check_inputs(
            q,
            k,
            v,
            pattern,
            softcap=softcap,
            sink_logits=sink_logits,
            alibi_slopes=alibi_slopes,
            dropout_p=dropout_p,
            dropout_seed=dropout_seed,
            first_head=first_head,
        )
        require(k.shape[2] == q.shape[2], "k length", k.shape[2], f"q's, {q.shape[2]}: of the same tokens")
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        slopes = None if alibi_slopes is None else alibi_slopes.float()
        scoring = Scoring(scale, softcap or 0.0, slopes, sink_logits, dropout_p, dropout_seed, first_head)
        out, lse = self.attend(q, k, v, pattern, scoring, backend, return_lse)
        return out if lse is None else (out, lse)

    @abstractmethod
    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, scoring: Scoring, backend: str, return_lse: bool
    ) -> tuple[Tensor, Tensor | None]:
        """out and, if asked for, lse of this rank's part; the scoring's seed is not yet shared."""

    def whole(self, q: Tensor) -> Layout:
        """The layout of the sequences of which q (batch, heads, length, ...) is this rank's part.

        Raises:
            ValueError: if the tokens cannot be shared so.
        """
        return Layout(self.layout, self.group.size(), q.shape[2] * self.group.size())

    def seed(self, q: Tensor, scoring: Scoring) -> Tensor | None:
        """The first rank's seed, on every rank; None without dropout."""
        return shared_seed(q.device, self.group, scoring.seed) if scoring.dropout_p else None

    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        """Itself: a copy of a model talks to the same ranks."""
        return self
