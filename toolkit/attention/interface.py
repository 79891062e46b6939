"""``attention()``: one function over every pattern and backend."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from toolkit.attention.blockwise import blockwise_attention
from toolkit.attention.patterns import Causal, Pattern
from toolkit.attention.reference import reference_attention
from toolkit.checks import require, require_choice

BACKENDS = {"blockwise": blockwise_attention, "reference": reference_attention}
CAUSAL = Causal()


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern = ...,
    *,
    scale: float | None = ...,
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
    return_lse: bool = False,
    q_start: int | None = None,
    kv_start: int = 0,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Scaled dot-product attention over the pairs that ``pattern`` sees.

    Shapes: q (batch, heads, q_len, head_dim); k (batch, kv_heads, kv_len, head_dim); v (batch,
    kv_heads, kv_len, value_dim) -> out (batch, heads, q_len, value_dim) in q's dtype. Query head h
    uses key head h // (heads / kv_heads). Scores and softmax are computed in fp32 (fp64 for fp64).

    Args:
        q, k, v: queries, keys and values.
        pattern: which pairs are visible.
        scale: factor of the scores; head_dim ** -0.5 by default.
        return_lse: also return lse (batch, heads, q_len): the natural logarithm of each row's sum of
            exponentials, differentiable, fp32; -inf for a row that sees no key (its out is zero).
        q_start, kv_start: absolute position of the first query and the first key; by default the
            queries are the last q_len positions of the keys.
        backend: ``"blockwise"`` visits only the blocks the pattern reaches; ``"reference"`` is the
            textbook; ``"auto"`` is blockwise.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, or the backend is unknown.

    >>> import torch
    >>> q, kv = torch.randn(1, 4, 8, 16), torch.randn(1, 2, 8, 16)
    >>> attention(q, kv, kv, Causal()).shape
    torch.Size([1, 4, 8, 16])
    """
    _check(q, k, v)
    require_choice("backend", backend, ("auto", *BACKENDS))
    compute = BACKENDS["blockwise" if backend == "auto" else backend]
    out, lse = compute(q, k, v, pattern, q.shape[-1] ** -0.5 if scale is None else scale, q_start, kv_start)
    return (out, lse) if return_lse else out


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        require(tensor.ndim == 4, f"{name}.shape", tuple(tensor.shape), "(batch, heads, length, head_dim)")
        require(tensor.is_floating_point(), f"{name}.dtype", tensor.dtype, "a floating-point type")
        require(tensor.dtype == q.dtype, f"{name}.dtype", tensor.dtype, f"q's, {q.dtype}")
        require(tensor.device == q.device, f"{name}.device", tensor.device, f"q's, {q.device}")
        require(tensor.shape[0] == q.shape[0], f"{name} batch", tensor.shape[0], f"q's, {q.shape[0]}")
    require(k.shape[1:3] == v.shape[1:3], "v (kv_heads, kv_len)", tuple(v.shape[1:3]), f"k's, {tuple(k.shape[1:3])}")
    require(k.shape[3] == q.shape[3], "k head_dim", k.shape[3], f"q's, {q.shape[3]}")
    require(q.shape[1] % k.shape[1] == 0, "kv_heads", k.shape[1], f"a divisor of heads={q.shape[1]}")
