"""One block against one chunk of its columns: the products, and what turns them into weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from toolkit.attention.blockwise.blocks import Block, Chunk
from toolkit.attention.blockwise.shares import Share
from toolkit.attention.dropout import keep_mask
from toolkit.attention.scoring import Scoring

LN_2 = math.log(2.0)


@dataclass(frozen=True)
class Precision:
    """What is computed in which type.

    Attributes:
        compute: scores, softmax and sums: fp32, or fp64 for fp64.
        operand: the operands of products whose left one is weights or their gradients. bf16 for bf16 where
            the processor multiplies it natively; each product is then rounded to bf16, sums of them are not.
    """

    compute: torch.dtype
    operand: torch.dtype

    @classmethod
    def of(cls, dtype: torch.dtype) -> Precision:
        """For inputs of ``dtype``."""
        compute = torch.promote_types(dtype, torch.float32)
        native = dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()
        return cls(compute, dtype if native else compute)


class Scratch:
    """Memory for scores, used again and again: fresh pages cost more than the arithmetic done in them."""

    def __init__(self, precision: Precision) -> None:
        self.precision = precision
        self.flat: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of this shape with any contents; it shares its memory with the last of this name."""
        size = math.prod(shape)
        if name not in self.flat or self.flat[name].numel() < size:
            self.flat[name] = torch.empty(size, dtype=dtype or self.precision.compute)
        return self.flat[name][:size].view(shape)

    def operand(self, name: str, x: Tensor) -> Tensor:
        """x as the left operand of a product."""
        if x.dtype == self.precision.operand:
            return x
        return self(name, *x.shape, dtype=self.precision.operand).copy_(x)


@dataclass(frozen=True, eq=False)
class Scorer:
    """Scores in base 2 of one share: exp2 is faster than exp, so they are multiplied by log2(e).

    Attributes:
        query: (q_len,) absolute positions of the query rows.
        key: (n_columns,) absolute positions of the columns, in the order of the pass.
    """

    scoring: Scoring
    share: Share
    query: Tensor
    key: Tensor
    scratch: Scratch = field(repr=False)

    @property
    def factor(self) -> float:
        """What queries are multiplied by before the product, :meth:`scores` does the rest."""
        return self.scoring.scale / (self.scoring.softcap or LN_2)

    def queries(self, x: Tensor, block: Block) -> Tensor:
        """The block's rows of x (batch, kv, group, q_len, d): (batch * kv, group * rows, d), in fp32 or fp64."""
        return x[..., block.rows, :].to(self.scratch.precision.compute).flatten(2, 3).flatten(0, 1)

    def columns(self, x: Tensor, chunk: Chunk, dtype: torch.dtype | None = None) -> Tensor:
        """The chunk's columns of x (batch, kv, n_columns, d): (batch * kv, columns, d), in ``dtype`` or fp32, fp64."""
        x = chunk.side_by_side(x).to(dtype or self.scratch.precision.compute).flatten(0, 1)
        return x if chunk.unseen is None else x.masked_fill(chunk.unseen[:, None], 0.0)

    def scores(self, queries: Tensor, keys: Tensor, block: Block, chunk: Chunk, keep_tanh: bool = False) -> Tensor:
        """Scores (batch * kv, group * rows, columns), -inf where masked, in scratch memory.

        queries (batch * kv, group * rows, d) come multiplied by ``factor``; keys (batch * kv, columns, d).
        ``keep_tanh`` leaves the tangents of a soft cap in the scratch memory ``tanh``.
        """
        scores = torch.bmm(queries, keys.mT, out=self.scratch("scores", *queries.shape[:2], keys.shape[1]))
        if self.scoring.softcap:
            scores.tanh_()
            if keep_tanh:
                self.scratch("tanh", *scores.shape).copy_(scores)
            scores.mul_(self.scoring.softcap / LN_2)
        by_head = self.by_head(scores, block)
        if self.scoring.alibi_slopes is not None:
            slopes = self.share.per_head(self.scoring.alibi_slopes.to(scores.dtype))
            query, key = self.query[block.rows], chunk.side_by_side(self.key[:, None])[:, 0]
            by_head.addcmul_(slopes, (query[:, None] - key).abs().to(scores.dtype), value=-1 / LN_2)
        for columns, edge in chunk.edges:
            by_head[..., columns].add_(edge.bias(scores.dtype))
        return scores

    def by_head(self, scores: Tensor, block: Block) -> Tensor:
        """(batch * kv, group * rows, columns) as (batch, kv, group, rows, columns)."""
        return scores.view(*self.share.lead, block.n_rows, scores.shape[-1])

    def kept(self, block: Block, chunk: Chunk) -> Tensor | None:
        """1 / (1 - p) where dropout keeps the weight and 0 elsewhere; None without dropout.

        Shape (batch * kv, group * rows, columns).
        """
        p, seed = self.scoring.dropout_p, self.scoring.seed
        if not p or seed is None:
            return None
        head = self.share.per_head(self.scoring.first_head + torch.arange(self.share.sizes.heads))
        batch = torch.arange(self.share.batch.start, self.share.batch.stop)[:, None, None, None, None]
        query, key = self.query[block.rows, None], chunk.side_by_side(self.key[:, None])[:, 0]
        keep = keep_mask(seed, batch, head, query, key, p)
        return keep.flatten(2, 3).flatten(0, 1).to(self.scratch.precision.compute).mul_(1 / (1 - p))
