"""The forward pass, block by block, with a softmax that goes on where an earlier chunk or pass left it.

Source: Dao et al. 2022 (arXiv 2205.14135), algorithm 2; merging by log-sum-exp: Milakov and Gimelshein 2018
(arXiv 1805.02867).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from toolkit.attention.blockwise.blocks import Block, Chunk
from toolkit.attention.blockwise.scores import LN_2, Precision, Scorer, Scratch
from toolkit.attention.blockwise.shares import Share, Sizes, shares
from toolkit.attention.plan import Pass
from toolkit.attention.scoring import Scoring

LOWEST = -1e30
"""Stands for -inf where -inf is subtracted; no finite score is as low."""

TINY = 1e-30

Partial = tuple[Tensor, Tensor]
"""A softmax over some of the keys: out (..., d), and the base-2 logarithm of the sum of exponentials (..., 1)."""


@torch.no_grad()
def forward(
    q: Tensor, k: Tensor, v: Tensor, passes: Sequence[Pass], scoring: Scoring, q_start: int, kv_start: int
) -> tuple[Tensor, Tensor]:
    """:func:`toolkit.attention.blockwise.forward` block by block: out (batch, heads, q_len, value_dim) and lse."""
    precision = Precision.of(q.dtype)
    query = torch.arange(q_start, q_start + q.shape[2])
    scratch = Scratch(precision)
    lse = _lse_of_nothing(q, scoring, precision.compute)
    out = q.new_zeros(*q.shape[:3], v.shape[3], dtype=q.dtype if once(passes) else precision.compute)
    with torch.autocast("cpu", enabled=False):
        for share, fresh in in_turn(passes, Sizes.of(q, k)):
            scorer = Scorer(scoring, share, query, share.columns() + kv_start, scratch)
            queries, keys, values = share.queries(q), share.keys(k), share.keys(v)
            outs, lses = share.queries(out), share.queries(lse)
            for block in share.blocks():
                found = _attend(scorer, scorer.queries(queries, block) * scorer.factor, keys, values, block)
                if not fresh or scoring.sink_logits is not None:
                    found = _merged((scorer.queries(outs, block), scorer.queries(lses, block)), found)
                for target, value in zip((outs, lses), found, strict=True):
                    target[..., block.rows, :] = scorer.by_head(value, block).to(target.dtype)
    return out.to(q.dtype), lse[..., 0].mul_(LN_2)


def in_turn(passes: Sequence[Pass], sizes: Sizes) -> Iterator[tuple[Share, bool]]:
    """Each share of each pass, and whether the pass is the first for its heads."""
    done: set[int] = set()
    for part in passes:
        heads = set(range(sizes.heads) if part.heads is None else part.heads)
        for share in shares(part, sizes):
            yield share, not heads & done
        done |= heads


def once(passes: Sequence[Pass]) -> bool:
    """Whether each head is in one pass only."""
    heads = [head for part in passes for head in part.heads or ()]
    return len(passes) == 1 or (all(part.heads for part in passes) and len(set(heads)) == len(heads))


def _lse_of_nothing(q: Tensor, scoring: Scoring, dtype: torch.dtype) -> Tensor:
    """The log-sum-exp of no keys, (batch, heads, q_len, 1) in base 2: -inf, or the sink's logit."""
    lse = q.new_full((*q.shape[:3], 1), -torch.inf, dtype=dtype)
    return lse if scoring.sink_logits is None else lse.copy_(scoring.sink_logits.to(dtype)[:, None, None] / LN_2)


def _attend(scorer: Scorer, queries: Tensor, keys: Tensor, values: Tensor, block: Block) -> Partial:
    """Softmax over all columns of the block: queries (batch * kv, group * rows, d)."""
    found = _attend_chunk(scorer, queries, keys, values, block, block.chunks[0])
    for chunk in block.chunks[1:]:
        found = _merged(found, _attend_chunk(scorer, queries, keys, values, block, chunk))
    return found


def _attend_chunk(scorer: Scorer, queries: Tensor, keys: Tensor, values: Tensor, block: Block, chunk: Chunk) -> Partial:
    """Softmax over the columns of a chunk, of which a row may see none."""
    weights = scorer.scores(queries, scorer.columns(keys, chunk), block, chunk)
    highest = weights.amax(dim=-1, keepdim=True).clamp_(min=LOWEST)
    weights.sub_(highest).exp2_()
    total = weights.sum(dim=-1, keepdim=True)
    kept = scorer.kept(block, chunk)
    if kept is not None:
        weights.mul_(kept)
    lse = highest.add_(total.log2())
    scratch = scorer.scratch
    out = torch.bmm(scratch.operand("operand", weights), scorer.columns(values, chunk, scratch.precision.operand))
    return out.to(weights.dtype).div_(total.clamp_(min=TINY)), lse


def _merged(one: Partial, other: Partial) -> Partial:
    """The softmax over the keys of both."""
    lse = torch.logaddexp2(one[1], other[1])
    base = lse.clamp(min=LOWEST)
    return one[0] * (one[1] - base).exp2_() + other[0] * (other[1] - base).exp2_(), lse
