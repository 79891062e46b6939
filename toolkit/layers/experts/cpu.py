"""Experts on a CPU: sorted once, then expert by expert in buffers small enough to stay in its caches.

Kept for the backward pass are the input and, unless they are to be computed again, the pre-activations; never a
tensor of (tokens * top_k, dim). Weight gradients are written straight into one tensor for all experts. The gate's
gradient is <dA, A> with dA = dY second, so that no expert's output is stored (Guo et al. 2025, SonicMoE, arXiv
2512.14080, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.layers.experts.activations import Activation
from toolkit.layers.experts.inplace import in_place
from toolkit.layers.experts.weights import Weights
from toolkit.routing import ExpertRows

CHUNK = 1024
"""Rows of one expert that are worked on at once."""

LOW_PRECISION_ROWS = 64
"""oneDNN compiles a kernel for each new row count in 16 bits; multiples of 64 keep those few."""


def kept_rows(n: int, dtype: torch.dtype) -> int:
    """Rows of the pre-activations that are kept for n triples: the last expert's padding needs room too."""
    return n + _multiple(dtype) - 1


def forward(
    x: Tensor, weight: Tensor, rows: ExpertRows, starts: Tensor, weights: Weights, activation: Activation, keep: bool
) -> tuple[Tensor, Tensor]:
    """Each token's experts, weighted and summed; see :class:`toolkit.layers.experts.operator.Backend`.

    Shapes: x (tokens, dim); weight (n,) -> (tokens, dim) and (kept_rows or 0, width). Rows of no expert are not
    written: where experts choose, they are most, and memory that is not touched costs nothing.
    """
    chunks = list(_chunks(rows.counts(), x.dtype))
    buffers = _Buffers.like(x, weights, chunks)
    hidden = x.new_empty(kept_rows(len(weight), x.dtype) if keep else 0, weights.first.shape[1])
    gates = weight.index_select(0, rows.order).to(buffers.sums.dtype)[:, None]
    out = x.new_zeros(x.shape, dtype=buffers.sums.dtype)  # 16-bit outputs are summed in fp32
    apply, _ = in_place(activation)
    for chunk in chunks:
        token, n = rows.token[chunk.start : chunk.stop], chunk.rows
        before = hidden[chunk.start : chunk.start + n] if keep else buffers.hidden[:n]
        read = _gather(x, token, buffers.x[:n])
        _project(read, weights.first, weights.first_bias, chunk.expert, before)
        apply(before, buffers.active[:n], buffers.kept[:n])
        y = _project(buffers.active[:n], weights.second, weights.second_bias, chunk.expert, buffers.y[:n])
        used = buffers.sums[: chunk.used]
        out.index_add_(0, token, torch.mul(y[: chunk.used], gates[chunk.start : chunk.stop], out=used))
    return out.to(x.dtype), hidden


def backward(
    d_out: Tensor,
    x: Tensor,
    weight: Tensor,
    rows: ExpertRows,
    starts: Tensor,
    weights: Weights,
    activation: Activation,
    hidden: Tensor,
) -> tuple[Tensor, Tensor, Weights]:
    """The gradients of ``forward`` by x, weight and the weights; ``hidden`` of no rows is computed again.

    Shapes: d_out, x (tokens, dim); weight (n,); hidden (kept_rows or 0, width).
    """
    chunks = list(_chunks(rows.counts(), x.dtype))
    buffers = _Buffers.like(x, weights, chunks)
    gates = weight.index_select(0, rows.order).to(x.dtype)[:, None]
    gradients = _unwritten(weights, {chunk.expert for chunk in chunks})
    d_x = x.new_zeros(x.shape, dtype=buffers.sums.dtype)
    d_weight = weight.new_zeros(len(weight))
    apply, derive = in_place(activation)
    for chunk in chunks:
        span, n, used, e = slice(chunk.start, chunk.stop), chunk.rows, chunk.used, chunk.expert
        token, gate = rows.token[span], gates[span]
        read, d_y = _gather(x, token, buffers.x[:n]), _gather(d_out, token, buffers.d_y[:n])
        before = hidden[chunk.start : chunk.start + n] if len(hidden) else buffers.hidden[:n]
        if not len(hidden):
            _project(read, weights.first, weights.first_bias, e, before)
        active, kept, d_active, d_hidden = (
            buffer[:n] for buffer in (buffers.active, buffers.kept, buffers.d_active, buffers.d_hidden)
        )
        apply(before, active, kept)
        torch.mm(d_y, weights.second[e], out=d_active)
        d_gate = torch.linalg.vecdot(d_active[:used], active[:used])
        if weights.second_bias is not None:
            d_gate += d_y[:used] @ weights.second_bias[e]
        d_weight.index_copy_(0, rows.order[span], d_gate.to(weight.dtype))
        active[:used].mul_(gate)
        d_active[:used].mul_(gate)
        derive(before, d_active, d_hidden, kept)
        active[used:].zero_()
        d_hidden[used:].zero_()
        _add_outer(gradients.second, d_y, active, chunk)
        _add_outer(gradients.first, d_hidden, read, chunk)
        _add_biases(gradients, d_hidden[:used], d_y[:used] * gate if gradients.second_bias is not None else None, e)
        y = torch.mm(d_hidden, weights.first[e], out=buffers.y[:n])
        d_x.index_add_(0, token, y[:used].to(d_x.dtype))
    return d_x.to(x.dtype), d_weight, gradients


@dataclass(frozen=True)
class _Chunk:
    """Rows ``start`` to ``stop`` of one expert, in buffers of ``rows`` rows, the last of which may be padding."""

    expert: int
    start: int
    stop: int
    rows: int
    opens: bool  # the first of its expert

    @property
    def used(self) -> int:
        """Rows that are not padding."""
        return self.stop - self.start


def _chunks(counts: list[int], dtype: torch.dtype) -> Iterator[_Chunk]:
    """The rows of every expert that has any, in order, at most ``CHUNK`` at once."""
    multiple, end = _multiple(dtype), 0
    for expert, count in enumerate(counts):
        begin, end = end, end + count
        for start in range(begin, end, CHUNK):
            stop = min(start + CHUNK, end)
            yield _Chunk(expert, start, stop, -(-(stop - start) // multiple) * multiple, start == begin)


def _multiple(dtype: torch.dtype) -> int:
    return LOW_PRECISION_ROWS if dtype.itemsize == 2 else 1


@dataclass(frozen=True)
class _Buffers:
    """What one chunk is computed in, used again by the next."""

    x: Tensor  # (rows, dim)
    d_y: Tensor
    y: Tensor
    sums: Tensor  # (rows, dim), fp32 at least
    active: Tensor  # (rows, hidden_dim)
    kept: Tensor
    d_active: Tensor
    hidden: Tensor  # (rows, width)
    d_hidden: Tensor

    @classmethod
    def like(cls, x: Tensor, weights: Weights, chunks: list[_Chunk]) -> _Buffers:
        """Room for the largest chunk; memory that is not touched costs nothing."""
        rows = max((chunk.rows for chunk in chunks), default=0)
        _, width, dim = weights.first.shape
        hidden_dim = weights.second.shape[2]
        read, d_y, y = (x.new_zeros(rows, dim) for _ in range(3))  # padding rows must be finite
        sums = torch.empty(rows, dim, dtype=torch.promote_types(x.dtype, torch.float32))
        active, kept, d_active = (x.new_empty(rows, hidden_dim) for _ in range(3))
        hidden, d_hidden = (x.new_empty(rows, width) for _ in range(2))
        return cls(read, d_y, y, sums, active, kept, d_active, hidden, d_hidden)


def _gather(x: Tensor, token: Tensor, out: Tensor) -> Tensor:
    """x (tokens, dim) by token (used,) into out (rows, dim), whose padding stays what it was: finite."""
    torch.index_select(x, 0, token, out=out[: len(token)])
    return out


def _project(rows: Tensor, matrices: Tensor, biases: Tensor | None, expert: int, out: Tensor) -> Tensor:
    """rows (n, a) by the expert's matrix (b, a), plus its bias (b,) -> out (n, b)."""
    if biases is None:
        return torch.mm(rows, matrices[expert].t(), out=out)
    return torch.addmm(biases[expert], rows, matrices[expert].t(), out=out)


def _unwritten(weights: Weights, used: set[int]) -> Weights:
    """Gradients for every weight: zero for experts without rows, not yet written for the others."""

    def gradient(weight: Tensor | None) -> Tensor | None:
        if weight is None:
            return None
        made = weight.new_empty(weight.shape)
        for expert in set(range(len(weight))) - used:
            made[expert].zero_()
        return made

    first, second = gradient(weights.first), gradient(weights.second)
    assert first is not None and second is not None
    biases = (None if b is None else b.new_zeros(b.shape) for b in (weights.first_bias, weights.second_bias))
    return Weights(first, second, *biases)


def _add_outer(gradient: Tensor, left: Tensor, right: Tensor, chunk: _Chunk) -> None:
    """gradient[expert] (a, b) = or += sum over rows of left (rows, a) times right (rows, b)."""
    out = gradient[chunk.expert]
    if chunk.opens:
        torch.mm(left.t(), right, out=out)
    else:
        out.addmm_(left.t(), right)


def _add_biases(gradients: Weights, d_hidden: Tensor, d_y: Tensor | None, expert: int) -> None:
    """Sums over rows (used, width) and (used, dim)."""
    if gradients.first_bias is not None:
        gradients.first_bias[expert] += d_hidden.sum(0)
    if gradients.second_bias is not None and d_y is not None:
        gradients.second_bias[expert] += d_y.sum(0)
