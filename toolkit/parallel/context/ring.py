"""Ring attention: queries stay, keys and values go round, and parts are merged by their log-sum-exp.

In step s every rank gives its keys and values to the rank s places on and gets those of the rank s places back: after
n - 1 steps all have met. They go straight from their owner, not from hand to hand, so that chunks which a pattern does
not show to a rank are never sent to it, and their gradients go straight back. What each rank sends is the same, (n - 1)
parts for a full pattern; where the links themselves form a ring a message of step s crosses s of them. The next step's
messages are on their way while the present one is computed.

Source: Liu et al. 2023, Ring Attention (arXiv 2310.01889), algorithm 1; merging and the backward pass of a part from
the whole's log-sum-exp: Dao et al. 2022 (arXiv 2205.14135), section 3.1 and algorithm 4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from toolkit.attention import Pattern
from toolkit.attention.scoring import Scoring
from toolkit.checks import require_choice
from toolkit.parallel.context.attend import PartAttention
from toolkit.parallel.context.ring_function import RingFunction
from toolkit.parallel.context.rounds import Round
from toolkit.parallel.context.schedule import schedule


@dataclass(frozen=True, eq=False)
class RingAttention(PartAttention):
    """Attention over a sequence of which each rank of a group holds a part; takes the place of ``attention``.

    It takes any pattern of positions, written for the whole sequence; tensors in it (documents, masks) are of the whole
    sequence on every rank. Backends are ``"triton"`` and ``"blockwise"``, ``"auto"`` picks.

    Memory: a rank holds its own part and two others' keys and values; backward sends them round again, and once more
    where the layer is computed again there (activation checkpointing, of either policy).

    Attributes:
        group: the ranks, in the order of the layout.
        layout: ``"zigzag"`` or ``"contiguous"``, see :class:`Layout`.
    """

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, scoring: Scoring, backend: str, return_lse: bool
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`PartAttention.attend`; refuses a pattern that cannot be evaluated on parts."""
        require_choice("backend", backend, ("auto", "triton", "blockwise"))
        backend = ("triton" if q.is_cuda else "blockwise") if backend == "auto" else backend
        layout = self.whole(q)
        steps = schedule(pattern, layout, self.group.rank())
        tensors = scoring.sink_logits, scoring.alibi_slopes, self.seed(q, scoring)
        numbers = replace(scoring, sink_logits=None, alibi_slopes=None, seed=None)
        ring = Round(self.group, steps, layout.chunk_length, numbers, backend)
        out, lse = RingFunction.apply(q, k, v, *tensors, ring)
        return out, lse if return_lse else None
