"""The backward pass: each block's weights are computed again from the final log-sum-exp.

Source: Dao et al. 2022 (arXiv 2205.14135), algorithm 4. The log-sum-exp is an output like any other:
dS = P (dP - D) with D = rowsum(dO * O) - dLSE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.attention.blockwise.blocks import Block, Chunk
from toolkit.attention.blockwise.forward import in_turn, once
from toolkit.attention.blockwise.scores import LN_2, Precision, Scorer, Scratch
from toolkit.attention.blockwise.shares import Share, Sizes
from toolkit.attention.plan import Pass
from toolkit.attention.scoring import Scoring


@torch.no_grad()
def backward(
    d_out: Tensor,
    d_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    passes: Sequence[Pass],
    scoring: Scoring,
    q_start: int,
    kv_start: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """:func:`toolkit.attention.blockwise.backward` block by block: dq, dk, dv, d_sink, each shaped as its input."""
    precision = Precision.of(q.dtype)
    query = torch.arange(q_start, q_start + q.shape[2])
    scratch = Scratch(precision)
    dq = q.new_zeros(q.shape, dtype=q.dtype if once(passes) else precision.compute)
    dk, dv = (x.new_zeros(x.shape, dtype=precision.compute) for x in (k, v))
    with torch.autocast("cpu", enabled=False):
        for share, fresh in in_turn(passes, Sizes.of(q, k)):
            scorer = Scorer(scoring, share, query, share.columns() + kv_start, scratch)
            work = _Work(scorer, share.keys(k), share.keys(v), *_accumulators(share, dk, dv))
            rows = [share.queries(x) for x in (q, d_out, out, lse[..., None], d_lse[..., None])]
            dqs = share.queries(dq)
            for block in share.blocks():
                found = scorer.by_head(work.add(block, *(scorer.queries(x, block) for x in rows)), block)
                dqs[..., block.rows, :] = (found if fresh else dqs[..., block.rows, :] + found).to(dqs.dtype)
            if share.part.columns is not None:
                share.add_to_keys(work.dk, dk)
                share.add_to_keys(work.dv, dv)
        dk.mul_(scoring.scale)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), _d_sink(d_out, d_lse, out, lse, scoring)


def _accumulators(share: Share, dk: Tensor, dv: Tensor) -> tuple[Tensor, Tensor]:
    """Where the share adds its gradients, (batch * kv, n_columns, d): in place unless the pass reorders columns."""
    if share.part.columns is None:
        return dk[share.batch, share.kv].view(-1, *dk.shape[2:]), dv[share.batch, share.kv].view(-1, *dv.shape[2:])
    lead = share.lead[0] * share.lead[1], share.part.n_columns
    return dk.new_zeros(*lead, dk.shape[3]), dv.new_zeros(*lead, dv.shape[3])


@dataclass(frozen=True, eq=False)
class _Work:
    """Keys and values (batch, kv, n_columns, d) of a share, and the sums of their gradients (batch * kv, ...)."""

    scorer: Scorer
    keys: Tensor
    values: Tensor
    dk: Tensor
    dv: Tensor

    def add(self, block: Block, q: Tensor, d_out: Tensor, out: Tensor, lse: Tensor, d_lse: Tensor) -> Tensor:
        """Adds the block to dk and dv; returns its dq. All (batch * kv, group * rows, ...)."""
        scratch, operand = self.scorer.scratch, self.scorer.scratch.precision.operand
        shift = (d_out * out).sum(dim=-1, keepdim=True).sub_(d_lse)
        scaled, lse = q * self.scorer.factor, lse / LN_2
        right_q, right_d_out = q.to(operand), d_out.to(operand)
        dq = torch.zeros_like(q)
        for chunk in block.chunks:
            weights, d_scores = self._d_scores(block, chunk, scaled, d_out, lse, shift)
            weights, d_scores = scratch.operand("operand", weights), scratch.operand("d_operand", d_scores)
            dq += torch.bmm(d_scores, self.scorer.columns(self.keys, chunk, operand))
            start = 0
            for segment in chunk.segments:
                part = slice(start, start + segment.stop - segment.start)
                self._accumulate(self.dv[:, segment], weights[..., part], right_d_out)
                self._accumulate(self.dk[:, segment], d_scores[..., part], right_q)
                start = part.stop
        return dq.mul_(self.scorer.scoring.scale)

    def _accumulate(self, target: Tensor, x: Tensor, y: Tensor) -> None:
        """Adds x' y to target (n, columns, d): x (n, rows, columns), y (n, rows, d)."""
        target.add_(torch.bmm(x.mT, y, out=self.scorer.scratch("product", *target.shape, dtype=x.dtype)))

    def _d_scores(
        self, block: Block, chunk: Chunk, scaled: Tensor, d_out: Tensor, lse: Tensor, shift: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weights after dropout, and gradients of the scaled products: (batch * kv, group * rows, columns)."""
        scorer = self.scorer
        keys = scorer.columns(self.keys, chunk)
        weights = scorer.scores(scaled, keys, block, chunk, keep_tanh=True).sub_(lse).exp2_()
        values = scorer.columns(self.values, chunk)
        d_weights = torch.bmm(d_out, values.mT, out=scorer.scratch("d_weights", *weights.shape))
        kept = scorer.kept(block, chunk)
        if kept is not None:
            d_weights.mul_(kept)
        d_scores = d_weights.sub_(shift).mul_(weights)
        if kept is not None:
            weights.mul_(kept)
        if scorer.scoring.softcap:
            tanh = scorer.scratch("tanh", *weights.shape)
            d_scores.addcmul_(d_scores * tanh, tanh, value=-1.0)
        return weights, d_scores


def _d_sink(d_out: Tensor, d_lse: Tensor, out: Tensor, lse: Tensor, scoring: Scoring) -> Tensor | None:
    """(heads,): a sink has no value, so its dP is 0 and its dS = -P D."""
    if scoring.sink_logits is None:
        return None
    shift = (d_out.to(lse.dtype) * out.to(lse.dtype)).sum(dim=-1) - d_lse
    weight = torch.exp(scoring.sink_logits.to(lse.dtype)[:, None] - lse)
    return -(weight * shift).sum(dim=(0, 2)).to(scoring.sink_logits.dtype)
