"""Attention as one operator of torch: compiled without a break, differentiated once, counted exactly.

``toolkit::attention`` takes the pattern as text with the tensors it names; planning happens inside, where
neither a compiler's tracing nor a fake tensor meets it, and is cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from toolkit.attention import blockwise
from toolkit.attention.held import Held
from toolkit.attention.parse import parse_pattern
from toolkit.attention.patterns import Pattern
from toolkit.attention.plan import PLANS, Pass, plan
from toolkit.attention.scoring import Scoring
from toolkit.checks import refuse_double_backward


class Backend(Protocol):
    """What computes attention over passes: see :mod:`toolkit.attention.blockwise`."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, passes: Sequence[Pass], scoring: Scoring, q_start: int, kv_start: int
    ) -> tuple[Tensor, Tensor]:
        """out (batch, heads, q_len, value_dim) and lse (batch, heads, q_len)."""

    def backward(
        self,
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
        """The gradients of q, k, v and the sink logits."""


def backend_module(name: str) -> Backend:
    """The module that computes for ``"blockwise"`` or ``"triton"``.

    Raises:
        RuntimeError: if triton is asked for and not installed.
    """
    if name == "blockwise":
        return blockwise
    try:
        from toolkit.attention.kernels import backend
    except ImportError as error:
        raise RuntimeError(f"backend='triton' needs the triton package: {error}") from error
    return backend


@torch.library.custom_op("toolkit::attention", mutates_args=())
def attention_operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink_logits: Tensor | None,
    alibi_slopes: Tensor | None,
    seed: Tensor | None,
    tensors: Sequence[Tensor],
    pattern: str,
    q_start: int,
    kv_start: int,
    scale: float,
    softcap: float,
    dropout_p: float,
    first_head: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """out (batch, heads, q_len, value_dim) and lse (batch, heads, q_len), over the pairs ``pattern`` sees.

    Shapes: q (batch, heads, q_len, head_dim); k (batch, kv_heads, kv_len, head_dim); v (batch, kv_heads,
    kv_len, value_dim). ``pattern`` and ``tensors`` are what :func:`toolkit.attention.parse.encode` makes of
    a pattern; the rest is as in :class:`toolkit.attention.scoring.Scoring`.
    """
    scoring = Scoring(scale, softcap, alibi_slopes, sink_logits, dropout_p, seed, first_head)
    passes = _passes(pattern, tensors, q, k, q_start, kv_start)
    return backend_module(backend).forward(q, k, v, passes, scoring, q_start, kv_start)


@attention_operator.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    lse_dtype = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3], dtype=lse_dtype)


@torch.library.custom_op("toolkit::attention_backward", mutates_args=())
def attention_backward_operator(
    d_out: Tensor,
    d_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    sink_logits: Tensor | None,
    alibi_slopes: Tensor | None,
    seed: Tensor | None,
    tensors: Sequence[Tensor],
    pattern: str,
    q_start: int,
    kv_start: int,
    scale: float,
    softcap: float,
    dropout_p: float,
    first_head: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v and the sink logits (of no elements where there are none)."""
    scoring = Scoring(scale, softcap, alibi_slopes, sink_logits, dropout_p, seed, first_head)
    passes = _passes(pattern, tensors, q, k, q_start, kv_start)
    dq, dk, dv, d_sink = backend_module(backend).backward(
        d_out, d_lse, q, k, v, out, lse, passes, scoring, q_start, kv_start
    )
    return dq, dk, dv, q.new_empty(0) if d_sink is None else d_sink


@attention_backward_operator.register_fake
def _(
    d_out: Tensor,
    d_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    sink_logits: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_sink = q.new_empty(0) if sink_logits is None else sink_logits.new_empty(sink_logits.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), d_sink


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, sink_logits, alibi_slopes, seed, tensors, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, *output, sink_logits, alibi_slopes, seed, *tensors)


def _differentiate(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Any, ...]:
    refuse_double_backward("attention's operator")
    q, k, v, out, lse, sink_logits, alibi_slopes, seed, *tensors = ctx.saved_tensors
    dq, dk, dv, d_sink = attention_backward_operator(
        d_out, d_lse, q, k, v, out, lse, sink_logits, alibi_slopes, seed, tensors, *ctx.settings
    )
    settings = (None,) * len(ctx.settings)
    return dq, dk, dv, None if sink_logits is None else d_sink, None, None, [None] * len(tensors), *settings


attention_operator.register_autograd(_differentiate, setup_context=_save)


@register_flop_formula(torch.ops.toolkit.attention, get_raw=True)
def attention_flops(q: Tensor, k: Tensor, v: Tensor, *rest: Any, out_val: Any = None, **_: Any) -> int:
    """Two products over the visible pairs, two operations for each multiply-add; masked pairs are free."""
    tensors, pattern, q_start, kv_start = rest[3:7]
    area = decoded(pattern, tensors).area(q.shape[2], k.shape[2], q_start, kv_start, q.shape[0], q.shape[1])
    return 2 * area * (q.shape[3] + v.shape[3])


@register_flop_formula(torch.ops.toolkit.attention_backward, get_raw=True)
def attention_backward_flops(
    d_out: Tensor, d_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: Any, **_: Any
) -> int:
    """Twice the forward pass: a gradient for each operand of each product; recomputation is not counted."""
    return 2 * attention_flops(q, k, v, *rest)


def decoded(text: str, tensors: Sequence[Tensor]) -> Pattern:
    """The pattern written as ``text``; the same object again for the same unchanged tensors, so that plans are kept."""
    if not tensors:
        return _parsed(text)
    if any(tensor.is_inference() for tensor in tensors):  # these do not tell when they are changed
        return parse_pattern(text, tensors)
    key = text, tuple((id(tensor), tensor._version) for tensor in tensors)
    # The tensors are kept with the pattern, so that no other can take their ids while it is remembered.
    pattern, _ = _decoded.get(key, lambda: (parse_pattern(text, tensors), tuple(tensors)), lambda made: made[1])
    return pattern


_parsed = lru_cache(maxsize=PLANS)(parse_pattern)
_decoded: Held[tuple[Pattern, tuple[Tensor, ...]]] = Held()


def _passes(
    text: str, tensors: Sequence[Tensor], q: Tensor, k: Tensor, q_start: int, kv_start: int
) -> tuple[Pass, ...]:
    """The plan on q's device."""
    passes = plan(decoded(text, tensors), q.shape[2], k.shape[2], q_start, kv_start)
    return tuple(part.on(q.device) for part in passes)
