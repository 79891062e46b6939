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
from typing import Any

import torch
from torch import Tensor

from toolkit.attention import Pattern, add_sink, merge
from toolkit.attention.operator import attention_backward_operator, attention_operator
from toolkit.attention.scoring import Scoring
from toolkit.checks import refuse_double_backward, require_choice
from toolkit.parallel.context.attend import PartAttention
from toolkit.parallel.context.rounds import Returns, Round
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


class RingFunction(torch.autograd.Function):
    """Attention of this rank's queries over everyone's keys. Sums run in the order of steps: the same bits again."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sink_logits: Tensor | None,
        slopes: Tensor | None,
        seed: Tensor | None,
        ring: Round,
    ) -> tuple[Tensor, Tensor]:
        """Shapes as for ``attention`` -> out in q's dtype and lse, sink included, in fp32 (fp64 for fp64)."""
        exact = torch.promote_types(q.dtype, torch.float32)
        out = q.new_zeros(*q.shape[:3], v.shape[3], dtype=exact)
        lse = q.new_full(q.shape[:3], -torch.inf, dtype=exact)
        for step, parts in ring.visits(ring.chunks(k, v)):
            for block in step.blocks:
                keys, values = parts[step.received.index(block.keys)]
                queries, *sofar = (ring.chunk(x, block.queries) for x in (q, out, lse))
                found = attention_operator(queries, keys, values, None, slopes, seed, *ring.settings(block))
                joined = merge((sofar[0], found[0]), (sofar[1], found[1]))  # in the first's dtype, the exact one
                for whole, fresh in zip(sofar, joined, strict=True):
                    whole.copy_(fresh)
        if sink_logits is not None:
            out, lse = add_sink(out, lse, sink_logits)
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse, sink_logits, slopes, seed)
        ctx.ring = ring
        return out, lse

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Any, ...]:
        """Each block's gradients from the whole's log-sum-exp; keys come round again, their gradients go home."""
        refuse_double_backward("ring attention")
        q, k, v, out, lse, sink_logits, slopes, seed = ctx.saved_tensors
        ring: Round = ctx.ring
        dq, dk, dv = (torch.zeros_like(x, dtype=lse.dtype) for x in (q, k, v))
        own = ring.chunks(k, v)
        returns = Returns(ring.group, own, ring.chunks(dk, dv))
        for number, (step, parts) in enumerate(ring.visits(own)):
            gradients = [(torch.zeros_like(x, dtype=lse.dtype), torch.zeros_like(y, dtype=lse.dtype)) for x, y in parts]
            for block in step.blocks:
                place = step.received.index(block.keys)
                d_rows, d_lses, rows, *done = (ring.chunk(x, block.queries) for x in (d_out, d_lse, q, out, lse))
                given = d_rows, d_lses, rows, *parts[place], *done, None, slopes, seed, *ring.settings(block)
                d_queries, *d_keys, _ = attention_backward_operator(*given)
                ring.chunk(dq, block.queries).add_(d_queries)
                for total, fresh in zip(gradients[place], d_keys, strict=True):
                    total.add_(fresh)
            returns.start(number, step, gradients)
        returns.collect()
        d_sink = None if sink_logits is None else _d_sink(d_out, d_lse, out, lse, sink_logits)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), d_sink, None, None, None


def _d_sink(d_out: Tensor, d_lse: Tensor, out: Tensor, lse: Tensor, sink_logits: Tensor) -> Tensor:
    """(heads,), of this rank's queries: a sink has no value, so its dP is 0 and its dS = -P (rowsum(dO * O) - dLSE)."""
    shift = (d_out.to(lse.dtype) * out.to(lse.dtype)).sum(dim=-1) - d_lse
    weight = torch.exp(sink_logits.to(lse.dtype)[:, None] - lse)
    return -(weight * shift).sum(dim=(0, 2)).to(sink_logits.dtype)
