"""``attention()``: one function over every pattern and backend."""

from __future__ import annotations

import os
from typing import Literal, overload

import torch
from torch import Tensor

from toolkit.attention.operator import attention_operator
from toolkit.attention.parse import encode
from toolkit.attention.patterns import Causal, Pattern
from toolkit.attention.patterns.pattern import first_position
from toolkit.attention.reference import reference_attention
from toolkit.attention.scoring import Scoring
from toolkit.checks import require, require_choice

BACKENDS = "auto", "triton", "blockwise", "reference"
CAUSAL = Causal()


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern = ...,
    *,
    scale: float | None = ...,
    softcap: float | None = ...,
    sink_logits: Tensor | None = ...,
    alibi_slopes: Tensor | None = ...,
    dropout_p: float = ...,
    return_lse: Literal[False] = ...,
    q_start: int | None = ...,
    kv_start: int = ...,
    backend: str = ...,
) -> Tensor: ...
@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern = ...,
    *,
    scale: float | None = ...,
    softcap: float | None = ...,
    sink_logits: Tensor | None = ...,
    alibi_slopes: Tensor | None = ...,
    dropout_p: float = ...,
    return_lse: Literal[True],
    q_start: int | None = ...,
    kv_start: int = ...,
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...
def attention(
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
    return_lse: bool = False,
    q_start: int | None = None,
    kv_start: int = 0,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Scaled dot-product attention over the pairs that ``pattern`` sees.

    Shapes: q (batch, heads, q_len, head_dim); k (batch, kv_heads, kv_len, head_dim); v (batch,
    kv_heads, kv_len, value_dim) -> out (batch, heads, q_len, value_dim) in q's dtype. Query head h
    uses key head h // (heads / kv_heads). Scores and softmax are computed in fp32 (fp64 for fp64). A row
    that sees no key gives zeros.

    Args:
        q, k, v: queries, keys and values.
        pattern: which pairs are visible; the default is ``Causal()``.
        scale: factor of the scores; head_dim ** -0.5 by default.
        softcap: scores become softcap * tanh(score / softcap); None or 0 for none.
        sink_logits: (heads,) floating-point: a logit that joins each row's denominator and nothing else;
            differentiable.
        alibi_slopes: (heads,): slope * abs(i - j) is taken from the scores; constants.
        dropout_p: chance in [0, 1) that a weight is dropped, the others scaled by 1 / (1 - dropout_p). Its
            seed is drawn from torch's generator; with it, positions, head and batch row decide each
            weight, on every backend alike.
        return_lse: also return lse (batch, heads, q_len): the natural logarithm of each row's sum of
            exponentials, sink included, differentiable, fp32 (fp64 for fp64); -inf for a row that sees no
            key and has no sink.
        q_start, kv_start: absolute position of the first query and the first key; by default the
            queries are the last q_len positions of the keys. Where the pattern names positions past the last
            token, pass ``pattern.until(end)``.
        backend: ``"triton"``, the kernels, for a GPU; ``"blockwise"``, on the CPU; ``"reference"``, the
            textbook, of quadratic memory, the only one that can be differentiated twice; ``"auto"``
            picks by the device.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, a setting is out of its range, the
            pattern's own sizes do not fit, or the backend is unknown or not for this device.
        RuntimeError: if ``backend="triton"`` finds neither a GPU nor the interpreter.

    >>> import torch
    >>> q, kv = torch.randn(1, 4, 8, 16), torch.randn(1, 2, 8, 16)
    >>> attention(q, kv, kv, Causal()).shape
    torch.Size([1, 4, 8, 16])
    """
    _check_tensors(q, k, v)
    _check_scoring(q, softcap, sink_logits, alibi_slopes, dropout_p)
    q_start = _check_pattern(pattern, q, k, q_start, kv_start)
    backend = _chosen(backend, q.device)
    seed = torch.randint(2**63 - 1, (1,), device=q.device) if dropout_p else None
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if alibi_slopes is not None:
        alibi_slopes = alibi_slopes.float()
    if backend == "reference":
        scoring = Scoring(scale, softcap or 0.0, alibi_slopes, sink_logits, dropout_p, seed)
        out, lse = reference_attention(q, k, v, pattern, scoring, q_start, kv_start)
    else:
        text, tensors = encode(pattern)
        out, lse = attention_operator(
            q,
            k,
            v,
            sink_logits,
            alibi_slopes,
            seed,
            tensors,
            text,
            q_start,
            kv_start,
            scale,
            softcap or 0.0,
            dropout_p,
            backend,
        )
    return (out, lse) if return_lse else out


def _chosen(backend: str, device: torch.device) -> str:
    """The backend to use on ``device``."""
    require_choice("backend", backend, BACKENDS)
    if backend == "auto":
        require(device.type in ("cuda", "cpu", "meta"), "q.device", device, "cuda or cpu, or use backend='reference'")
        return "triton" if device.type == "cuda" else "blockwise"
    if backend == "blockwise":
        require(device.type == "cpu", "backend", backend, f"'triton' or 'auto' for tensors on {device}")
    if backend == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            f"backend='triton' on {device}: it needs tensors on a GPU, or TRITON_INTERPRET=1 set before the kernels "
            "are imported; on the CPU use backend='blockwise' or 'auto'"
        )
    return backend


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        require(tensor.ndim == 4, f"{name}.shape", tuple(tensor.shape), "(batch, heads, length, head_dim)")
        require(tensor.is_floating_point(), f"{name}.dtype", tensor.dtype, "a floating-point type")
        require(tensor.dtype == q.dtype, f"{name}.dtype", tensor.dtype, f"q's, {q.dtype}")
        require(tensor.device == q.device, f"{name}.device", tensor.device, f"q's, {q.device}")
        require(tensor.shape[0] == q.shape[0], f"{name} batch", tensor.shape[0], f"q's, {q.shape[0]}")
    require(k.shape[1:3] == v.shape[1:3], "v (kv_heads, kv_len)", tuple(v.shape[1:3]), f"k's, {tuple(k.shape[1:3])}")
    require(k.shape[3] == q.shape[3], "k head_dim", k.shape[3], f"q's, {q.shape[3]}")
    require(q.shape[3] > 0 and k.shape[1] > 0, "k.shape", tuple(k.shape), "of at least one kv_head and head_dim")
    require(q.shape[1] % k.shape[1] == 0, "kv_heads", k.shape[1], f"a divisor of heads={q.shape[1]}")


def _check_scoring(
    q: Tensor, softcap: float | None, sink_logits: Tensor | None, alibi_slopes: Tensor | None, dropout_p: float
) -> None:
    require(softcap is None or 0 <= softcap < float("inf"), "softcap", softcap, "positive, or None for none")
    require(0.0 <= dropout_p < 1.0, "dropout_p", dropout_p, "at least 0 and below 1")
    for name, tensor in (("sink_logits", sink_logits), ("alibi_slopes", alibi_slopes)):
        if tensor is not None:
            require(tensor.shape == q.shape[1:2], f"{name}.shape", tuple(tensor.shape), f"(heads,) = ({q.shape[1]},)")
            require(tensor.is_floating_point(), f"{name}.dtype", tensor.dtype, "a floating-point type")
            require(tensor.device == q.device, f"{name}.device", tensor.device, f"q's, {q.device}")
    learned = alibi_slopes is not None and alibi_slopes.requires_grad
    require(not learned, "alibi_slopes.requires_grad", learned, "False: the slopes are constants and get no gradient")


def _check_pattern(pattern: Pattern, q: Tensor, k: Tensor, q_start: int | None, kv_start: int) -> int:
    """The first query's position, once everything about the pattern fits."""
    require(isinstance(pattern, Pattern), "pattern", pattern, "a pattern, such as Causal()")
    require(pattern.device in (None, q.device), "pattern device", pattern.device, f"q's, {q.device}")
    for axis, name in enumerate(("batch", "heads")):
        own, given = pattern.planes[axis], q.shape[axis]
        require(own in (1, given), f"pattern {name}", own, f"1 or q's, {given}")
    return first_position(pattern, q.shape[2], k.shape[2], q_start, kv_start)
